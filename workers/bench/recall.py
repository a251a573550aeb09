"""Recall over Kafka at three levels of load, beside the same steps without Kafka, on one view."""

from operator import itemgetter
from statistics import median
from typing import Any

from workers.bench import load, loop
from workers.bench.freshness import Probes
from workers.bench.home import Child, Home
from workers.bench.system import batch_sizes
from workers.bench.view import BenchView

ROUNDS = 5
BACKLOG = 15_000
LEVEL_S = 15.0
LEVELS = {"half": 0.5, "quarter": 0.25}
TIMEOUT_MS = 60_000
KIND = "recall"


def measure(home: Home, view: BenchView) -> dict[str, Any]:
    """Saturation first, in turn with the loop: the other levels are parts of its rate. Freshness is at half load.

    Latencies at saturation are those of a backlog: how long the last of so many waits.
    """
    found: dict[str, Any] = {"catalogue": view.throughput}
    home.say(f"recall at saturation, and the same steps without Kafka: {ROUNDS} times {BACKLOG:,} requests at once")
    _level(home, view, "warm", BACKLOG // 2, 0.0)
    rounds = sorted((_in_turn(home, view, number) for number in range(ROUNDS)), key=itemgetter("worker_cpu_ratio"))
    found |= rounds[ROUNDS // 2]
    found["worker_cpu_ratios"] = [each["worker_cpu_ratio"] for each in rounds]
    capacity = median(each["saturation"]["requests_per_s"] for each in rounds)
    for name, part in LEVELS.items():
        rate = capacity * part
        home.say(f"recall at {name} load: {rate:,.0f} requests a second for {LEVEL_S:.0f} s")
        found[name] = _level(home, view, name, int(rate * LEVEL_S), rate)
    rate = capacity * LEVELS["half"]
    home.say("freshness at half load")
    child = _load(home, view, "freshness", int(rate * Probes.TAKES_S), rate)
    found["freshness"] = Probes(view).run()
    found["freshness"]["load"] = child.report(300)
    found["peak_mb"] = view.workers.peak_mb()
    return found


def _in_turn(home: Home, view: BenchView, number: int) -> dict[str, Any]:
    """One backlog over Kafka, then as many requests without, in batches of the same sizes."""
    saturation = _level(home, view, f"saturation{number}", BACKLOG, 0.0)
    job = loop.Job(list(view.users), saturation["batch_sizes"], BACKLOG, TIMEOUT_MS)
    alone = home.job("loop", job, view.settings).report(300)
    ratio = saturation["cpu_us_per_request"] / alone["cpu_us_per_request"]
    return {"saturation": saturation, "loop": alone, "worker_cpu_ratio": round(ratio, 3)}


def _level(home: Home, view: BenchView, name: str, requests: int, per_second: float) -> dict[str, Any]:
    before = view.workers.scrape(KIND)
    report = _load(home, view, name, requests, per_second).report(400)
    after = view.workers.scrape(KIND)
    answered = after.total("recall_answers_total") - before.total("recall_answers_total")
    return {
        "requests_per_s": report["answers_per_s"],
        "cpu_us_per_request": round((after.cpu_s - before.cpu_s) / answered * 1e6, 1),
        "batch_sizes": batch_sizes(before, after, KIND),
        **{name: report[name] for name in ("requests", "answered", "repeated", "statuses", *load.LATENCIES)},
    }


def _load(home: Home, view: BenchView, name: str, requests: int, per_second: float) -> Child:
    return home.job("load", load.Job(name, list(view.users), requests, per_second, TIMEOUT_MS), view.settings)
