"""How soon lists know: from a click to the changed list, from an item update to the item in a list, under load."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import numpy as np

from models import signature, tensors
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, Reason, RecallRequest
from workers.bench.view import BenchView, fitted
from workers.client import RecallClient
from workers.clock import SystemClock
from workers.errors import RecallError
from workers.live.sender import Sender
from workers.towers.onnx import OnnxTower

CLICKERS = 4
CLICKS_EACH = 50
UPDATERS = 2
UPDATES_EACH = 30
BETWEEN_S = 0.1
ASK_AGAIN_AFTER_S = 0.002
SETTLE_S = 3.0
WITHIN_S = 20.0
TIMEOUT_MS = 10_000
RANK = 10  # of the item that is clicked
LENGTH = 4.0  # of a new item's vector, in lengths of one that leads a list: it leads that list from then on


class Probes:
    """Clicks and item updates, one after another by each of a few probers, while others load the system."""

    TAKES_S: ClassVar[float] = 25.0

    def __init__(self, view: BenchView) -> None:
        self._view = view
        bundle = view.bundle
        self._tower = OnnxTower(
            bundle.item_tower, signature.item_inputs(bundle.encoding), signature.item_outputs(bundle.dim), TIMEOUT_MS
        )

    def run(self) -> dict[str, Any]:
        """Percentiles in milliseconds, from before the event is sent until the answer that shows it has come."""
        clicks_ms, updates_ms = asyncio.run(self._run())
        found: dict[str, Any] = {}
        for name, latencies_ms in (("click_to_change", clicks_ms), ("item_to_retrievable", updates_ms)):
            p50, p99 = np.percentile(latencies_ms, [50, 99])
            found |= {f"{name}_p50_ms": round(float(p50), 1), f"{name}_p99_ms": round(float(p99), 1)}
            found[f"{name}_probes"] = len(latencies_ms)
        return found

    async def _run(self) -> tuple[list[float], list[float]]:
        await asyncio.sleep(SETTLE_S)  # the load is on its level
        users = iter(self._view.users)
        async with RecallClient(self._view.settings) as client, Sender(self._view.settings) as sender:
            clickers = [self._click(client, sender, next(users)) for _ in range(CLICKERS)]
            updaters = [self._update(client, sender, next(users)) for _ in range(UPDATERS)]
            found = await asyncio.gather(*clickers, *updaters)
        clicks, updates = found[:CLICKERS], found[CLICKERS:]
        return [ms for row in clicks for ms in row], [ms for row in updates for ms in row]

    async def _click(self, client: RecallClient, sender: Sender, user: str) -> list[float]:
        """Clicks on an item of the list; a clicked item is seen, and so leaves it."""
        latencies_ms = []
        for _ in range(CLICKS_EACH):
            before = await _ask(client, user)
            click = UserActivity(
                event_id=uuid.uuid4().hex,
                user_id=user,
                action="rate",
                value=5.0,
                timestamp_ms=SystemClock().now_ms(),
                item_id=before.item_ids[RANK],
            )

            async def changed(click: UserActivity = click, before: CandidateList = before) -> bool:
                answer = await _ask(client, user, click.event_id)
                known = Reason.FEATURES_STALE not in answer.reasons
                return known and click.item_id not in answer.item_ids and answer.item_ids != before.item_ids

            started = time.perf_counter()
            await sender.activities([click])
            latencies_ms.append(await _until(changed, started))
            await asyncio.sleep(BETWEEN_S)
        return latencies_ms

    async def _update(self, client: RecallClient, sender: Sender, user: str) -> list[float]:
        """New items that must lead this user's list, each deleted afterwards."""
        latencies_ms = []
        encoding, bundle = self._view.bundle.encoding, self._view.bundle
        best = fitted((await _ask(client, user)).item_ids[0])
        outputs = self._tower.run(tensors.item_inputs([best], [{}], encoding))
        embedding = (LENGTH * outputs[signature.ITEM_EMBEDDING][0]).tolist()
        for _ in range(UPDATES_EACH):
            item_id, now_ms = f"probe-{uuid.uuid4().hex}", SystemClock().now_ms()
            update = ItemUpdate(
                item_id=item_id,
                op="upsert",
                timestamp_ms=now_ms,
                attributes={"title": "probe"},
                embedding=embedding,
                embedding_model=bundle.version,
            )

            async def there(item_id: str = item_id) -> bool:
                return item_id in (await _ask(client, user)).item_ids

            started = time.perf_counter()
            await sender.item(update)
            latencies_ms.append(await _until(there, started))
            await sender.item(ItemUpdate(item_id=item_id, op="delete", timestamp_ms=now_ms))
            await asyncio.sleep(BETWEEN_S)
        return latencies_ms


async def _ask(client: RecallClient, user: str, after_event_id: str | None = None) -> CandidateList:
    request = RecallRequest(
        request_id=uuid.uuid4().hex, user_id=user, timeout_ms=TIMEOUT_MS, after_event_id=after_event_id
    )
    return await client.ask(request)


async def _until(holds: Callable[[], Awaitable[bool]], started: float) -> float:
    while not await holds():
        if time.perf_counter() - started > WITHIN_S:
            raise RecallError(f"an event had no effect on the answers within {WITHIN_S:.0f} s")
        await asyncio.sleep(ASK_AGAIN_AFTER_S)
    return (time.perf_counter() - started) * 1000
