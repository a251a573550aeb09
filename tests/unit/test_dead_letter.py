"""Dead letters as headers and back, whatever the headers of the original or of a stranger."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import MAX_MESSAGE_BYTES, DeadLetter, from_message, to_headers

OURS = st.sampled_from(["dlq.topic", "dlq.partition", "dlq.offset", "dlq.error.code", "dlq.timestamp_ms"])
header_values = st.none() | st.binary(max_size=20)
messages = st.text(max_size=2000)


@given(
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=20),
    st.lists(st.tuples(st.text(max_size=10).filter(lambda name: not name.startswith("dlq.")), header_values)),
    messages,
    st.booleans(),
    st.sampled_from([0, 2**41]),
)
def test_a_dead_letter_survives_the_way_there_and_back(
    key: bytes | None, value: bytes | None, headers: list[Any], message: str, omitted: bool, taken_ms: int
) -> None:
    letter = DeadLetter(
        topic="ns.user-activity",
        partition=3,
        offset=2**40,
        stage="activity",
        code="not_json",
        message=message,
        timestamp_ms=1,
        key=key,
        value=value,
        headers=tuple(headers),
        value_omitted=omitted,
        record_timestamp_ms=taken_ms,
    )
    read = from_message(key, value, to_headers(letter))
    for name in set(letter.__struct_fields__) - {"message"}:
        assert getattr(read, name) == getattr(letter, name)
    assert len(read.message.encode()) <= MAX_MESSAGE_BYTES
    assert len(read.message.splitlines()) <= 1


@given(st.lists(st.tuples(OURS | st.text(max_size=10), header_values)))
def test_headers_of_a_stranger_are_refused_with_one_error(headers: list[Any]) -> None:
    with pytest.raises(ValueError, match="not a dead letter"):
        from_message(b"k", b"v", headers)


def test_lone_surrogates_in_a_message_are_written_all_the_same() -> None:
    letter = DeadLetter(
        topic="t",
        partition=0,
        offset=0,
        stage="s",
        code="c",
        message="a\ud800b",
        timestamp_ms=0,
        key=None,
        value=None,
    )
    assert from_message(None, None, to_headers(letter)).message == "a?b"
