"""Cutting polls into batches, and what may be committed."""

import weakref
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.app import POLICIES
from workers.inflight import Batch, BatchPolicy, InFlight
from workers.refill import ONE_BATCH


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    timestamp: int


def poll(*sizes: int, start: int = 0, gap: int = 1) -> dict[tuple[str, int], list[Record]]:
    return {
        ("t", p): [Record("t", p, start + n * gap, 1000 + n * 10 + p) for n in range(size)]
        for p, size in enumerate(sizes)
    }


def take_all(flight: InFlight) -> list[Batch]:
    batches = []
    while (batch := flight.take()) is not None:
        batch.started = True
        batches.append(batch)
    return batches


def test_a_poll_is_merged_in_log_order_and_cut() -> None:
    flight = InFlight(BatchPolicy(max_batch=3, in_flight=9))
    flight.add(poll(3, 2))
    first, second = take_all(flight)
    assert [(r.partition, r.offset) for r in first.records] == [(0, 0), (1, 0), (0, 1)]
    assert [(r.partition, r.offset) for r in second.records] == [(1, 1), (0, 2)]


def test_a_batch_covers_no_more_offsets_than_are_read_again() -> None:
    """Else what a producer's transaction aborted would stand between a batch's first record and its last."""
    assert POLICIES["activity"].max_span == ONE_BATCH
    flight = InFlight(BatchPolicy(max_batch=4, max_span=100, in_flight=9))
    polled = poll(3, 5, gap=50)
    flight.add(polled, {("t", 0): 0, ("t", 1): 0})
    batches = take_all(flight)
    assert [record for batch in batches for record in batch.records] == sorted(
        (record for records in polled.values() for record in records), key=lambda record: record.timestamp
    )
    for batch in batches:
        for partition in (0, 1):
            offsets = [record.offset for record in batch.records if record.partition == partition]
            assert not offsets or offsets[-1] - offsets[0] < 100
    assert [batch.spans.get(("t", 1)) for batch in batches] == [(0, 51), (51, 151), (151, 201)]


def test_the_next_poll_waits_for_a_slot_and_for_the_cut_batches() -> None:
    flight = InFlight(BatchPolicy(max_batch=2, in_flight=2))
    assert flight.wants_poll()
    flight.add(poll(6))
    first, second = take_all(flight)
    assert not flight.wants_poll()
    second.done()
    (third,) = take_all(flight)
    assert not flight.wants_poll()
    first.done()
    assert flight.wants_poll()
    third.done()
    assert not flight.unfinished()


def test_only_a_finished_prefix_is_committed_and_only_once() -> None:
    flight = InFlight(BatchPolicy(max_batch=2, in_flight=3))
    flight.add(poll(6, gap=5))  # compaction leaves gaps between offsets
    first, second, third = take_all(flight)
    second.done()
    assert flight.committable() == {}
    first.done()
    assert flight.committable() == {("t", 0): 16}
    assert flight.committable() == {("t", 0): 16}, "not confirmed: it is committed again"
    flight.confirm({("t", 0): 16})
    assert flight.committable() == {}
    third.done()
    assert flight.committable() == {("t", 0): 26}


def test_a_held_record_holds_back_its_partition_alone_and_no_slot() -> None:
    flight = InFlight(BatchPolicy(max_batch=4, in_flight=1))
    flight.add(poll(2, 2))
    (batch,) = take_all(flight)
    held = batch.records[0]
    batch.hold(held)
    assert flight.unfinished()
    batch.done()
    assert flight.wants_poll()
    assert flight.committable() == {("t", 1): 2}
    batch.done(held)
    assert flight.committable() == {("t", 0): 2, ("t", 1): 2}


def test_what_a_late_partition_is_owed_is_unfinished_and_need_not_be_waited_for() -> None:
    flight = InFlight(BatchPolicy(max_batch=4, in_flight=1))
    flight.add(poll(2))
    (batch,) = take_all(flight)
    for record in batch.records:
        batch.hold(record)
    batch.done()
    first, second = batch.records
    assert batch.start(first)
    batch.owe(first)
    batch.owe(second)  # nobody works on it
    assert (flight.unfinished(), flight.unfinished(owed=False)) == (True, False)
    flight.drop_waiting()
    assert (batch.start(first), batch.start(second)) == (True, False)
    batch.done(first)
    assert flight.committable() == {("t", 0): 1}


class Time:
    """Milliseconds that a test moves on."""

    def __init__(self) -> None:
        self.now_ms = 1000

    def __call__(self) -> int:
        return self.now_ms


def test_a_record_is_not_committed_before_it_has_settled() -> None:
    time = Time()
    flight = InFlight(BatchPolicy(), now_ms=time)
    flight.add(poll(3))
    (batch,) = take_all(flight)
    batch.done(batch.records[1], settles_in_ms=500)
    batch.done()
    time.now_ms += 499
    assert flight.committable() == {("t", 0): 1}
    time.now_ms += 1
    assert flight.committable() == {("t", 0): 3}


def test_a_drain_is_told_how_long_to_wait_until_all_that_is_finished_has_settled() -> None:
    time = Time()
    flight = InFlight(BatchPolicy(max_batch=2, in_flight=9), now_ms=time)
    assert flight.unsettled_s() == 0
    flight.add(poll(6))
    first, second, third = take_all(flight)
    first.done(settles_in_ms=2000)
    time.now_ms += 500
    second.done(settles_in_ms=2000)
    third.done()
    assert flight.unsettled_s() == 2.0
    time.now_ms += 1500
    assert (flight.committable(), flight.unsettled_s()) == ({("t", 0): 2}, 0.5)
    time.now_ms += 500
    assert (flight.committable(), flight.unsettled_s()) == ({("t", 0): 6}, 0)


def test_a_held_record_that_needs_not_settle_waits_for_those_before_it() -> None:
    time = Time()
    flight = InFlight(BatchPolicy(), now_ms=time)
    flight.add(poll(3))
    (batch,) = take_all(flight)
    batch.hold(batch.records[1])
    batch.done(settles_in_ms=2000)
    assert batch.start(batch.records[1])
    batch.done(batch.records[1])
    assert flight.committable() == {}
    time.now_ms += 2000
    assert flight.committable() == {("t", 0): 3}


def test_what_nobody_started_is_given_up() -> None:
    flight = InFlight(BatchPolicy(max_batch=1, in_flight=2))
    flight.add(poll(3))
    first, second = flight.take(), flight.take()
    assert first is not None
    assert second is not None
    first.started = True
    flight.drop_waiting()
    assert flight.unfinished()
    assert (first.void, second.void) == (False, True), "an agent that finds it in its queue leaves it alone"
    first.done()
    assert not flight.unfinished()
    assert flight.committable() == {("t", 0): 1}


def test_a_held_record_keeps_no_other_in_memory() -> None:
    flight = InFlight(BatchPolicy(max_batch=100, in_flight=1))
    flight.add(poll(100))
    (batch,) = take_all(flight)
    held = batch.records[70]
    others = [weakref.ref(record) for record in batch.records if record is not held]
    batch.hold(held)
    batch.done()
    batch.keep([held])
    assert [ref for ref in others if ref() is not None] == []
    assert flight.oldest_ms() == held.timestamp
    assert flight.committable() == {("t", 0): 70}
    batch.done(held)
    assert flight.committable() == {("t", 0): 100}


def test_a_drain_waits_for_held_records_that_were_started_and_gives_up_the_others() -> None:
    changes: list[None] = []
    flight = InFlight(BatchPolicy(), lambda: changes.append(None))
    flight.add(poll(3))
    (batch,) = take_all(flight)
    first, second, _ = batch.records
    for record in batch.records:
        batch.hold(record)
    assert not flight.unfinished(), "nobody works on them yet"
    assert batch.start(first)
    flight.drop_waiting()
    assert (batch.start(first), batch.start(second)) == (True, False)
    assert flight.unfinished()
    seen = len(changes)
    batch.done(first)
    assert len(changes) > seen, "who waits for it is told"
    assert not flight.unfinished()
    assert flight.committable() == {("t", 0): 1}


def test_who_works_on_a_batch_can_tell_that_its_assignment_is_over() -> None:
    flight = InFlight(BatchPolicy())
    flight.add(poll(1))
    (batch,) = take_all(flight)
    assert (batch.given_up, batch.over) == (False, False)
    flight.drop_waiting()
    assert (batch.given_up, batch.over) == (True, False), "a drain waits for it"
    flight.end()
    assert (batch.given_up, batch.over) == (True, True)


def test_after_a_drain_nothing_begins() -> None:
    flight = InFlight(BatchPolicy())
    flight.drop_waiting()
    flight.add(poll(3))
    assert flight.take() is None


def test_the_oldest_record_is_that_of_the_oldest_batch_with_anything_unfinished() -> None:
    flight = InFlight(BatchPolicy(max_batch=2, in_flight=9))
    assert flight.oldest_ms() is None
    flight.add(poll(6))
    first, second, third = take_all(flight)
    first.hold(first.records[0])
    first.done()
    second.done()
    assert flight.oldest_ms() == 1000, "it is held"
    first.done(first.records[0])
    assert flight.oldest_ms() == 1040
    for record in third.records:
        third.done(record)
        third.done(record)  # once more changes nothing
    assert flight.oldest_ms() is None


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_committing_never_passes_an_unfinished_record(sizes: list[int], size: int, random) -> None:
    flight = InFlight(BatchPolicy(max_batch=size, in_flight=1000))
    flight.add(poll(*sizes))
    records = [(batch, record) for batch in take_all(flight) for record in batch.records]
    assert len(records) == sum(sizes), "nothing is lost or repeated in cutting"
    random.shuffle(records)
    finished: set[tuple[int, int]] = set()
    for batch, record in records:
        batch.done(record)
        finished.add((record.partition, record.offset))
        for (_, partition), offset in flight.committable().items():
            assert all((partition, n) in finished for n in range(offset))
    assert flight.committable() == {("t", p): n for p, n in enumerate(sizes) if n}
    assert not flight.unfinished()
