"""All parts of a benchmark in one run, and the figures that stand for it."""

import time
from collections.abc import Callable, Collection
from typing import Any

from workers.bench import activity, recall, seen, transport
from workers.bench.home import Home
from workers.bench.system import machine
from workers.bench.view import open_view
from workers.settings import Settings

PARTS = ("transport", "paced", "activity", "recall", "seen")
GENERATED = PARTS[:-1]  # seen downloads MovieLens, which has a licence of its own: only when it is asked for
SEEN_FIGURES = ("short_lists", "recall_at_100", "recall_at_100_exact", "p50_ratio")
CATALOGUES = (20_000, 100_000)
SMALL_CATALOGUE = 4000

Say = Callable[[str], None]


def run(settings: Settings, parts: Collection[str], catalogues: Collection[int], say: Say) -> dict[str, Any]:
    """Figures of the parts asked for, each on servers of this run. Raises RecallError."""
    started = time.perf_counter()
    found: dict[str, Any] = {"machine": machine()}
    with Home(settings, say) as home:
        found["servers"] = home.servers
        if "transport" in parts:
            say("passing messages on: the batch transport beside a raw loop")
            found |= transport.passing_on(home)
        if "paced" in parts:
            say(f"passing {transport.PACED_PER_S} messages a second on")
            found |= transport.paced(home)
        peaks_mb: list[float] = []
        if "activity" in parts:
            view = open_view(home, SMALL_CATALOGUE)
            found["activity"] = activity.measure(home, view)
            found["activity_events_per_s_per_core"] = found["activity"]["activity_events_per_s_per_core"]
            peaks_mb += view.workers.peak_mb().values()
            view.workers.stop()
        if "recall" in parts:
            found["recall"] = {}
            for items in catalogues:
                view = open_view(home, items)
                found["recall"][str(items)] = recall.measure(home, view)
                peaks_mb += view.workers.peak_mb().values()
                view.workers.stop()
            of_catalogues = found["recall"].values()
            found["worker_cpu_ratio"] = max(one["worker_cpu_ratio"] for one in of_catalogues)
            found["click_to_change_p99_ms"] = max(one["freshness"]["click_to_change_p99_ms"] for one in of_catalogues)
        if "seen" in parts:
            found["seen"] = seen.measure(home)
            found |= {name: found["seen"][name] for name in SEEN_FIGURES}
        if peaks_mb:
            found["worker_memory_mb"] = max(peaks_mb)
    found["took_s"] = round(time.perf_counter() - started)
    return found
