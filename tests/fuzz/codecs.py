"""The codec fuzz: good messages of each kind, damaged as objects and as bytes, through the codec and back.

What is read can be written, and read again as the same; all else is DecodeError with one line, and nothing else
happens. Of damage that has a meaning (a field left out, a null, a field that nobody knows) it is known what must come.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from schemas import codec
from schemas.activity import MAX_TIMESTAMP_MS, UserActivity
from schemas.codec import DecodeError, ErrorCode
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, FilterClause, RecallRequest, Removed, Status, Timings
from tests.fuzz import examples
from tests.fuzz.damage import HOSTILE, NOW_MS, SEEDS, mutated
from tests.fuzz.examples import nasty_text, one_of
from tests.fuzz.filters import OPS

Message = UserActivity | ItemUpdate | RecallRequest | CandidateList
Pairs = list[tuple[str, bytes]]
"""The fields of a JSON object in their order, each as the bytes of its value; a name may come twice."""

READ: dict[type, Callable[[bytes], Any]] = {
    UserActivity: lambda value: codec.decode_activity(value, record_timestamp_ms=NOW_MS),
    ItemUpdate: codec.decode_item,
    RecallRequest: codec.decode_request,
    CandidateList: codec.decode_candidates,
}
REQUIRED = {kind: [field.name for field in msgspec.structs.fields(kind) if field.required] for kind in READ}
OTHERS = [json.dumps(event).encode() for events in SEEDS.values() for event in events]
AS_OBJECT, AS_BYTES = 8, 8  # so many times one example's message is damaged
SLOW_S = 1.0  # of processor time, for a message of some kilobytes
EXTREME = (
    b"9007199254740993", b"1" * 400, b"1e308", b"-1e308", b"1e-400", b'"\\udc00"', b'{"a":1,"a":null}', b'["a",""]',
    b'[{"field":"f","op":"eq","value":{}}]', b'[{"field":"f","op":"a\\nb","value":1}]', b'[{"field":"","op":"eq"}]',
    b'{"seen":1e3}', b'{"queue":null}', b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'["' + b'a","' * 1001 + b'"]',
)  # fmt: skip
LIMITS = (  # the last that is allowed somewhere, and the first that is not
    b'"%b"' % (b"x" * 256), b'"%b"' % (b"x" * 257), b'"%b"' % ("é" * 128).encode(), b'"%b"' % ("é" * 129).encode(),
    b'""', b'["%b"]' % ("名" * 86).encode(), b"0", b"-1", b"1000", b"1001", b"60000", b"60001",
    b"3.4028235e38", b"3.5e38", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809",
    b'{"a":18446744073709551616}', b"253402300799999", b"253402300800000", b"2000000300000", b"2000000300001",
    b'{"a":[[[[[[[1]]]]]]]}', b'{"a":[[[[[[[[1]]]]]]]]}', b'[{"field":"f","op":"eq","value":[[[[[[[[[1]]]]]]]]]}]',
)  # fmt: skip
FREE = ("attributes", "context")
TOO_FREE = (
    b'{"a":18446744073709551616}',
    b'{"a":[{"b":-9223372036854775809}]}',
    b'{"a":[[[[[[[[1]]]]]]]]}',
    b"[]",
    b'"{}"',
)

ids = nasty_text().filter(lambda text: 0 < len(text.encode()) <= 256)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | nasty_text()
free = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty_text(), inner, max_size=3), max_leaves=5
)
objects = st.none() | st.dictionaries(nasty_text(), free, max_size=4)
times = st.integers(0, NOW_MS)
singles = st.floats(allow_nan=False, allow_infinity=False, width=32)
broken = one_of(LIMITS) | one_of(HOSTILE + EXTREME) | free.map(msgspec.json.encode) | st.binary(max_size=5)


def messages() -> st.SearchStrategy[Message]:
    """Good ones of every kind."""
    activity = st.builds(
        UserActivity,
        event_id=ids, user_id=ids, action=ids, timestamp_ms=times, item_id=st.none() | ids,
        value=st.none() | singles, attributes=objects, context=objects,
    )  # fmt: skip
    item = st.builds(
        ItemUpdate,
        item_id=ids, op=st.sampled_from(("upsert", "delete")), timestamp_ms=st.integers(0, MAX_TIMESTAMP_MS),
        attributes=objects, version=st.none() | st.integers(0, 2**63 - 1), embedding_model=st.none() | ids,
        embedding=st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    )  # fmt: skip
    clause = st.builds(FilterClause, field=ids, op=st.sampled_from(OPS), value=free)
    request = st.builds(
        RecallRequest,
        request_id=ids, user_id=ids, timestamp_ms=st.none() | times, k=st.none() | st.integers(1, 1000),
        timeout_ms=st.integers(1, 60_000), scene=ids, after_event_id=st.none() | ids,
        filter=st.lists(clause, max_size=3), exclude_items=st.lists(ids, max_size=3),
        anchor_items=st.lists(ids, max_size=3), exclude_seen=st.none() | st.booleans(), context=objects,
    )  # fmt: skip
    return activity | item | request | answers()


@st.composite
def answers(draw: st.DrawFn) -> CandidateList:
    """Scores as serving has them: an array."""
    count = draw(st.integers(0, 5))
    counts = st.integers(0, 10**6)
    return CandidateList(
        request_id=draw(ids), user_id=draw(ids), scene=draw(ids), status=draw(st.sampled_from(list(Status))),
        timestamp_ms=draw(times), reasons=draw(st.lists(nasty_text(), max_size=2)),
        error_field=draw(st.none() | nasty_text()),
        item_ids=draw(st.lists(ids, min_size=count, max_size=count)), sources=["tower"] * count,
        scores=np.array(draw(st.lists(singles, min_size=count, max_size=count)), dtype=np.float32),
        model_version=draw(st.none() | ids), collection=draw(st.none() | ids), feature_age_ms=draw(st.none() | times),
        removed=Removed(seen=draw(counts), duplicate=draw(counts)),
        timings_ms=Timings(queue=draw(singles), reused=draw(st.none() | singles)),
    )  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A good message, values to put into it, and what decides where and how it is damaged."""

    message: Message
    values: list[bytes]
    seed: int


def made() -> st.SearchStrategy[Example]:
    """Examples of one message each."""
    return st.builds(Example, messages(), st.lists(broken, min_size=1, max_size=4), st.integers(0, 2**32))


class Codecs:
    """Examples, each of many messages. Counts what became of them."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0

    def check(self, example: Example) -> int:
        """One message, good and damaged in many ways; how many. Raises AssertionError."""
        kind, message, chance = type(example.message), example.message, random.Random(example.seed)
        if isinstance(message, CandidateList):
            value = codec.encode_candidates(message)
            scores = self.read(kind, value).scores  # as few digits as tell one float32 from the next
            assert np.array_equal(np.array(scores, dtype=np.float32), message.scores), value
            message = msgspec.structs.replace(message, scores=scores)
        else:
            value = codec.encode_event(message)
        assert self.read(kind, value) == message, value
        pairs = list(msgspec.json.decode(value, type=dict[str, msgspec.Raw]).items())
        fields = [(name, bytes(text)) for name, text in pairs]
        for _ in range(AS_OBJECT):
            self._as_object(message, fields, example.values, chance)
        others = OTHERS + [each for each in example.values if each]
        for _ in range(AS_BYTES):
            self.read(kind, mutated(value, others, chance))
        self.read(kind, value[: chance.randrange(len(value))], must=DecodeError)
        for each in example.values:
            self.read(kind, each)
        return 2 + AS_OBJECT + AS_BYTES + len(example.values)

    def _as_object(self, message: Message, fields: Pairs, values: list[bytes], chance: random.Random) -> None:
        """One message with some fields left out, swapped, repeated, null or unknown."""
        kind, damaged, value = type(message), list(fields), chance.choice(values)
        at = chance.randrange(len(fields))
        name, text = fields[at]
        damage = chance.randrange(10)
        if damage == 0:
            del damaged[at]
            if name in REQUIRED[kind]:
                error = self.read(kind, written(damaged), must=DecodeError)
                assert name in str(error), (name, error)
                assert kind is CandidateList or (error.code, error.field) == (ErrorCode.MISSING_FIELD, name), error
                return
        elif damage == 1:
            chance.shuffle(damaged)
            damaged.insert(chance.randrange(len(damaged)), ("nobody_knows", b'[{"a":"\\n"},null,1e9]'))
            assert self.read(kind, written(damaged)) == message, damaged
            return
        elif damage == 2 and kind is not CandidateList:
            absent = [field for field in kind.__struct_fields__ if field not in dict(fields)]
            damaged += [(field, b"null") for field in absent]
            assert self.read(kind, written(damaged)) == message, damaged
            return
        elif damage == 3 and kind is not CandidateList:
            field = chance.choice([each for each in FREE if each in kind.__struct_fields__])
            damaged = [pair for pair in damaged if pair[0] != field] + [(field, chance.choice(TOO_FREE))]
            error = self.read(kind, written(damaged), must=DecodeError)
            assert error.field == field, (error, damaged)
            return
        elif damage == 4:
            damaged.insert(chance.randrange(len(damaged) + 1), (name, value))
        elif damage == 5:
            cut = chance.randrange(len(text))
            damaged[at] = name, text[:cut] + value + text[cut + chance.choice((0, 1, 5)) :]
        else:
            for _ in range(chance.choice((1, 1, 2, 4))):
                field = chance.choice(kind.__struct_fields__)
                damaged = [pair for pair in damaged if pair[0] != field] + [(field, chance.choice(values))]
        self.read(kind, written(damaged))

    def read(self, kind: type, value: bytes, must: type | None = None) -> Any:
        """The event, or the DecodeError that it is refused with."""
        began_s = time.thread_time()
        read = self._read(kind, value)
        took_s = time.thread_time() - began_s
        self.slowest_s = max(took_s, self.slowest_s)
        assert took_s < SLOW_S, (took_s, value)
        assert must is None or type(read) is must, (read, value)
        return read

    def _read(self, kind: type, value: bytes) -> Any:
        identity = codec.identify_request(value) if kind is RecallRequest else None
        try:
            event = READ[kind](value)
        except DecodeError as error:
            line = str(error)
            assert error.code in ErrorCode, value
            assert len(line.splitlines()) == len((error.field or "-").splitlines()) == 1, (line, value)
            assert len(line) <= 10 * len(value) + 200, (line, value)
            self.outcomes[str(error.code)] += 1
            return error
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} instead of DecodeError: {value!r}") from error
        self.outcomes["read"] += 1
        again = msgspec.json.encode(event)
        assert READ[kind](again) == event, value
        assert msgspec.json.encode(READ[kind](again)) == again, value
        assert len(again) <= 8 * len(value) + 1000, value  # 1e15 is written in 18 characters
        assert kind is CandidateList or sound(event), value
        if kind is CandidateList:
            assert all(type(score) is float for score in event.scores), value
        else:
            assert codec.encode_event(event) == again, value
        if kind is RecallRequest:
            assert identity == (event.request_id, event.user_id), value
        return event


def sound(event: Any) -> bool:
    """Whether it has the bounds of docs/events.md."""
    if isinstance(event, UserActivity):
        ids, frees = [event.event_id, event.user_id, event.action, event.item_id], [event.attributes, event.context]
        fine = event.timestamp_ms <= NOW_MS + 300_000 and (event.value is None or abs(event.value) < 3.41e38)
    elif isinstance(event, ItemUpdate):
        ids, frees = [event.item_id, event.embedding_model], [event.attributes]
        fine = event.op in {"upsert", "delete"} and (event.version is None or 0 <= event.version < 2**63)
    else:
        ids = [event.request_id, event.user_id, event.scene, event.after_event_id]
        ids += [*event.exclude_items, *event.anchor_items, *(clause.field for clause in event.filter)]
        frees = [event.context, *([clause.value] for clause in event.filter)]
        fine = len(event.exclude_items) <= 1000 and len(event.anchor_items) <= 10
        fine = fine and event.k in {None, *range(1, 1001)} and 1 <= event.timeout_ms <= 60_000
        fine = fine and all(clause.op in OPS for clause in event.filter)
    at_ms = event.timestamp_ms or 0
    fine = fine and 0 <= at_ms <= MAX_TIMESTAMP_MS and all(depth(each) <= 9 for each in frees)
    return fine and all(each is None or 1 <= len(each.encode()) <= 256 for each in ids)


def depth(value: Any) -> int:
    """How deep a value of free form is nested; that of an integer of more than 64 bits is beyond every bound."""
    if isinstance(value, dict | list):
        elements = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, elements), default=0)
    return 0 if type(value) is not int or -(2**63) <= value < 2**63 else 1000


def written(pairs: Pairs) -> bytes:
    """The JSON object."""
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), text) for name, text in pairs) + b"}"


def run(seed: int, inputs: int) -> dict[str, object]:
    """So many messages. Raises AssertionError with the example, made as small as it can be."""
    fuzz = Codecs()
    report = examples.run(seed, inputs, made(), fuzz.check)
    return report | {"slowest_ms": round(fuzz.slowest_s * 1000), "outcomes": dict(fuzz.outcomes.most_common())}
