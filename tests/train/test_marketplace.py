"""The marketplace, trained and served: views and carts go in, and each list is the one that its sample foretells."""

from functools import partial

import numpy as np

from models import signature, tensors
from models.bundle import load_bundle
from models.training.samples import HISTORY_VECTORS, training_set
from schemas import codec
from schemas.recall import RecallRequest
from tests.integration.recall_system import plain_pipeline
from tests.train.conftest import Trained
from workers.clock import SystemClock
from workers.fitting import TOWER_TIMEOUT_MS
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.pipelines.activity import ActivityEvent, ActivityPipeline
from workers.pipelines.admission import Incoming
from workers.pipelines.items import ItemEvent, ItemsPipeline, ItemsView
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable
from workers.stores.user_memory import MemoryUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.onnx import open_tower


async def test_a_trained_marketplace_is_served(offers: Trained) -> None:
    bundle, dataset = load_bundle(offers.bundle.path), offers.dataset
    encoding, dim = bundle.encoding, bundle.dim
    user, item = open_tower(bundle, "user", TOWER_TIMEOUT_MS), open_tower(bundle, "item", TOWER_TIMEOUT_MS)
    table, index = MemoryItemTable(dim), MemoryItemIndex(Collection("c", dim, bundle.metric, bundle.version))
    view = ItemsView(dim, bundle.version, tuple(bundle.spec.filterable))
    items = ItemsPipeline(view, table, index, item, partial(tensors.item_inputs, encoding=encoding))
    updates = enumerate(dataset.items())
    await items.run([ItemEvent(each.item_id, each, codec.encode_event(each), 0, n) for n, each in updates])
    vectors = VectorCache(table, dim)
    await ItemFollower(table, vectors).refresh()
    users = MemoryUserTable()
    activity = ActivityPipeline(users, bundle.spec.seen_actions, bundle.spec.actions)
    recall = plain_pipeline(bundle, user, users=users, table=table, vectors=vectors, index=index)
    samples = training_set(dataset.log, dataset.catalogue(), encoding)
    offered = item.run(tensors.item_inputs(dataset.item_ids, dataset.attributes, encoding))
    history = np.vstack([offered[signature.HISTORY_EMBEDDING], np.zeros((1, dim), dtype=np.float32)])
    purchases = np.flatnonzero((dataset.action == 2) & (dataset.timestamp_ms >= dataset.test_ms))[::20]
    await activity.run([ActivityEvent(each.user_id, each, each.timestamp_ms) for each in dataset.profile_activities()])
    sent = 0
    places = []
    for row in purchases.tolist():
        before = [ActivityEvent(each.user_id, each, each.timestamp_ms) for each in dataset.activities(range(sent, row))]
        await activity.run(before)
        sent = row
        (event,) = dataset.activities([row])
        request = RecallRequest(
            request_id=event.event_id,
            user_id=event.user_id,
            k=len(dataset.item_ids),
            timestamp_ms=event.timestamp_ms,
            context=event.context,
            timeout_ms=30_000,
            exclude_seen=False,
        )
        (answer,) = await recall.run([Incoming(request, SystemClock().now_ms())])
        assert answer.status == "ok"
        sample = np.flatnonzero((samples.user == dataset.user[row]) & (samples.as_of_ms == event.timestamp_ms))
        inputs = samples.batch(sample) | {HISTORY_VECTORS: history[samples.history[sample]]}
        wanted = offered[signature.ITEM_EMBEDDING] @ user.run(inputs)[signature.USER_EMBEDDING][0]
        served = np.array([wanted[dataset.item_ids.index(each)] for each in answer.item_ids])
        np.testing.assert_allclose(served, np.asarray(answer.scores), atol=1e-4)
        assert len(answer.item_ids) == len(dataset.item_ids)
        places.append(answer.item_ids.index(event.item_id or ""))
    assert np.median(places) < len(dataset.item_ids) / 8, "offers that are bought a moment later stand high"
    assert any(dataset.item_added_ms[dataset.item[row]] >= dataset.test_ms for row in purchases), "new ones among them"
