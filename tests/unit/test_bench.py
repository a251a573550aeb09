"""The arithmetic of `recall bench`: what is counted, left out and printed."""

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest

from workers.bench import report
from workers.bench.load import Answers, Job, _report, _status, in_turn
from workers.bench.loop import Job as LoopJob
from workers.bench.loop import _batches
from workers.bench.system import Scrape, batch_sizes, machine
from workers.bench.view import FIT_ITEMS, fitted
from workers.settings import Settings


def scrape(**counts: float) -> Scrape:
    rows = {
        ("recall_batch_records_bucket", (("kind", "recall"), ("le", bound.removeprefix("le")))): count
        for bound, count in counts.items()
    }
    return Scrape(0.0, 0.0, rows)


def test_batches_between_two_moments_by_size() -> None:
    before = scrape(**{"le1.0": 2, "le2.0": 3, "le64.0": 3, "le+Inf": 3})
    after = scrape(**{"le1.0": 5, "le2.0": 6, "le64.0": 16, "le+Inf": 16})
    assert batch_sizes(before, after, "recall") == {"1": 3, "64": 10}
    assert batch_sizes(after, after, "recall") == {}


def test_totals_are_sums_over_the_samples_with_these_labels() -> None:
    values = {("a", (("kind", "x"), ("outcome", o))): n for o, n in (("p", 1.0), ("q", 2.0))}
    found = Scrape(0.0, 0.0, {**values, ("a", (("kind", "y"), ("outcome", "p"))): 4.0})
    assert found.total("a") == 7
    assert found.total("a", kind="x") == 3
    assert found.total("a", outcome="p") == 5


async def answers(at_s: list[float], job: Job) -> Answers:
    found = Answers(Settings(), job)
    found.at_s[:] = at_s
    found.answered = int((~np.isnan(found.at_s)).sum())
    found.statuses = Counter({"ok": found.answered})
    await found.stop()
    return found


async def test_latency_runs_from_when_a_request_was_due() -> None:
    """Also for requests that were sent late because the system was slow: ten a second, each answered 20 ms after."""
    job = Job("j", ["u"], requests=10, per_second=10, timeout_ms=1000)
    due_s = np.arange(10) / 10
    found = _report(job, await answers((due_s + 0.02).tolist(), job), due_s, 1.0)
    assert found["answered"] == 10
    assert found["p50_ms"] == found["p99_ms"] == 20.0
    assert found["answers_per_s"] == pytest.approx(8 / 0.7, abs=0.1), "the first fifth is left out"


async def test_what_was_never_answered_is_counted_and_has_no_latency() -> None:
    job = Job("j", ["u"], requests=4, per_second=0, timeout_ms=1000, warm_up=0.0)
    found = _report(job, await answers([0.1, 0.2, float("nan"), 0.3], job), np.zeros(4), 1.0)
    assert (found["requests"], found["answered"]) == (4, 3)
    assert found["p50_ms"] == 200.0


async def test_in_time_is_what_is_ok_and_came_within_its_timeout() -> None:
    job = Job("j", ["u"], requests=5, per_second=0, timeout_ms=1000, warm_up=0.2)
    found = await answers([0.1, 0.2, 1.1, float("nan"), 0.3], job)
    found.ok[:] = [True, True, True, True, False]
    assert _report(job, found, np.zeros(5), 1.0)["in_time_part"] == 0.25, "one of the last four"


def test_nobody_asks_again_before_everybody_has_asked() -> None:
    asked = in_turn(["a", "b", "c"], 8, "seed")
    assert asked[:3] == asked[3:6]
    assert sorted(asked[:3]) == ["a", "b", "c"]
    assert asked[6:] == asked[:2]
    assert in_turn(["a", "b", "c"], 8, "seed") == asked


def test_the_status_of_an_answer_is_read_without_its_list() -> None:
    assert _status(b'{"request_id":"r","status":"degraded","item_ids":["\\"status\\":\\"ok\\""]}') == "degraded"


def test_the_loop_has_the_batch_sizes_of_the_worker() -> None:
    job = LoopJob(["u"], {"4": 30, "64": 10}, requests=5000, timeout_ms=1000)
    sizes = Counter(len(batch) for batch in _batches(job))
    assert set(sizes) == {4, 64}
    assert 2 < sizes[4] / sizes[64] < 4.5
    assert sum(size * count for size, count in sizes.items()) >= 5000


def test_a_film_beyond_the_fit_is_like_one_of_it() -> None:
    assert fitted("film-17") == "film-17"
    assert fitted(f"film-{FIT_ITEMS * 3 + 17}") == "film-17"


LEVEL: dict[str, Any] = {
    "requests_per_s": 1234.5,
    "p50_ms": 1.5,
    "p99_ms": 9.5,
    "cpu_us_per_request": 88.1,
    "answered": 100,
    "requests": 101,
    "batch_sizes": {"2": 1, "64": 7},
}
FIGURES: dict[str, Any] = {
    "machine": machine(),
    "servers": {"kafka": "4.3.1"},
    "took_s": 7,
    "paced_p50_ms": 5.5,
    "paced_p99_ms": 20.5,
    "paced_messages": 5000,
    "waiter_p50_ratio": 1.043,
    "waiting": {
        "ratios": [0.98, 1.043, 1.07],
        "cpu_ratios": [1.01, 1.021, 1.04],
        "p50_ms_without": 9.1,
        "p50_ms_beside": 9.5,
        "waited": 120,
    },
    "goodput_ratio": 0.912,
    "overload": {
        "saturation_per_s": 2000.0,
        "offered_per_s": 3000.0,
        "requests": 60_000,
        "answered": 60_000,
        "statuses": {"rejected": 20_000, "ok": 40_000},
    },
    "seen": {
        "items": 3883,
        "index_type": "FLAT",
        "short_lists": 0,
        "recall_at_100": 0.25,
        "recall_at_100_exact": 0.25,
        "overlap_at_100": 1.0,
        "targets": 4800,
        "p50_ratio": 1.2,
        "p50_ratios": [1.1, 1.3],
        "light": {"p50_ms": 15.5, "p99_ms": 35.5},
        "heavy": {"p50_ms": 20.5, "p99_ms": 40.5},
        "readers": {"heavy": 500, "light": 500},
        "households": 145,
        "seen_items": {"heavy": [500, 690, 1850], "light": [20, 22, 26]},
    },
    "recall": {
        "20000": {
            "catalogue": {"index_type": "HNSW", "segments": 1, "items_per_s": 9000, "cpu_us_per_item": 40.0},
            "saturation": LEVEL,
            "half": LEVEL,
            "quarter": LEVEL,
            "loop": {"requests_per_s": 2000.0, "cpu_us_per_request": 70.0},
            "worker_cpu_ratio": 1.259,
            "worker_cpu_ratios": [1.2, 1.259, 1.3],
            "freshness": {
                f"{what}_{figure}": 42.5
                for what in ("click_to_change", "item_to_retrievable")
                for figure in ("p50_ms", "p99_ms", "probes")
            },
            "peak_mb": {"recall": 250.4},
        }
    },
}


def test_tables_hold_the_figures_of_the_parts_that_ran() -> None:
    tables = report.markdown(FIGURES)
    assert "| half | 1,234 | 1.5 / 9.5 | 88.1 | 100 of 101 | 1 of <= 2, 7 of <= 64 |" in tables
    assert "`worker_cpu_ratio` 1.259, the median of 3 rounds (from 1.2 to 1.3)" in tables
    assert "p99 20.5 ms" in tables
    assert "`waiter_p50_ratio` 1.043, the median of 3 rounds (from 0.98 to 1.07; 120 have waited)" in tables
    assert "CPU time beside it: 1.021 of that without" in tables
    assert "3,000 requests a second where 2,000 can be done; 60,000 of 60,000 answered (40,000 ok, 20,000" in tables
    assert "`goodput_ratio` 0.912" in tables
    assert "| heavy | 500 | 500 / 690 / 1,850 | 20.5 / 40.5 |" in tables
    assert "`p50_ratio` 1.2, the median of 2 rounds (from 1.1 to 1.3)" in tables
    assert "transport_ratio" not in tables
    without = copy.deepcopy(FIGURES)
    del without["recall"]
    assert "worker_cpu_ratio" not in report.markdown(without)
