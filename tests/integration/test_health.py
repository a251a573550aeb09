"""/healthz and /readyz of a real engine: well while its poll loop turns, not once it has stood still."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from workers import topics
from workers import worker as composition
from workers.dependencies import Dependencies
from workers.engine import serve
from workers.health import Condition, HealthServer
from workers.index.opening import Indexes
from workers.inflight import BatchPolicy
from workers.local.process import free_ports
from workers.metrics import Metrics
from workers.settings import Settings
from workers.transport import batch_topic, create_app
from workers.worker import Worker

TURNS_WITHIN_S = 30.0


@pytest.fixture
async def engine(settings: Settings, tmp_path: Path) -> AsyncIterator[Any]:
    """A running app that has its partitions."""
    await topics.apply(settings)
    app = create_app(settings.group("health"), settings.model_copy(update={"data_dir": tmp_path}), BatchPolicy())

    async def handle(batch: Any) -> None:
        batch.done()

    @app.agent(batch_topic(app, settings.topic("user-activity")))
    async def agent(stream: Any) -> None:
        await serve(stream, handle)

    await app.start()
    yield app
    await app.stop()


@pytest.fixture
async def pages(settings: Settings, engine: Any) -> AsyncIterator[str]:
    """The health pages of a worker on this engine."""
    metrics = Metrics()
    async with AsyncExitStack() as opened:
        indexes, needed = Indexes(settings, opened), Dependencies("activity", metrics)
        worker = Worker("activity", settings, metrics, needed, opened, indexes, app=engine)
        server = HealthServer(metrics.render, worker.live, worker.ready, settings.hide)
        [port] = free_ports(1)
        await server.start("127.0.0.1", port)
        yield f"http://127.0.0.1:{port}"
        await server.close()


async def until(url: str, status: int) -> str:
    """Ask until the page has this status; its text."""
    async with asyncio.timeout(TURNS_WITHIN_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as page:
                if page.status == status:
                    return await page.text()
            await asyncio.sleep(0.05)


async def test_a_poll_loop_that_stands_still_is_found_out(
    engine: Any, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert composition.LIVE_WITHIN_S == 60
    assert (await until(f"{pages}/readyz", 200)) == "ready\n"
    await until(f"{pages}/healthz", 200)
    stuck = asyncio.Event()

    async def never(_timeout_s: float) -> Any:
        await stuck.wait()
        return {}, None

    monkeypatch.setattr(composition, "LIVE_WITHIN_S", 2.0)
    monkeypatch.setattr(engine.consumer, "_wait_next_records", never)
    said = await until(f"{pages}/healthz", 503)
    assert said.startswith("activity: the poll loop last turned ")
    monkeypatch.undo()
    stuck.set()
    await until(f"{pages}/healthz", 200)
    await until(f"{pages}/readyz", 200)


async def test_a_page_shows_no_secret_that_stands_in_somebodys_error() -> None:
    settings = Settings(tower_token=SecretStr("hunter2"))
    unready = Condition(well=False, detail="tower: Illegal header value b'Bearer hunter2'")
    server = HealthServer(bytes, lambda: unready, lambda: unready, settings.hide)
    [port] = free_ports(1)
    await server.start("127.0.0.1", port)
    assert await until(f"http://127.0.0.1:{port}/readyz", 503) == "tower: Illegal header value b'Bearer ***'\n"
    await server.close()
