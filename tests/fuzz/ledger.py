"""Of every event what must become of it, by the place where it stands; and everything that is found, held against it.

Users and popularity are those of the chaos model. A place costs 11 bytes, so that a million fit.
"""

import json
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS, Entry
from tests.chaos.model import Expected, ExpectedItem, ExpectedUser, Rules, _count
from tests.chaos.stored import Stored
from tests.fuzz.traffic import Due, Event

Headers = Sequence[tuple[str, bytes]]

COPIED_BYTES = 4096
HEADER_BYTES = 10  # of each, besides its name and value
FLOAT32 = struct.Struct(">f")
NO_LETTER = ""
AGAIN = "winner again"
EPOCHS_KEPT = 2


def fingerprint(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """64 bits of what a dead letter must carry: all of it but headers in the name of dead letters."""
    digest = xxhash.xxh3_64()
    for part in (key, value, *(part for name, text in headers for part in (name.encode(), text))):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.intdigest()


@dataclass
class Book:
    """One partition of a topic, by offset."""

    marks: "array[int]" = field(default_factory=lambda: array("Q"))
    codes: bytearray = field(default_factory=bytearray)
    kinds: bytearray = field(default_factory=bytearray)
    letters: bytearray = field(default_factory=bytearray)
    skipped: set[int] = field(default_factory=set)

    def skip(self, offset: int, kind: int) -> None:
        """What stands before this offset, and was not taken, is of this kind and no dead letter."""
        for missing in range(len(self.marks), offset):
            self.skipped.add(missing)
            for column, value in ((self.marks, 0), (self.codes, 0), (self.kinds, kind), (self.letters, 0)):
                column.append(value)

    def may_be_skipped(self, offset: int, behind: int | None) -> bool:
        """Whether something may stand there that was not taken, behind what it answers; None = it answers nothing."""
        return behind is not None and offset > behind and (offset in self.skipped or offset >= len(self.marks))


@dataclass
class Names:
    """Few texts as small numbers."""

    texts: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Its number, a new one if need be."""
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]


@dataclass(slots=True)
class Asked:
    """A request: what its answer must say, and how many came."""

    due: Due
    headers: Headers
    place: tuple[int, int]
    answers: int = 0


class Ledger:
    """Taught by `take` in log order, asked by `letter`, `answer` and `differences`."""

    def __init__(self, rules: Rules) -> None:
        self.expected = Expected()
        self.asked: dict[str, Asked] = {}
        self.effects: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.found: list[str] = []
        self._rules = rules
        self._refused_at: dict[str, int] = {}  # item -> where its last update was that a lower version refused
        self._books: dict[tuple[str, int], Book] = {}
        self._codes, self._kinds = Names(), Names()
        self._codes.number(NO_LETTER)

    def take(self, event: Event, partition: int, offset: int, taken_ms: int) -> None:
        """An event that the broker has acknowledged."""
        entry = Entry(event.topic, partition, offset, taken_ms, event.key, event.value)
        due, code = event.due, event.due.code
        if due.what in ("activity", "forget"):
            self._activity(due, replace(entry, value=None))
        elif due.what in ("item", "delete"):
            code = self._item(due, entry)
            if due.code not in ("", code):
                raise AssertionError(f"{event.kind}: {due.code} was meant, and {code or 'an effect'} is due")
        elif due.what != "letter":
            self.asked[due.subject] = Asked(due, event.headers, (partition, offset))
        book = self._books.setdefault((event.topic, partition), Book())
        if event.topic == ITEMS:  # the items worker writes to its topic too: winners again, whose bytes are known
            book.skip(offset, self._kinds.number(AGAIN))
        if offset != len(book.marks):
            raise AssertionError(f"{event.topic}/{partition}: offset {offset} behind {len(book.marks)} events")
        kept = [pair for pair in event.headers if not pair[0].startswith("dlq.")]
        book.marks.append(fingerprint(event.key, event.value, kept) if code else 0)
        book.codes.append(self._codes.number(code))
        book.kinds.append(self._kinds.number(event.kind))
        book.letters.append(0)

    def _activity(self, due: Due, entry: Entry) -> None:
        users = self.expected.users
        if due.event is None:
            users.setdefault(due.subject, ExpectedUser()).forget(entry.taken_ms)
            self.effects["tombstones of users"] += 1
            return
        event = dict(due.event)
        if event.get("value") is not None:
            event["value"] = FLOAT32.unpack(FLOAT32.pack(event["value"]))[0]
        user = users.setdefault(event["user_id"], ExpectedUser())
        new = user.take(event, entry, self._rules.seen_actions)
        if new:
            _count(self.expected, user, event, entry, self._rules)
        self.effects["activities" if new else "activities known, too late or forgotten"] += 1

    def _item(self, due: Due, entry: Entry) -> str:
        """The later offset wins; the code of the dead letter, or '' for one that stands now."""
        event = due.event or {}
        item_id, version = event.get("item_id", due.subject), event.get("version")
        stands = self.expected.items.get(item_id)
        if stands is not None and stands.entry.partition != entry.partition:
            return "wrong_partition"
        if stands is not None and version is not None and stands.version is not None and version < stands.version:
            self._refused_at[item_id] = entry.offset
            return "stale_version"
        deleted = event.get("op", "delete") == "delete"
        self.effects["items superseded"] += stands is not None
        self.effects["items standing"] += stands is None
        self.expected.items[item_id] = ExpectedItem(entry, deleted, version, {})
        return ""

    def letter(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """A record of the dead-letter topic."""
        own = {name: text.decode() for name, text in headers if name.startswith("dlq.")}
        kept = [pair for pair in headers if not pair[0].startswith("dlq.")]
        topic, partition, offset = (
            own["dlq.topic"].rpartition(".")[2],
            int(own["dlq.partition"]),
            int(own["dlq.offset"]),
        )
        place, code = f"{topic}/{partition}@{offset}", own["dlq.error.code"]
        book = self._books.get((topic, partition))
        if book is None or not 0 <= offset < len(book.marks):
            self.found.append(f"a dead letter of {place}, where nothing stands")
            return
        must, kind = self._codes.texts[book.codes[offset]], self._kinds.texts[book.kinds[offset]]
        if code != must:
            self.found.append(f"{place} ({kind}): dead letter {code}, must be {must or 'none'}")
        elif "dlq.value_omitted" in own:
            if kind != "too large to carry":
                self.found.append(f"{place} ({kind}): its dead letter has no value")
        elif fingerprint(key, value, kept) != book.marks[offset]:
            self.found.append(f"{place} ({kind}): its dead letter has other bytes")
        (self.copies if book.letters[offset] else self.letters)[code] += 1
        book.letters[offset] = 1

    def answer(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """A record of the answers' topic."""
        answer = json.loads(value)
        asked = self.asked.get(answer["request_id"])
        if asked is None:
            self.found.append(f"an answer to {answer['request_id']!r}, which nobody asked")
            return
        asked.answers += 1
        status = answer["status"]
        if asked.answers > 1:
            self.copies["answers"] += 1
        else:
            self.answers[" ".join([status, *answer["reasons"]])] += 1
        wrong = self._wrong(asked, answer)
        if not wrong and (key != asked.due.user_id.encode() or list(headers) != copied(asked)):
            wrong = f"has key {key!r} and headers {headers!r}"[:500]
        if wrong:
            self.found.append(f"the answer to {asked.due.subject!r} at {asked.place} {wrong}")

    def _wrong(self, asked: Asked, answer: dict[str, Any]) -> str:
        due, status, reasons = asked.due, answer["status"], answer["reasons"]
        if answer["user_id"] != due.user_id:
            return f"is for {answer['user_id']!r}"
        if due.what == "answer":
            refused = status == "rejected" and reasons != ["overloaded"] and due.reason != "any"
            return f"is rejected: {reasons}, {answer['error_field']}" if refused else ""
        if not due.early and (status == "expired" or reasons == ["overloaded"]):
            return ""
        if (status, reasons, answer["error_field"]) != ("rejected", [due.reason], due.field):
            return f"is {status}, {reasons}, {answer['error_field']}, must be rejected, {due.reason}, {due.field}"
        return ""

    def close(self) -> None:
        """No more events: of popular counts, those of each partition's newest epochs are kept."""
        popular, newest = self.expected.popular, dict[int, int]()
        for partition, epoch, _ in popular:
            newest[partition] = max(epoch, newest.get(partition, 0))
        for partition, epoch, segment in list(popular):
            if epoch <= newest[partition] - EPOCHS_KEPT:
                del popular[partition, epoch, segment]

    def differences(self, stored: Stored) -> Iterator[str]:
        """All that was not as it must be: what `letter` and `answer` found, and what is missing."""
        yield from self.found
        for (topic, partition), book in self._books.items():
            for offset, code in enumerate(book.codes):
                if code and not book.letters[offset]:
                    kind = self._kinds.texts[book.kinds[offset]]
                    yield f"{topic}/{partition}@{offset} ({kind}): no dead letter {self._codes.texts[code]}"
        for asked in self.asked.values():
            if not asked.answers:
                yield f"no answer to {asked.due.subject!r} at {asked.place}"
        yield from self._items(stored)

    def _items(self, stored: Stored) -> Iterator[str]:
        for item_id, item in self.expected.items.items():
            record, entry = stored.items.get(item_id), item.entry
            must = (entry.partition, item.deleted, item.version, entry.value or b"")
            if record is None:
                yield f"item {item_id!r} has no record: {entry}"
            elif (record.partition, record.deleted, record.version, record.update) != must or not (
                record.offset == entry.offset
                or self._books[ITEMS, entry.partition].may_be_skipped(record.offset, self._refused_at.get(item_id))
            ):
                yield f"item {item_id!r} is {record}, must be {entry}"[:2000]
            if len(stored.rows.get(item_id, ())) != (not item.deleted):
                yield f"item {item_id!r} stands {len(stored.rows.get(item_id, ()))} times in the collection: {entry}"
        for item_id in (stored.items.keys() | stored.rows.keys()) - self.expected.items.keys():
            yield f"item {item_id!r} is stored, and no event made it"

    def ends(self, topic: str) -> dict[int, int]:
        """Partition -> where it ends, as far as it was taken."""
        return {partition: len(book.marks) for (name, partition), book in self._books.items() if name == topic}

    @property
    def events(self) -> dict[str, dict[str, int]]:
        """Topic -> kind -> how many."""
        counts: dict[str, Counter[str]] = {topic: Counter() for topic in (ACTIVITY, ITEMS, REQUESTS)}
        for (topic, _), book in self._books.items():
            counts[topic].update(self._kinds.texts[kind] for kind in book.kinds)
            counts[topic].pop(AGAIN, None)
        return {topic: dict(sorted(found.items())) for topic, found in counts.items()}


def copied(asked: Asked) -> list[tuple[str, bytes]]:
    """The headers of an answer: the request's that fit into 4 KiB together, and its id."""
    kept, left = [], COPIED_BYTES
    for name, value in asked.headers:
        size = len(name.encode()) + len(value) + HEADER_BYTES
        if size <= left and name != "request_id":
            kept.append((name, value))
            left -= size
    return [*kept, ("request_id", asked.due.subject.encode())]
