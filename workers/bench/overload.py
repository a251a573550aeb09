"""What a worker is worth when more is asked than it can do: answers in time, as a part of what it can do at most."""

from statistics import median
from typing import Any

from workers.bench import load
from workers.bench.home import Home
from workers.bench.view import BenchView

BACKLOG = 10_000
ROUNDS = 3
OFFERED = 1.5
OVERLOAD_S = 20.0
WARM_UP = 0.4  # of it: until the first request is too late, everybody is in time
TIMEOUT_MS = 2000
NO_TIMEOUT_MS = 60_000


def measure(home: Home, view: BenchView) -> dict[str, Any]:
    """`goodput_ratio`: `ok` answers in time per second at 1.5 times the saturation, over the saturation."""
    home.say(f"saturation: {ROUNDS} times {BACKLOG:,} requests at once")
    names = ("overload-warm", *(f"overload-saturation{n}" for n in range(ROUNDS)))
    backlogs = [_ask(home, view, load.Job(name, list(view.users), BACKLOG, 0.0, NO_TIMEOUT_MS)) for name in names]
    capacity = median(one["answers_per_s"] for one in backlogs[1:])
    rate = OFFERED * capacity
    home.say(f"overload: {rate:,.0f} requests a second for {OVERLOAD_S:.0f} s")
    job = load.Job("overload", list(view.users), int(rate * OVERLOAD_S), rate, TIMEOUT_MS, warm_up=WARM_UP)
    found = _ask(home, view, job)
    return {
        "goodput_ratio": round(found["in_time_part"] * OFFERED, 3),
        "overload": {"saturation_per_s": capacity, "offered_per_s": round(rate, 1), **found},
    }


def _ask(home: Home, view: BenchView, job: load.Job) -> dict[str, Any]:
    return home.job("load", job, view.settings).report(300)
