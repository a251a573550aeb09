"""The composition root: settings and a kind in, a running worker out. Nothing is created at import.

activity   user-activity   -> ActivityPipeline -> user table
items      item-updates    -> ItemsPipeline    -> index and item table of the active view
recall     recall-requests -> RecallPipeline   -> recall-candidates
"""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from models import signature, tensors
from models.bundle import Bundle, BundleError, load_bundle
from workers import topics, views
from workers.agents import Context, EventAgent, RecallAgent, attach, decode_activity, decode_item
from workers.clock import SystemClock
from workers.errors import ConfigurationError, DependencyError
from workers.health import Condition, HealthServer
from workers.index.milvus_collection import open_index, prepare_index
from workers.index.opening import OpeningIndex
from workers.index.schema import Collection
from workers.inflight import BatchPolicy
from workers.metrics import Metrics
from workers.pipelines.activity import ActivityPipeline
from workers.pipelines.items import ItemsPipeline, ItemsView
from workers.pipelines.recall import RecallPipeline, StepTimeouts, View
from workers.retry import until_done
from workers.settings import AgentKind, Settings
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable
from workers.stores.user_redis import RedisUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.onnx import OnnxTower
from workers.transport import Publisher, create_app, liveness, run_until_signal

FEED_EVERY_S = 0.2
LIVE_WITHIN_S = 60.0
POLICIES: dict[AgentKind, BatchPolicy] = {
    "activity": BatchPolicy(max_batch=1024, in_flight=1),
    "items": BatchPolicy(max_batch=1024, in_flight=1),
    "recall": BatchPolicy(max_batch=64, in_flight=2),
}

log = structlog.get_logger()


@dataclass
class Worker:
    """One agent kind with everything it holds open."""

    kind: AgentKind
    app: Any
    metrics: Metrics
    opened: AsyncExitStack
    background: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    missing: Callable[[], str | None] = lambda: None

    def live(self) -> Condition:
        """Fails when the poll loop has not turned for a minute."""
        idle_s = liveness(self.app).idle_s
        return Condition(idle_s < LIVE_WITHIN_S, f"the poll loop last turned {idle_s:.0f} s ago")

    def ready(self) -> Condition:
        """Fails while partitions or a dependency are missing."""
        facts = liveness(self.app)
        self.metrics.assigned.labels(self.kind).set(facts.assigned)
        self.metrics.lag.labels(self.kind).set(facts.lag)
        missing = self.missing()
        if missing is not None:
            return Condition(False, f"waiting for {missing}")
        return Condition(facts.assigned > 0, "ready" if facts.assigned else "waiting for partitions")


async def run(settings: Settings, kind: AgentKind) -> int:
    """Run one worker until it is told to stop. Raises ConfigurationError; returns the exit code."""
    async with AsyncExitStack() as opened:
        worker = await build(settings, kind, opened)
        if settings.web_port:
            pages = HealthServer(worker.metrics, worker.live, worker.ready)
            await pages.start(settings.web_bind, settings.web_port)
            opened.push_async_callback(pages.close)
        gc.collect()
        gc.freeze()  # what was loaded stays: collections no longer walk it
        log.info("worker starts", kind=kind, group=worker.app.conf.id)
        engine = asyncio.create_task(run_until_signal(worker.app))
        tasks = [asyncio.create_task(work()) for work in worker.background]
        try:
            waiting = {engine, *tasks}
            while not engine.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a background task that failed ends the worker
            return engine.result()
        finally:
            for task in tasks:
                task.cancel()
            log.info("worker ends", kind=kind)


async def build(settings: Settings, kind: AgentKind, opened: AsyncExitStack) -> Worker:
    """Compose one worker; what it opens is closed with `opened`. Waits for Kafka and Redis to be there."""
    bundle, view = await _active_bundle(settings)
    await until_done(lambda: topics.check(settings), _ignore)
    group = {"activity": "recall-activity", "items": f"recall-items.{view.collection}", "recall": "recall-requests"}
    app = create_app(settings.group(group[kind]), settings, POLICIES[kind])
    metrics = Metrics()
    publisher = Publisher(app, settings.publish_timeout_ms)
    worker = Worker(kind, app, metrics, opened)
    context = Context(kind, settings, publisher, metrics, SystemClock())
    compose = {"activity": _activity, "items": _items, "recall": _recall}[kind]
    await compose(settings, worker, context, bundle, view)
    return worker


async def _activity(settings: Settings, worker: Worker, context: Context, bundle: Bundle, _: views.ActiveView) -> None:
    users = RedisUserTable(connect(settings), settings)
    worker.opened.push_async_callback(users.close)
    pipeline = ActivityPipeline(users, bundle.spec.seen_actions, bundle.spec.actions)
    attach(worker.app, settings.topic("user-activity"), EventAgent(context, decode_activity, pipeline.run))


async def _items(settings: Settings, worker: Worker, context: Context, bundle: Bundle, view: views.ActiveView) -> None:
    table = RedisItemTable(connect(settings), settings, view.collection, bundle.dim)
    worker.opened.push_async_callback(table.close)
    rows = len(bundle.encoding.vocabularies.item_ids)
    index = await until_done(lambda: prepare_index(settings, _collection(bundle, view), rows), _ignore)
    worker.opened.push_async_callback(index.close)
    tower = _tower(settings, bundle, "item")
    worker.opened.push_async_callback(tower.close)
    items = ItemsView(bundle.dim, bundle.version, tuple(bundle.spec.filterable))
    inputs = partial(tensors.item_inputs, encoding=bundle.encoding)
    pipeline = ItemsPipeline(items, table, index, tower, inputs)
    attach(worker.app, settings.topic("item-updates"), EventAgent(context, decode_item, pipeline.run))


async def _recall(settings: Settings, worker: Worker, context: Context, bundle: Bundle, view: views.ActiveView) -> None:
    users = RedisUserTable(connect(settings), settings)
    worker.opened.push_async_callback(users.close)
    table = RedisItemTable(connect(settings), settings, view.collection, bundle.dim)
    worker.opened.push_async_callback(table.close)
    vectors = VectorCache(table, bundle.dim)
    index = OpeningIndex(partial(open_index, settings, _collection(bundle, view)))
    worker.opened.push_async_callback(index.close)
    tower = _tower(settings, bundle, "user")
    worker.opened.push_async_callback(tower.close)
    pipeline = RecallPipeline(
        View(bundle.encoding, bundle.dim, bundle.version, view.collection),
        users,
        vectors,
        tower,
        index,
        context.clock,
        StepTimeouts(settings.store_timeout_ms, settings.tower_timeout_ms, settings.index_timeout_ms),
    )
    answers = settings.topic("recall-candidates")
    reply_partitions = await until_done(lambda: topics.partition_count(settings, answers), _ignore)
    attach(worker.app, settings.topic("recall-requests"), RecallAgent(context, pipeline, reply_partitions))
    worker.background += [index.keep_opening, partial(_follow, vectors)]
    worker.missing = lambda: None if index.is_open else "the index"


async def _active_bundle(settings: Settings) -> tuple[Bundle, views.ActiveView]:
    view = await until_done(lambda: views.read_active(settings), _ignore)
    if view is None:
        raise ConfigurationError("no bundle is active; make one: recall model fit --data movielens-1m")
    try:
        bundle = load_bundle(view.bundle)
    except BundleError as error:
        raise ConfigurationError(str(error)) from error
    if bundle.version != view.version:
        raise ConfigurationError(f"{view.bundle} holds version {bundle.version}, the active one is {view.version}")
    return bundle, view


def _collection(bundle: Bundle, view: views.ActiveView) -> Collection:
    return Collection(view.collection, bundle.dim, bundle.metric, bundle.version)


def _tower(settings: Settings, bundle: Bundle, side: str) -> OnnxTower:
    encoding, dim, timeout_ms = bundle.encoding, bundle.dim, settings.tower_timeout_ms
    if side == "user":
        inputs, outputs = signature.user_inputs(encoding, dim), signature.user_outputs(dim)
        return OnnxTower(bundle.user_tower, inputs, outputs, timeout_ms)
    return OnnxTower(bundle.item_tower, signature.item_inputs(encoding), signature.item_outputs(dim), timeout_ms)


async def _follow(vectors: VectorCache) -> None:
    """Keep the cache of history vectors fresh, and know of deletes."""
    while True:
        await vectors.refresh()
        await asyncio.sleep(FEED_EVERY_S)


def _ignore(_: DependencyError) -> None:
    """Waiting at start is logged by the retry itself."""
