"""When a dead worker is started again, and when the supervisor gives up."""

from workers.local.workers import FIRST_PAUSE_S, LONGEST_PAUSE_S, MAX_SOON_DEATHS, SETTLED_AFTER_S, SOON_S, Backoff


def pauses(lives_s: list[float]) -> list[float | None]:
    """What a worker waits for after each of these lives."""
    backoff, now_s, found = Backoff(), 0.0, []
    for lived_s in lives_s:
        backoff.started(now_s)
        now_s += lived_s
        found.append(backoff.died(now_s))
        now_s += found[-1] or 0.0
    return found


def test_the_pause_doubles_and_a_crash_loop_is_given_up() -> None:
    found = pauses([1.0] * MAX_SOON_DEATHS)
    assert found == [0.5, 1.0, 2.0, 4.0, 8.0, None]


def test_a_worker_that_dies_late_is_started_again_for_ever() -> None:
    found = pauses([SOON_S + 1] * 50)
    assert None not in found
    assert found[-1] == LONGEST_PAUSE_S


def test_a_long_life_begins_anew() -> None:
    found = pauses([1.0, 1.0, 1.0, SETTLED_AFTER_S, 1.0])
    assert found[3:] == [FIRST_PAUSE_S, FIRST_PAUSE_S * 2]


def test_a_life_that_is_not_short_interrupts_a_crash_loop() -> None:
    assert None not in pauses([*[1.0] * (MAX_SOON_DEATHS - 1), SOON_S, *[1.0] * (MAX_SOON_DEATHS - 1)])
