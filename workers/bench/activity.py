"""Activity throughput: what one event costs the activity worker, every history full, a few users busy and most not."""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from schemas import codec
from schemas.activity import UserActivity
from workers.bench.home import Home
from workers.bench.system import batch_sizes
from workers.bench.view import BenchView, write_users
from workers.errors import RecallError
from workers.kafka_client import Message, produce

USERS = 100_000
EVENTS = 300_000
ZIPF = 1.0  # the n-th busiest user sends in proportion to n ** -ZIPF
FILMS = 1000
WITHIN_S = 120.0
KIND = "activity"
EFFECTS = ("accepted", "duplicate", "too_late")


def measure(home: Home, view: BenchView) -> dict[str, Any]:
    """`activity_events_per_s_per_core`: events per second of the worker's CPU, while it works off a backlog."""
    settings = view.settings
    home.say(f"writing {USERS:,} users with full histories")
    users = [f"viewer-{n}" for n in range(USERS)]
    films = [f"film-{n}" for n in range(FILMS)]
    asyncio.run(write_users(settings, users, films, np.full(FILMS, 1 / FILMS)))
    home.say(f"{EVENTS:,} activities of {USERS:,} users")
    messages = list(_messages(users, films))
    before = first = last = view.workers.scrape(KIND)
    asyncio.run(produce(settings, settings.topic("user-activity"), messages))
    end_s = time.perf_counter() + WITHIN_S
    while (taken := _taken(last) - _taken(before)) < EVENTS:
        if time.perf_counter() > end_s:
            raise RecallError(f"{EVENTS - taken:.0f} activities are not taken in after {WITHIN_S:.0f} s")
        if taken == 0:
            first = last
        time.sleep(0.05)
        last = view.workers.scrape(KIND)
    events, cpu_s = _taken(last) - _taken(first), last.cpu_s - first.cpu_s
    return {
        "activity_events_per_s_per_core": round(events / cpu_s),
        "cpu_us_per_event": round(cpu_s / events * 1e6, 2),
        "events_per_s": round(events / (last.at_s - first.at_s)),
        "outcomes": {name: int(_taken(last, name) - _taken(before, name)) for name in EFFECTS},
        "batch_sizes": batch_sizes(before, last, KIND),
        "peak_mb": view.workers.peak_mb()[KIND],
    }


def _taken(scrape: Any, *outcomes: str) -> float:
    return float(
        sum(scrape.total("recall_events_total", kind=KIND, outcome=outcome) for outcome in outcomes or EFFECTS)
    )


def _messages(users: list[str], films: list[str]) -> Iterator[Message]:
    """Ratings in the order of their times, a thousand a second up to now."""
    rng = np.random.default_rng(5)
    chance = np.arange(1, USERS + 1) ** -ZIPF
    chosen = rng.choice(rng.permutation(USERS), size=EVENTS, p=chance / chance.sum()).tolist()
    rated = rng.integers(0, FILMS, EVENTS).tolist()
    start_ms, run = time.time_ns() // 1_000_000 - EVENTS, os.urandom(4).hex()
    for n, (user, film) in enumerate(zip(chosen, rated, strict=True)):
        activity = UserActivity(
            event_id=f"{run}-{n}",
            user_id=users[user],
            action="rate",
            value=float(n % 5 + 1),
            timestamp_ms=start_ms + n,
            item_id=films[film],
        )
        yield activity.user_id.encode(), codec.encode_event(activity), ()
