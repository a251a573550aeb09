"""`python -m tests.bench.feature_sources [--feast]`: what a value from a feature source costs a request, in one run.

Servers are started for it; `--feast` adds a real `feast serve`. Prints one JSON object: the median of 300 calls one
after the other, in microseconds a request, in batches of 1 and 64 users with three values each. `cached` is the memory
source behind the cache, all users kept; `step` the whole step of the pipeline on it. docs/features.md has the figures.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from pydantic import SecretStr

from models.spec import ContextField
from schemas.recall import RecallRequest
from tests.backends.feast import Feast
from tests.contract.feature_backends import KINDS, PATIENT_MS, Backend, RealFeast
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.features.cached import CachedFeatures
from workers.features.memory import MemoryFeatureSource
from workers.local.process import free_ports
from workers.local.redis import Redis
from workers.metrics import Metrics
from workers.pipelines.admission import Asked, Incoming
from workers.pipelines.attempts import Attempts
from workers.pipelines.rows import Row
from workers.pipelines.sourcing import Asking, Sourcing
from workers.plans import Plan
from workers.ports import FeatureSource
from workers.settings import Settings, load_settings

BATCHES = (1, 64)
CALLS, WARM = 300, 30
USERS = {f"u{n}": {"tier": "gold", "age": n, "ratio": 0.5} for n in range(64)}
FIELDS = {
    "tier": ContextField(kind="category", source="shop"),
    "age": ContextField(kind="number", source="shop"),
    "ratio": ContextField(kind="number", source="shop"),
}
NAMES = list(FIELDS)

Figures = dict[str, float]


async def main() -> None:
    """Every adapter, one after the other."""
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="recall-features-") as made:
        folder = Path(made)
        memory = MemoryFeatureSource(USERS)
        found["memory"] = await measured(memory)
        found |= await in_the_pipeline(memory)
        redis = Redis(folder / "redis", folder / "redis.log", folder)
        redis.ports = free_ports(1)
        redis.start()
        redis.wait_ready()
        settings = load_settings(redis_url=SecretStr(redis.address), namespace=f"b{uuid.uuid4().hex[:8]}")
        try:
            for kind, backend in KINDS.items():
                name = "feast (test server)" if kind == "feast" else kind
                found[name] = await served(backend(settings, folder / kind))
        finally:
            redis.stop()
        if "--feast" in sys.argv:
            found["feast"] = await real_feast(settings, folder / "real")
    print(json.dumps(found))


async def served(backend: Backend) -> Figures:
    """An adapter and its server, past the proxy."""
    backend.direct = True
    await backend.start()
    try:
        await backend.put(USERS)
        return await measured(backend.open())
    finally:
        await backend.stop()


async def real_feast(settings: Settings, folder: Path) -> Figures:
    """`feast serve`."""
    feast = Feast()
    try:
        folder.mkdir()
        feast.start(folder)
        return await served(RealFeast(settings, folder, feast))
    finally:
        feast.stop()


async def measured(source: FeatureSource) -> Figures:
    """Asked for its values, nothing kept."""

    async def ask(users: list[str]) -> None:
        rows = await source.values(users, NAMES)
        assert rows[-1] == USERS[users[-1]]

    return {str(batch): await median_us(ask, batch) for batch in BATCHES}


async def in_the_pipeline(source: FeatureSource) -> dict[str, Figures]:
    """With everything kept: the cache alone, and the step of the pipeline around it."""
    found: dict[str, Figures] = {"cached": {}, "step": {}}
    async with AsyncExitStack() as opened:
        features = CachedFeatures(source, NAMES, ttl_ms=3_600_000, size=1000)
        opened.push_async_callback(features.close)
        await features.ask(list(USERS))
        dependencies, clock = Dependencies("recall", Metrics()), SystemClock()
        step = Sourcing({"shop": Asking("features.shop", features, FIELDS, PATIENT_MS)})

        async def look_up(users: list[str]) -> None:
            assert len(features.kept(users)) == len(users)

        async def run(users: list[str]) -> None:
            now_ms = clock.now_ms()
            rows = [row(user_id, now_ms) for user_id in users]
            await step.run(rows, Attempts(dependencies, clock, now_ms + PATIENT_MS))
            assert rows[-1].context == USERS[users[-1]]

        for batch in BATCHES:
            found["cached"][str(batch)] = await median_us(look_up, batch)
            found["step"][str(batch)] = await median_us(run, batch)
    return found


def row(user_id: str, now_ms: int) -> Row:
    """A request that carries nothing."""
    request = RecallRequest(request_id="r", user_id=user_id)
    return Row(Asked(Incoming(request, now_ms), Plan(), 10, exclude_seen=True, where=(), sources=()))


async def median_us(call: Callable[[list[str]], Awaitable[None]], batch: int) -> float:
    """Microseconds a request."""
    users, took_us = list(USERS)[:batch], []
    for _ in range(WARM + CALLS):
        started_s = time.perf_counter()
        await call(users)
        took_us.append((time.perf_counter() - started_s) * 1e6 / batch)
    return round(statistics.median(took_us[WARM:]), 1)


if __name__ == "__main__":
    asyncio.run(main())
