"""What a request that waits for its event costs the others: their median with one that waits, and without."""

import asyncio
import time
import uuid
from statistics import median
from typing import Any

from schemas.recall import RecallRequest
from workers.bench import load
from workers.bench.home import Child, Home
from workers.bench.view import BenchView
from workers.client import RecallClient

ROUNDS = 7
PER_SECOND = 400.0
ROUND_S = 8.0
TIMEOUT_MS = 10_000


def measure(home: Home, view: BenchView) -> dict[str, Any]:
    """`waiter_p50_ratio`: p50 of others while one request waits at any time, over that while none does.

    In the rounds without, the same client asks as many requests, but for no event: in both it reads all answers.
    """
    home.say(f"{PER_SECOND:.0f} requests a second beside one that waits for its event, and without: {ROUNDS} times")
    rounds = [(_round(home, view, n, waits=False), _round(home, view, n, waits=True)) for n in range(ROUNDS + 1)][1:]
    ratios = sorted(beside["p50_ms"] / without["p50_ms"] for without, beside in rounds)
    cpu_ratios = sorted(beside["cpu_s"] / without["cpu_s"] for without, beside in rounds)
    return {
        "waiter_p50_ratio": round(median(ratios), 3),
        "waiting": {
            "ratios": [round(ratio, 3) for ratio in ratios],
            "cpu_ratios": [round(ratio, 3) for ratio in cpu_ratios],
            "p50_ms_without": median(without["p50_ms"] for without, _ in rounds),
            "p50_ms_beside": median(beside["p50_ms"] for _, beside in rounds),
            "waited": sum(beside["asked"] for _, beside in rounds),
        },
    }


def _round(home: Home, view: BenchView, number: int, *, waits: bool) -> dict[str, Any]:
    name = f"waiting-{'beside' if waits else 'without'}{number}"
    job = load.Job(name, list(view.users), int(PER_SECOND * ROUND_S), PER_SECOND, TIMEOUT_MS)
    before_s = view.workers.scrape("recall").cpu_s
    child = home.job("load", job, view.settings)
    asked = asyncio.run(_ask_beside(view, child, waits=waits))
    report = child.report(60)
    return {**report, "asked": asked, "cpu_s": view.workers.scrape("recall").cpu_s - before_s}


async def _ask_beside(view: BenchView, child: Child, *, waits: bool) -> int:
    """One request after another until the load ends, each half a second: because it waits, or because we do."""
    asked = 0
    async with RecallClient(view.settings) as client:
        while child.process.poll() is None:
            end_s = time.perf_counter() + view.settings.wait_for_event_ms / 1000
            event = uuid.uuid4().hex if waits else None  # that never happens
            request = RecallRequest(
                request_id=uuid.uuid4().hex, user_id=view.users[0], timeout_ms=TIMEOUT_MS, after_event_id=event
            )
            await client.ask(request)
            asked += 1
            await asyncio.sleep(max(0.0, end_s - time.perf_counter()))
    return asked
