"""Marks: which letters were replayed and whereto, as they are written and as they are found again."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas import dead_letter_marks
from schemas.dead_letter import from_message
from schemas.dead_letter_marks import Replayed
from workers.dead_letter_topic import Marks

SPANS = {0: range(100, 200), 1: range(50)}

offsets = st.integers(0, 60)
one = st.builds(
    Replayed, letter=offsets, topic=st.sampled_from(["", "a", "b"]), partition=st.integers(0, 1), offset=offsets
)


def marked(*runs: Replayed, partition: int = 1) -> Marks:
    marks = Marks(SPANS)
    for run in dead_letter_marks.decode(dead_letter_marks.encode(runs)):
        marks.add(partition, run)
    return marks


@given(st.lists(one, max_size=30))
def test_runs_tell_the_same_as_single_letters(letters: list[Replayed]) -> None:
    runs = dead_letter_marks.decode(dead_letter_marks.encode(letters))
    assert [
        msgspec.structs.replace(run, letter=run.letter + n, offset=run.offset + n if run.topic else run.offset, count=1)
        for run in runs
        for n in range(run.count)
    ] == letters


def test_letters_in_a_row_are_one_run() -> None:
    row = [Replayed(7 + n, 1, "t", 2, 40 + n, 1) for n in range(500)]
    copies = [Replayed(507), Replayed(508)]
    assert dead_letter_marks.decode(dead_letter_marks.encode(row + copies)) == [
        Replayed(7, 500, "t", 2, 40, 1),
        Replayed(507, 2),
    ]


def test_what_was_marked_is_known_for_it_and_nothing_else() -> None:
    marks = marked(*(Replayed(n, 1, "t", 3, 1000 + n, 2) for n in (4, 5, 6, 9)), Replayed(20))
    assert [offset for offset in SPANS[1] if marks.replayed(1, offset)] == [4, 5, 6, 9, 20]
    assert not any(marks.replayed(0, offset) for offset in SPANS[0])
    assert not marks.replayed(1, 4000)
    assert marks.source("t", 3, 1005) == ("1:5", 2)
    assert marks.source("t", 3, 1009) == ("1:9", 2)
    assert [marks.source("t", 3, n) for n in (1003, 1007, 1010)] == [None, None, None]
    assert marks.source("t", 2, 1005) is None
    assert marks.source("u", 3, 1005) is None


def test_marks_are_found_in_whatever_order_they_come() -> None:
    runs = [Replayed(n, 1, "t", 0, 100 - 2 * n, n) for n in range(20)]
    marks = marked(*runs)
    assert [marks.source("t", 0, 100 - 2 * n) for n in range(20)] == [(f"1:{n}", n) for n in range(20)]


def test_what_lies_outside_the_topic_takes_no_memory() -> None:
    marks = marked(Replayed(0, 2**62, "t", 0, 0, 1), partition=0)
    assert all(marks.replayed(0, offset) for offset in SPANS[0])
    assert not marks.replayed(0, 99)
    assert not marks.replayed(0, 200)


def test_once_complete_nothing_is_added_twice() -> None:
    marks = marked(Replayed(1, 1, "t", 0, 5, 1))
    marks.complete = True
    marks.add(1, Replayed(2, 1, "t", 0, 6, 1))
    assert marks.count == 1
    assert not marks.replayed(1, 2)


@given(st.binary(max_size=40) | st.sampled_from([b"[[]]", b'[{"letter":-1}]', b'[{"letter":1,"count":0}]', b"null"]))
def test_a_strangers_mark_says_nothing(value: bytes) -> None:
    assert dead_letter_marks.decode(value) == []
    assert dead_letter_marks.decode(None) == []


def test_readers_of_letters_pass_over_marks() -> None:
    headers: Any = dead_letter_marks.headers(dead_letter_marks.REPLAYED, 1)
    assert dead_letter_marks.is_mark(headers, dead_letter_marks.REPLAYED)
    assert not dead_letter_marks.is_mark(headers, dead_letter_marks.RESUME)
    assert not dead_letter_marks.is_mark([("dlq.mark", None)], dead_letter_marks.RESUME)
    try:
        from_message(None, b"[]", headers)
    except ValueError as error:
        assert "not a dead letter" in str(error)
    else:
        raise AssertionError("a mark was read as a letter")
