"""The stored bytes of users and items: their layout is a promise, other bytes are refused, never worse."""

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import (
    HISTORY_ROW,
    MAX_HISTORY_ROWS,
    MAX_SEEN_ITEMS,
    SEEN_ENTRY,
    TOKEN_SLICE,
    ItemRecord,
    RecordFormatError,
    UserRecord,
    among,
    compact_seen,
    hash64,
    hash64_each,
    item_fence,
    item_vectors,
    seen_items,
)

ROW = np.array([(1_700_000_000_000, 11, 22, 33, 4.5)], dtype=HISTORY_ROW).tobytes()
USER = UserRecord(
    token=b"12345678",
    count=3,
    forgotten_ms=5,
    forget_taken_ms=4,
    floor=bytes(range(16)),
    history=ROW,
    profile=(("age", 35, 7), ("tags", ["a", None], 8)),
)
ITEM = ItemRecord("film é", 3, 2**40, version=7, history_vector=np.ones(4, "<f4").tobytes(), update=b'{"op":"upsert"}')


def entries(*pairs: tuple[int, int]) -> bytes:
    return np.array(list(pairs), dtype=SEEN_ENTRY).tobytes()


def test_hashes_never_change() -> None:
    assert hash64("item 1") == 0x9A7977C5C4A0AC99
    assert hash64("é🎬") == 0xA12AE47711DBF99A
    assert hash64("") == 0x2D06800538D394C2


def test_the_layout_of_a_user_record() -> None:
    head = struct.pack(">B8sQQQ", 1, b"12345678", 3, 5, 4) + bytes(range(16)) + b"\0\1"
    row = struct.pack(">QQQQf", 1_700_000_000_000, 11, 22, 33, 4.5)
    profile = b"\x92" + b"\x93\xa3age\x23\x07" + b"\x93\xa4tags\x92\xa1a\xc0\x08"
    assert USER.encode() == head + row + profile
    assert USER.encode()[TOKEN_SLICE] == USER.token
    assert len(UserRecord(history=ROW * MAX_HISTORY_ROWS).encode()) == 51 + 36 * 64 + 1


def test_the_layout_of_an_item_record() -> None:
    head = struct.pack(">BBIQqHHB", 1, 0, 3, 2**40, 7, 7, 4, 0)
    assert ITEM.encode() == head + "film é".encode() + struct.pack("<4f", 1, 1, 1, 1) + b'{"op":"upsert"}'
    assert ITEM.encode()[2:14] == item_fence(3, 2**40)


def test_records_read_back() -> None:
    for user in (USER, UserRecord(), USER.with_token(b"\xff" * 8)):
        assert UserRecord.decode(user.encode()) == user
    for item in (ITEM, ItemRecord("x", 0, 0, deleted=True)):
        assert ItemRecord.decode(item.encode()) == item
    assert USER.rows()[0].tolist() == (1_700_000_000_000, 11, 22, 33, 4.5)
    assert len(UserRecord().rows()) == 0


def test_the_order_of_keys_in_a_profile_value_tells_nothing() -> None:
    one, other = ({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 2, "c": 1}, "a": 1})
    assert UserRecord(profile=(("x", one, 1),)).encode() == UserRecord(profile=(("x", other, 1),)).encode()


@given(st.lists(st.tuples(st.integers(0, 2**48), st.integers(0, 2**64 - 1)), max_size=20))
def test_history_rows_sort_by_their_bytes(pairs: list[tuple[int, int]]) -> None:
    rows = [np.array([(time, event, 1, 2, 3.0)], dtype=HISTORY_ROW).tobytes() for time, event in pairs]
    in_order = np.frombuffer(b"".join(sorted(rows)), dtype=HISTORY_ROW)
    assert [(int(row["timestamp_ms"]), int(row["event"])) for row in in_order] == sorted(pairs)


def test_a_truncated_user_record_is_refused() -> None:
    data = USER.encode()
    for length in range(len(data)):
        with pytest.raises(RecordFormatError):
            UserRecord.decode(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"\2" + USER.encode()[1:],
        USER.encode() + b"\0",
        UserRecord().encode()[:-1] + b"\x91" * 5000,  # deeper than Python goes
        UserRecord().encode()[:-1] + b"\x91\x93\xa1a" + b"\x91" * 5000 + b"\1\1",
        UserRecord().encode()[:-1] + b"\x91\x93\xa1\xff\1\1",  # a field name that is not UTF-8
        UserRecord().encode()[:-1] + msgspec.msgpack.encode([["age", 1]]),
        UserRecord().encode()[:-1] + msgspec.msgpack.encode([["age", 1, "now"]]),
    ],
)
def test_other_bytes_are_refused_as_a_user_record(data: bytes) -> None:
    with pytest.raises(RecordFormatError):
        UserRecord.decode(data)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_no_bytes_raise_anything_else(head: bytes, tail: bytes) -> None:
    for data in (head, b"\1" + head, UserRecord().encode()[:-1] + head, ITEM.encode()[:30] + tail):
        for decode in (UserRecord.decode, ItemRecord.decode):
            try:
                decode(data)
            except RecordFormatError as error:
                assert "cannot be read" in str(error)


def test_other_bytes_are_refused_as_an_item_record() -> None:
    data = ITEM.encode()
    for wrong in (b"", data[:26], data[:35], b"\2" + data[1:], data.replace("é".encode(), b"\xff\xff")):
        with pytest.raises(RecordFormatError):
            ItemRecord.decode(wrong)


def test_vectors_of_records_are_zeros_where_there_is_none() -> None:
    data = ITEM.encode()
    gone = ItemRecord("b", 0, 1, deleted=True).encode()
    shorter = ItemRecord("c", 0, 1, history_vector=bytes(8)).encode()
    vectors, known = item_vectors([None, data, gone, shorter, b"\2" + data[1:], data[:40], b"", data], 4)
    assert known.tolist() == [False, True, False, False, False, False, False, True]
    assert vectors.dtype == np.float32
    assert vectors.shape == (8, 4)
    assert vectors.sum(axis=1).tolist() == [0, 4, 0, 0, 0, 0, 0, 4]


def test_seen_items_stand_once_and_as_of_a_time() -> None:
    raw = entries((9, 50), (3, 10), (9, 20), (2**64 - 1, 30))
    assert seen_items(raw).tolist() == [3, 9, 2**64 - 1]
    assert seen_items(raw, before_ms=30).tolist() == [3, 9]
    assert seen_items(compact_seen(raw), before_ms=30).tolist() == [3]  # only the newest time is kept for good
    assert seen_items(raw, before_ms=0).tolist() == []
    assert seen_items(b"").dtype == np.uint64
    assert seen_items(raw + b"stray").tolist() == [3, 9, 2**64 - 1]
    assert compact_seen(b"") == b""


ENTRIES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), max_size=60)


@given(ENTRIES, st.none() | st.integers(0, 51), st.none() | st.integers(-5, 51), st.integers(1, 31))
def test_seen_items_of_a_window_and_the_newest_of_them(
    pairs: list[tuple[int, int]], before_ms: int | None, since_ms: int | None, cap: int
) -> None:
    newest: dict[int, int] = {}
    for item, at_ms in pairs:
        if (before_ms is None or at_ms < before_ms) and (since_ms is None or at_ms >= since_ms):
            newest[item] = max(at_ms, newest.get(item, 0))
    expected = sorted(sorted(newest, key=lambda item: (newest[item], item))[-cap:])
    assert seen_items(entries(*pairs), before_ms, since_ms, cap).tolist() == expected


def test_a_window_of_an_item_that_was_seen_again_begins_with_its_newest_time() -> None:
    raw = entries((9, 50), (3, 10), (9, 20))
    assert seen_items(raw, since_ms=30).tolist() == seen_items(compact_seen(raw), since_ms=30).tolist() == [9]
    assert seen_items(raw, since_ms=50).tolist() == [9], "at that time still counts"
    assert seen_items(raw, since_ms=51).tolist() == []


def test_compaction_keeps_the_newest_time_and_the_newest_items() -> None:
    assert compact_seen(entries((9, 50), (3, 10), (9, 20), (4, 50))) == entries((3, 10), (4, 50), (9, 50))
    many = entries(*((n, n // 3) for n in range(MAX_SEEN_ITEMS + 10)))
    assert compact_seen(many) == entries(*((n, n // 3) for n in range(10, MAX_SEEN_ITEMS + 10)))
    assert seen_items(many).tolist() == list(range(10, MAX_SEEN_ITEMS + 10))


@pytest.mark.parametrize("seed", range(5))
def test_compaction_in_between_and_order_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    everything = np.zeros(3 * MAX_SEEN_ITEMS, dtype=SEEN_ENTRY)
    everything["item"] = rng.integers(1, 2 * MAX_SEEN_ITEMS, len(everything))
    everything["timestamp_ms"] = rng.integers(0, 1000, len(everything))
    expected = compact_seen(everything.tobytes())
    assert len(expected) == MAX_SEEN_ITEMS * SEEN_ENTRY.itemsize
    stored = b""
    for part in np.array_split(rng.permutation(everything), 7):
        stored += part.tobytes()
        if rng.random() < 0.6:
            stored = compact_seen(stored)
    assert compact_seen(stored) == expected
    assert np.array_equal(seen_items(stored), seen_items(expected))


@given(st.lists(st.text(max_size=20)))
def test_hashes_of_many_are_those_of_each(texts: list[str]) -> None:
    assert hash64_each(texts).tolist() == [hash64(text) for text in texts]


@given(st.lists(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_which_hashes_are_among_the_known(hashes: list[int], known: set[int]) -> None:
    found = among(np.array(hashes, dtype=np.uint64), np.array(sorted(known), dtype=np.uint64))
    assert found.tolist() == [value in known for value in hashes]
