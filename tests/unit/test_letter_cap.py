"""How many dead letters may be written in a minute, and no more."""

from hypothesis import given
from hypothesis import strategies as st

from workers.giving_up import WINDOW_S, LetterCap


class Time:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_fits_is_allowed_and_room_comes_back_after_a_minute() -> None:
    time = Time()
    cap = LetterCap(10, time)
    assert (cap.take(4), cap.take(4), cap.take(4), cap.take(1)) == (4, 4, 2, 0)
    time.now_s += 59.9
    assert cap.take(1) == 0
    time.now_s += 0.1
    assert cap.take(100) == 10


def test_a_resume_begins_anew() -> None:
    cap = LetterCap(10, Time())
    assert cap.take(11) == 10
    cap.reset()
    assert cap.take(3) == 3
    assert cap.take(8) == 7


def test_none_means_without_end() -> None:
    cap = LetterCap(0, Time())
    assert cap.take(10**6) == 10**6
    assert cap.take(10**6) == 10**6


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 60), st.floats(0, 100)), max_size=60))
def test_no_minute_has_more(per_minute: int, steps: list[tuple[int, float]]) -> None:
    time = Time()
    cap = LetterCap(per_minute, time)
    taken: list[tuple[float, int]] = []
    for wanted, pause_s in steps:
        time.now_s += pause_s
        allowed = cap.take(wanted)
        recent = sum(count for at_s, count in taken if time.now_s - at_s < WINDOW_S)
        assert allowed == min(wanted, per_minute - recent), "as many as fit, and no more"
        taken.append((time.now_s, allowed))
