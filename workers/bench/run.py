"""All parts of a benchmark in one run, and the figures that stand for it."""

import time
from collections.abc import Callable, Collection
from typing import Any

from workers.bench import activity, overload, recall, seen, transport, waiting
from workers.bench.home import Home
from workers.bench.system import machine
from workers.bench.view import BenchView, open_view
from workers.settings import Settings

ON_VIEWS = ("recall", "waiting", "overload")
GENERATED = ("transport", "paced", "activity", *ON_VIEWS)
PARTS = (*GENERATED, "seen")  # seen downloads MovieLens, which has a licence of its own: only when it is asked for
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
        if "activity" in parts:
            view = open_view(home, SMALL_CATALOGUE)
            found["activity"] = activity.measure(home, view)
            found["activity_events_per_s_per_core"] = found["activity"]["activity_events_per_s_per_core"]
            _end(view, found)
        on_views = [part for part in ON_VIEWS if part in parts]
        for number, items in enumerate(catalogues):  # each is for recall, the first for the other parts too
            if wanted := on_views if number == 0 else [part for part in on_views if part == "recall"]:
                _on_view(home, items, wanted, found)
        if "seen" in parts:
            found["seen"] = seen.measure(home)
            found |= {name: found["seen"][name] for name in SEEN_FIGURES}
    found["took_s"] = round(time.perf_counter() - started)
    return found


def _on_view(home: Home, items: int, parts: Collection[str], found: dict[str, Any]) -> None:
    """Parts that ask for candidates, on one catalogue."""
    view = open_view(home, items)
    if "recall" in parts:
        one = found.setdefault("recall", {})[str(items)] = recall.measure(home, view)
        for name, figure in (("worker_cpu_ratio", one), ("click_to_change_p99_ms", one["freshness"])):
            found[name] = max(figure[name], found.get(name, 0.0))
    if "waiting" in parts:
        found |= waiting.measure(home, view)
    if "overload" in parts:
        found |= overload.measure(home, view)
    _end(view, found)


def _end(view: BenchView, found: dict[str, Any]) -> None:
    """End a view's workers; the most memory that one of them has held is a figure of the whole run."""
    found["worker_memory_mb"] = max(found.get("worker_memory_mb", 0.0), *view.workers.peak_mb().values())
    view.workers.stop()
