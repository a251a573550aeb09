"""The second example, with no line changed: fitted, indexed and served by the code that serves films."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from models import signature, tensors
from models.datasets.marketplace import generate_marketplace
from schemas import codec
from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from tests.conftest import PATIENT
from tests.e2e.conftest import fit_small
from tests.integration.recall_system import plain_pipeline
from workers.clock import SystemClock
from workers.index.milvus_collection import prepare_index
from workers.index.schema import Collection
from workers.pipelines.activity import ActivityEvent, ActivityPipeline
from workers.pipelines.items import ItemEvent, ItemsPipeline, ItemsView
from workers.pipelines.recall import Incoming
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_follower import ItemFollower
from workers.stores.item_redis import RedisItemTable
from workers.stores.markers_redis import RedisMarkers
from workers.stores.user_redis import GROUP, RedisUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.onnx import OnnxTower


@pytest.mark.timeout(180)
async def test_a_marketplace_is_served(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update=PATIENT)
    dataset = generate_marketplace(items=300, users=150, visits=2500)
    bundle = fit_small(dataset, tmp_path)
    encoding, dim = bundle.encoding, bundle.dim
    collection = Collection(settings.collection(bundle.version), dim, bundle.metric, bundle.version)
    table = RedisItemTable(connect(settings), settings, collection.name, dim)
    users = RedisUserTable(connect(settings), settings)
    for group in (GROUP, keys.items_group(collection.name)):
        markers = RedisMarkers(connect(settings), settings, group)
        await markers.open(1)
        assert await markers.mark(0, "")  # nobody's record is missing, and no item's
    index = await prepare_index(settings, collection, 300)
    item_tower = OnnxTower(bundle.item_tower, signature.item_inputs(encoding), signature.item_outputs(dim), 5000)
    user_tower = OnnxTower(bundle.user_tower, signature.user_inputs(encoding, dim), signature.user_outputs(dim), 5000)
    view = ItemsView(dim, bundle.version, tuple(bundle.spec.filterable))
    items = ItemsPipeline(view, table, index, item_tower, partial(tensors.item_inputs, encoding=encoding))
    updates = list(dataset.items())
    result = await items.run([ItemEvent(u.item_id, u, codec.encode_event(u), 0, n) for n, u in enumerate(updates)])
    assert result.outcomes == {"upserted": 300}

    activity = ActivityPipeline(users, bundle.spec.seen_actions, bundle.spec.actions)
    late = next(n for n, added_ms in enumerate(dataset.item_added_ms) if added_ms >= dataset.test_ms)
    now_ms = SystemClock().now_ms()

    def event(n: int, action: str, item: int) -> ActivityEvent:
        item_id = dataset.item_ids[item]
        return ActivityEvent(
            "shopper",
            UserActivity(event_id=f"e{n}", user_id="shopper", action=action, timestamp_ms=now_ms + n, item_id=item_id),
            now_ms,
        )

    vectors = VectorCache(table, dim)
    await ItemFollower(table, vectors).refresh()
    recall = plain_pipeline(bundle, user_tower, users=users, table=table, vectors=vectors, index=index)

    async def ask(context: dict | None = None, k: int = 300) -> list[str]:
        request = RecallRequest(
            request_id="r", user_id="shopper", k=k, timeout_ms=30_000, context=context, timestamp_ms=now_ms + 60_000
        )
        (answer,) = await recall.run([Incoming(request, SystemClock().now_ms())])
        assert answer.status == "ok"
        return answer.item_ids

    async with asyncio.timeout(20):
        while len(everything := await ask()) < 300:  # what was upserted is visible one time tick later
            await asyncio.sleep(0.02)
    assert dataset.item_ids[late] in everything, "an offer that appeared after the fit is found"
    await activity.run([event(1, "view", late)])
    viewed = await ask()
    assert viewed != everything, "a view of an offer that the fit has never seen moves the list"
    assert dataset.item_ids[late] in viewed, "a view does not count as seen here"
    await activity.run([event(2, "purchase", late)])
    bought = await ask()
    assert dataset.item_ids[late] not in bought
    morning, evening = await ask({"hour": 7, "device": "phone"}), await ask({"hour": 22, "device": "desktop"})
    assert morning != evening, "context moves the list"
    for opened in (table, users, index, item_tower, user_tower):
        await opened.close()
