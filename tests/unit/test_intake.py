"""Whose turn it is, who is shed, and when more is polled: the intake by itself, with a clock of the test's own."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.recall import RecallRequest
from workers.inflight import Batch, BatchPolicy, InFlight
from workers.intake import Entry, Intake, IntakePolicy
from workers.pipelines.recall import Incoming

SMALL = IntakePolicy(max_batch=4, capacity=20, max_overtaken=60, poll=6, poll_every_ms=20, margin_ms=50)


@dataclass
class Clock:
    ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    timestamp: int


@dataclass
class Source:
    """Makes entries; every one has a number of its own, its record's offset."""

    clock: Clock
    made: int = 0
    flight: InFlight = field(default_factory=lambda: InFlight(BatchPolicy()))

    def entries(self, count: int, timeout_ms: int = 2000) -> list[Entry]:
        return [self._entry(timeout_ms) for _ in range(count)]

    def _entry(self, timeout_ms: int) -> Entry:
        record = Record("t", 0, self.made, self.clock.ms)
        self.made += 1
        request = RecallRequest(request_id=f"r{record.offset}", user_id="u", timeout_ms=timeout_ms)
        return Entry(record, Batch(self.flight, [record]), Incoming(request, record.timestamp))


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.record.offset for entry in entries]


def an_intake(policy: IntakePolicy = SMALL, service_ms: float = 0.0) -> tuple[Intake, Source, Clock]:
    clock = Clock()
    intake = Intake(clock, policy)
    intake.service_ms = service_ms
    return intake, Source(clock), clock


def test_a_clock_that_is_set_back_ends_the_overload() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(6))
    clock.ms += 2000
    assert intake.shed()
    assert intake.overloaded
    clock.ms -= 3_600_000
    assert not intake.overloaded


def test_the_oldest_are_taken_first_a_batch_at_a_time() -> None:
    intake, source, _ = an_intake()
    intake.put(source.entries(3))
    intake.put(source.entries(3))
    assert numbers(intake.take()) == [0, 1, 2, 3]
    assert intake.has_slot
    assert numbers(intake.take()) == [4, 5]
    assert not intake.has_slot
    assert (intake.take(), intake.shed(), intake.running) == ([], [], 2)


def test_who_cannot_be_in_time_is_shed_before_the_deadline_and_the_last_batch_is_tried() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(6, timeout_ms=1000))
    intake.put(source.entries(1, timeout_ms=5000))
    clock.ms += 850  # as late as one may begin: 100 ms for the batch, 50 ms of margin
    assert intake.shed() == []
    clock.ms += 1
    shed = intake.shed()
    assert numbers(shed) == [0, 1, 2], "three of seven; four are a batch"
    assert all(clock.ms < entry.incoming.deadline_ms for entry in shed)
    clock.ms += 10_000
    assert intake.shed() == []
    assert sorted(numbers(intake.take())) == [3, 4, 5, 6]


def test_in_overload_the_hopeless_are_not_tried_while_a_batch_is_under_way() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(9, timeout_ms=200))
    clock.ms += 60
    assert numbers(intake.shed()) == [0, 1, 2, 3, 4]
    assert intake.shed() == [], "nothing is under way: these are tried"
    intake.put(source.entries(4, timeout_ms=2000))
    assert numbers(intake.shed()) == [5, 6, 7, 8]
    intake.take()
    intake.put(source.entries(2, timeout_ms=100))
    assert numbers(intake.shed()) == [13, 14]


def test_a_lone_request_with_hardly_any_time_is_tried() -> None:
    intake, source, clock = an_intake(service_ms=300)
    intake.put(source.entries(1, timeout_ms=1))
    clock.ms += 5
    assert intake.shed() == []
    assert numbers(intake.take()) == [0]
    assert not intake.overloaded


def test_deadlines_count_and_not_the_order_of_coming() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(5, timeout_ms=5000))
    intake.put(source.entries(2, timeout_ms=200))
    clock.ms += 60
    assert numbers(intake.shed()) == [5, 6]


def test_the_newest_come_first_for_a_second_after_a_request_was_shed() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(6, timeout_ms=500))
    clock.ms += 400
    assert numbers(intake.shed()) == [0, 1]
    intake.put(source.entries(6, timeout_ms=5000))
    assert intake.overloaded
    assert numbers(intake.take()) == [8, 9, 10, 11], "the newest, in log order"
    clock.ms += 999
    assert numbers(intake.shed()) == [2, 3, 4, 5]
    clock.ms += 1000
    assert not intake.overloaded
    intake.put(source.entries(4, timeout_ms=5000))
    assert numbers(intake.take()) == [6, 7, 12, 13]


def test_no_more_wait_than_there_is_room_for_and_the_oldest_make_it() -> None:
    intake, source, _ = an_intake()
    intake.put(source.entries(23))
    assert len(intake) == 20
    assert numbers(intake.shed()) == [0, 1, 2]
    assert intake.overloaded


def test_nobody_is_overtaken_for_ever() -> None:
    """What waits at the bottom keeps everything behind it from being committed."""
    intake, source, _ = an_intake()
    intake.put(source.entries(21, timeout_ms=60_000))
    assert numbers(intake.shed()) == [0], "overloaded: the newest come first from now on"
    shed: list[int] = []
    while source.made < 62:
        if intake.take():
            intake.finished(1.0)
        intake.put(source.entries(4, timeout_ms=60_000))
        intake._shed_ms = source.clock.ms  # an overload that goes on
        shed += numbers(intake.shed())
    assert shed == [1, 2, 3, 4], "those that 60 others have overtaken"


def test_the_mean_service_time_follows_recent_batches_and_forgets() -> None:
    intake, source, _ = an_intake()
    intake.put(source.entries(2))
    intake.take()
    intake.finished(1500.0)
    assert intake.service_ms == 1500.0
    for _ in range(50):
        intake.put(source.entries(1))
        intake.take()
        intake.finished(20.0)
    assert 20 < intake.service_ms < 25
    intake.put(source.entries(1))
    intake.take()
    intake.finished(None)
    assert 20 < intake.service_ms < 25, "nothing was worked on: nothing is known of it"


def test_more_is_polled_when_a_slot_is_free_and_nobody_waits_for_it() -> None:
    intake, source, _ = an_intake()
    assert intake.wants_poll()
    intake.put(source.entries(9))
    assert not intake.wants_poll()
    intake.take()
    assert not intake.wants_poll()
    intake.take()
    intake.finished(10.0)
    assert not intake.wants_poll(), "one still waits"
    intake.take()
    assert not intake.wants_poll(), "nobody waits, but all slots are taken"
    intake.finished(10.0)
    assert intake.wants_poll()


def test_in_overload_polls_go_on_while_there_is_room() -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(6, timeout_ms=100))
    assert len(intake.shed()) == 2
    assert intake.wants_poll(), "it brought more than a batch: there may be more"
    intake.put(source.entries(3, timeout_ms=5000))
    assert not intake.wants_poll(), "a small poll has just been"
    clock.ms += 20
    assert intake.wants_poll()
    intake.put(source.entries(6, timeout_ms=5000))
    assert not intake.wants_poll(), "13 wait and 2 are being refused: a poll of 6 has no room"
    intake.refused(2)
    intake.take()
    assert intake.wants_poll()
    clock.ms += 1000
    assert not intake.wants_poll(), "the overload is over and requests wait"


def test_while_no_batch_ends_who_is_about_to_be_late_is_shed_and_polls_go_on() -> None:
    """As when a backend hangs: patient requests hold the slots, and others with little time come."""
    intake, source, clock = an_intake(service_ms=10)
    intake.put(source.entries(8))
    assert (len(intake.take()), len(intake.take()), intake.has_slot) == (4, 4, False)
    assert not intake.wants_poll()
    clock.ms += 101
    assert intake.stalled
    assert intake.wants_poll()
    intake.put(source.entries(2, timeout_ms=500))
    assert (intake.shed(), intake.wants_poll()) == ([], False)
    clock.ms += 20
    assert intake.wants_poll()
    clock.ms += 450 - 20
    assert intake.shed() == []
    clock.ms += 1
    assert numbers(intake.shed()) == [8, 9]
    assert not intake.overloaded, "the others are not too many"
    intake.finished(600.0)
    assert not intake.stalled


@pytest.mark.parametrize(("batch_ms", "refuses"), [(1000, True), (510, True), (150, False)])
def test_batch_after_slow_batch_the_hurried_hear_in_time_and_nobody_is_refused_who_could_be_answered(
    batch_ms: int, refuses: bool
) -> None:
    """A backend that hangs for several timeouts, or that has become slow for good."""
    intake, source, clock = an_intake(IntakePolicy(), service_ms=10)
    unread: list[Entry] = []
    begun_ms: list[int] = []
    timeouts = Counter[tuple[str, int]]()
    for tick in range(1000):
        clock.ms += 10
        if tick % 20 == 0:
            unread += source.entries(1, timeout_ms=300) + source.entries(1, timeout_ms=2000)
        while begun_ms and clock.ms - begun_ms[0] >= batch_ms:
            begun_ms.pop(0)
            intake.finished(float(batch_ms))
        if unread and intake.wants_poll():
            intake.put(unread)
            unread.clear()
        shed, taken = intake.shed(), intake.take() if intake.has_slot else []
        begun_ms += [clock.ms] if taken else []
        assert all(clock.ms < entry.incoming.deadline_ms for entry in shed + taken)
        assert all(entry.incoming.deadline_ms - clock.ms <= intake.policy.margin_ms for entry in shed)
        timeouts.update(("shed", entry.incoming.request.timeout_ms) for entry in shed)
        timeouts.update(("taken", entry.incoming.request.timeout_ms) for entry in taken)
    assert timeouts["shed", 2000] == 0
    assert bool(timeouts["shed", 300]) is refuses
    assert timeouts["taken", 2000] > 40
    assert timeouts["taken", 300]


@pytest.mark.parametrize("size_bytes", [0, SMALL.capacity_bytes // 3])
def test_in_overload_no_more_is_polled_than_there_is_memory_for(size_bytes: int) -> None:
    intake, source, clock = an_intake(service_ms=100)
    intake.put(source.entries(6, timeout_ms=100))
    intake.refused(len(intake.shed()))
    clock.ms += 20
    assert intake.wants_poll()
    intake.put([entry._replace(size_bytes=size_bytes) for entry in source.entries(6, timeout_ms=5000)])
    assert intake.wants_poll() == (not size_bytes)
    intake.take()
    assert intake.wants_poll()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 12), st.integers(1, 3000)),
            st.tuples(st.just("take"), st.just(0), st.just(0)),
            st.tuples(st.just("finish"), st.integers(0, 400), st.just(0)),
            st.tuples(st.just("pass"), st.integers(1, 900), st.just(0)),
        ),
        max_size=60,
    )
)
def test_every_request_is_given_out_once_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    intake, source, clock = an_intake()
    given: list[int] = []
    for step, number, timeout_ms in steps:
        if step == "put":
            intake.put(source.entries(number, timeout_ms))
        elif step == "take" and intake.has_slot:
            waiting, overloaded = sorted(numbers(list(intake._waiting.values()))), intake.overloaded
            taken = numbers(intake.take())
            assert taken == (waiting[-4:] if overloaded else waiting[:4])
            given += taken
        elif step == "finish" and intake.running:
            intake.finished(float(number))
        elif step == "pass":
            clock.ms += number
        before = len(intake)
        shed = intake.shed()
        displaced = len(shed) - (before - len(intake))
        assert len(intake) <= SMALL.capacity
        if len(shed) > displaced and not intake.running:
            assert len(intake) >= SMALL.max_batch, "a batch is tried"
        if len(intake) > SMALL.max_batch:
            waiting_deadlines = [entry.incoming.deadline_ms for entry in intake._waiting.values()]
            assert intake.latest_start_ms(min(waiting_deadlines)) >= clock.ms, "nobody hopeless keeps waiting"
        assert len(intake._deadlines) <= 2 * len(intake) + SMALL.poll, "nothing is kept of those that are gone"
        given += numbers(shed)
    while taken := numbers(intake.take()):
        given += taken
    assert Counter(given) == Counter(range(source.made)), "nothing is lost, nothing comes twice"
