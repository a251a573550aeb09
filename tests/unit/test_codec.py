"""Events to and from bytes: what is accepted, what is refused. Nothing else is raised: tests/fuzz/test_codecs.py."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.activity import UserActivity
from schemas.codec import DecodeError
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, RecallRequest, Removed, Status, Timings

ACTIVITY = {"event_id": "e", "user_id": "u", "action": "view", "timestamp_ms": 1000}
ITEM = {"item_id": "i", "op": "upsert", "timestamp_ms": 1}
REQUEST = {"request_id": "r", "user_id": "u"}
NOW_MS = 10_000

names = st.sampled_from(
    [*UserActivity.__struct_fields__, *ItemUpdate.__struct_fields__, *RecallRequest.__struct_fields__]
)


def decode_all(value: bytes | None) -> None:
    """Every decoder either gives an event that can be written again, or raises DecodeError."""
    for decode in (
        lambda: codec.decode_activity(value, record_timestamp_ms=NOW_MS),
        lambda: codec.decode_item(value, b"i"),
        lambda: codec.decode_request(value),
    ):
        try:
            event = decode()
        except DecodeError as error:
            assert error.code
            assert "\n" not in str(error)
        else:
            codec.encode_event(event)
    codec.identify_request(value)


@given(st.binary(max_size=300))
def test_arbitrary_bytes(value: bytes) -> None:
    decode_all(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'"\xed\xa0\x80"',
        b'{"request_id":"\\ud800","user_id":"u"}',
    ],
)
def test_nasty_bytes(value: bytes | None) -> None:
    decode_all(value)


def test_null_equals_absent_and_unknown_fields_are_ignored() -> None:
    fields = dict.fromkeys(["k", "timeout_ms", "scene", "filter", "exclude_items", "exclude_seen", "context"])
    value = json.dumps(REQUEST | fields | {"colour": "red"}).encode()
    assert codec.decode_request(value) == RecallRequest(request_id="r", user_id="u")


def read_or_none(fields: dict) -> RecallRequest | None:
    try:
        return codec.decode_request(json.dumps(fields).encode())
    except DecodeError:
        return None


@given(st.dictionaries(names, st.none() | st.sampled_from([1, 0, "x", "", [], ["a"], {}, {"a": None}, True, [None]])))
def test_null_equals_absent_in_any_request(fields: dict) -> None:
    fields = {name: field for name, field in fields.items() if name not in REQUEST} | REQUEST
    present = {name: field for name, field in fields.items() if field is not None}
    assert read_or_none(fields) == read_or_none(present)


@pytest.mark.parametrize("unknown", [b'"\xff"', b"1" * 5000, b"null", b'{"k": 3}'])
def test_nulls_change_nothing_about_unknown_fields(unknown: bytes) -> None:
    for extra in (b"", b', "k" : null , "scene":null'):
        value = b'{"request_id":"r","user_id":"u","colour":' + unknown + extra + b"}"
        assert codec.decode_request(value) == RecallRequest(request_id="r", user_id="u")


@pytest.mark.parametrize("extra", [b"", b',"k":null'])
def test_what_is_wrong_inside_a_free_object_names_the_object(extra: bytes) -> None:
    value = b'{"request_id":"r","user_id":"u","context":{"a":[' + b"1" * 5000 + b"]}" + extra + b"}"
    with pytest.raises(DecodeError) as raised:
        codec.decode_request(value)
    assert (raised.value.code, raised.value.field) == ("out_of_range", "context")


def test_free_values_are_nested_eight_deep_at_most_wherever_they_stand() -> None:
    def value(field: str, depth: int) -> bytes:
        nested = b"[" * depth + b"1" + b"]" * depth
        free = {"context": b'{"a":%b}', "filter": b'[{"field":"f","op":"eq","value":%b}]'}[field] % nested
        return b'{"request_id":"r","user_id":"u","%b":%b}' % (field.encode(), free)

    for field, fits in (("context", 7), ("filter", 8)):  # the context is itself one level
        codec.decode_request(value(field, fits))
        with pytest.raises(DecodeError) as raised:
            codec.decode_request(value(field, fits + 1))
        assert raised.value.code == "too_deep"


@pytest.mark.parametrize(
    ("number", "fits"), [(2**63 - 1, True), (-(2**63), True), (2**63, False), (-(2**63) - 1, False)]
)
def test_integers_in_free_objects_have_64_bits(number: int, fits: bool) -> None:
    value = json.dumps(ITEM | {"attributes": {"a": {"b": [number]}}}).encode()
    if fits:
        assert codec.decode_item(value).attributes == {"a": {"b": [number]}}
        return
    with pytest.raises(DecodeError) as raised:
        codec.decode_item(value)
    assert (raised.value.code, raised.value.field) == ("out_of_range", "attributes")


def test_ids_are_measured_in_bytes() -> None:
    fits, too_long = "é" * 128, "é" * 129
    codec.decode_request(json.dumps(REQUEST | {"scene": fits}).encode())
    with pytest.raises(DecodeError) as raised:
        codec.decode_request(json.dumps(REQUEST | {"scene": too_long}).encode())
    assert (raised.value.code, raised.value.field) == ("invalid_id", "scene")
    clause = {"field": fits, "op": "eq", "value": 1}
    codec.decode_request(json.dumps(REQUEST | {"filter": [clause]}).encode())
    with pytest.raises(DecodeError) as raised:
        codec.decode_request(json.dumps(REQUEST | {"filter": [clause, clause | {"field": too_long}]}).encode())
    assert (raised.value.code, raised.value.field) == ("invalid_id", "filter[1].field")


def test_an_activity_may_be_a_little_ahead_of_the_broker() -> None:
    limit_ms = NOW_MS + codec.MAX_FUTURE_MS
    value = json.dumps(ACTIVITY | {"timestamp_ms": limit_ms}).encode()
    assert codec.decode_activity(value, record_timestamp_ms=NOW_MS).timestamp_ms == limit_ms
    with pytest.raises(DecodeError) as raised:
        codec.decode_activity(value, record_timestamp_ms=NOW_MS - 1)
    assert raised.value.code == "future_timestamp"


def test_an_item_must_stand_under_its_own_key() -> None:
    value = json.dumps(ITEM).encode()
    assert codec.decode_item(value, b"i").item_id == "i"
    with pytest.raises(DecodeError) as raised:
        codec.decode_item(value, b"j")
    assert raised.value.code == "key_mismatch"


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"x" * 257])
def test_a_key_that_is_no_id(key: bytes | None) -> None:
    with pytest.raises(DecodeError) as raised:
        codec.decode_key(key)
    assert raised.value.code == "invalid_key"


def answer(scores: list[float]) -> CandidateList:
    return CandidateList(
        request_id="r",
        user_id="ü",
        scene="default",
        status=Status.OK,
        timestamp_ms=5,
        item_ids=[f"i{n}" for n in range(len(scores))],
        scores=np.array(scores, dtype=np.float32),
        sources=["tower"] * len(scores),
        removed=Removed(seen=3),
        timings_ms=Timings(queue=1.5),
    )


def test_an_answer_survives_the_way_there_and_back() -> None:
    written = codec.encode_candidates(answer([2.5, 1.25]))
    read = codec.decode_candidates(written)
    assert read.scores == [2.5, 1.25]
    assert (read.user_id, read.status, read.removed.seen, read.timings_ms.queue) == ("ü", Status.OK, 3, 1.5)
    assert set(json.loads(written)) == set(CandidateList.__struct_fields__)


@pytest.mark.parametrize("scores", [b"null", b'"x"', b"{}", b'["x"]', b"[null]", b"[true]", b"[[1.5]]"])
def test_scores_that_are_no_list_of_numbers(scores: bytes) -> None:
    with pytest.raises(DecodeError, match="not a candidate list"):
        codec.decode_candidates(codec.encode_candidates(answer([])).replace(b'"scores":[]', b'"scores":' + scores))


def test_scores_come_as_floats() -> None:
    value = codec.encode_candidates(answer([])).replace(b'"scores":[]', b'"scores":[2,1.5,-0,36893488147419103232]')
    read = codec.decode_candidates(value).scores
    assert [repr(score) for score in read] == ["2.0", "1.5", "0.0", "3.6893488147419103e+19"]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_never_written_as_null(score: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        codec.encode_candidates(answer([1.0, score]))
