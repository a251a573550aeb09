"""When a breaker opens, whom it lets through meanwhile, and when it closes: told the time by the test."""

import pytest

from workers.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, SILENT_S, STRIKES, TRY_S, Breaker


class World:
    """A breaker, its time, and what it told."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.told: list[bool] = []
        self.breaker = Breaker(lambda: self.now_s, self.told.append, lambda: 1.0)

    def fail(self, calls: int = 1) -> None:
        """A batch whose calls all fail, a second after it has begun."""
        began_s = self.now_s
        self.now_s += 1.0
        for _ in range(calls):
            self.breaker.failed(began_s)

    def open(self) -> None:
        for _ in range(STRIKES):
            self.fail()
        assert self.breaker.open_since_s == self.now_s


@pytest.fixture
def world() -> World:
    return World()


def test_a_few_failing_batches_in_sequence_open_it_and_it_says_so_once(world: World) -> None:
    for _ in range(STRIKES - 1):
        world.fail()
        assert world.breaker.lets_through()
    world.fail()
    assert not world.breaker.lets_through()
    world.fail()
    assert world.told == [True]


def test_one_stall_is_one_failure_however_many_calls_and_batches_it_fails(world: World) -> None:
    began_s = world.now_s
    world.now_s += 1.0
    for n in range(100):
        world.breaker.failed(began_s + n / 1000)  # all of them begun before the first one failed
    assert world.breaker.lets_through()
    assert world.told == []


def test_a_success_in_between_begins_anew(world: World) -> None:
    for _ in range(10):
        for _ in range(STRIKES - 1):
            world.fail()
        world.breaker.worked()
    assert world.breaker.lets_through()


def test_half_open_is_one_call_at_a_time(world: World) -> None:
    world.open()
    world.now_s += FIRST_PAUSE_S
    assert [world.breaker.lets_through() for _ in range(5)] == [True, False, False, False, False]
    world.breaker.worked()
    assert all(world.breaker.lets_through() for _ in range(5))
    assert world.told == [True, False]


def test_pauses_double_up_to_a_bound_and_begin_anew_when_it_was_closed(world: World) -> None:
    world.open()
    pauses = []
    for _ in range(6):
        failed_s = world.now_s
        while not world.breaker.lets_through():
            world.now_s += FIRST_PAUSE_S / 2
        pauses.append(world.now_s - failed_s)
        world.breaker.failed(world.now_s)
    assert pauses == [0.5, 1.0, 2.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    world.breaker.worked()
    world.open()
    world.now_s += FIRST_PAUSE_S
    assert world.breaker.lets_through()


def test_pauses_differ_from_worker_to_worker() -> None:
    found = set()
    for _ in range(20):
        now_s = [0.0]
        breaker = Breaker(lambda now_s=now_s: now_s[0])
        for n in range(STRIKES):
            now_s[0] = float(n)
            breaker.failed(now_s[0])
        while not breaker.lets_through():
            now_s[0] += 0.001
        found.add(round(now_s[0], 3))
        assert FIRST_PAUSE_S / 2 <= now_s[0] - (STRIKES - 1) <= FIRST_PAUSE_S + 0.002
    assert len(found) > 5


def test_nobody_is_let_through_while_its_probe_gets_no_answer(world: World) -> None:
    world.open()
    for _ in range(10):
        world.breaker.probed(answered=False)
        world.now_s += SILENT_S / 2
        assert not world.breaker.lets_through()
    world.breaker.probed(answered=True)
    assert world.breaker.lets_through()


def test_the_end_of_a_silence_lets_the_next_call_through_at_once_and_pauses_begin_anew(world: World) -> None:
    world.open()
    for _ in range(5):
        world.fail()  # the pause is as long as it gets
    world.breaker.probed(answered=False)
    world.now_s += 0.1
    world.breaker.probed(answered=True)
    assert world.breaker.lets_through()
    world.breaker.failed(world.now_s)
    assert not world.breaker.lets_through()
    world.now_s += 2 * FIRST_PAUSE_S
    assert world.breaker.lets_through()


def test_probes_that_have_ceased_keep_nobody_out(world: World) -> None:
    world.open()
    world.breaker.probed(answered=False)
    world.now_s += SILENT_S
    assert world.breaker.lets_through()


def test_a_probe_neither_opens_nor_closes_it(world: World) -> None:
    for _ in range(10):
        world.breaker.probed(answered=False)
    assert world.breaker.lets_through()
    world.breaker.probed(answered=True)
    world.open()
    world.breaker.probed(answered=True)
    assert world.breaker.open_since_s is not None
    assert not world.breaker.lets_through()


def test_a_call_that_never_tells_how_it_went_is_not_waited_for_forever(world: World) -> None:
    world.open()
    world.now_s += FIRST_PAUSE_S
    assert world.breaker.lets_through()
    world.now_s += TRY_S
    assert world.breaker.lets_through()


def test_a_call_that_asked_nothing_makes_room_for_the_next(world: World) -> None:
    world.open()
    world.breaker.unasked()  # of one that began before it was open: the pause holds
    assert not world.breaker.lets_through()
    world.now_s += FIRST_PAUSE_S
    assert world.breaker.lets_through()
    assert not world.breaker.lets_through()
    world.breaker.unasked()
    assert world.breaker.lets_through()
