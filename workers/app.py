"""The composition root: settings and kinds in, a running worker process out. Nothing is created at import.

activity   user-activity   -> ActivityPipeline -> user table and popular counts
items      item-updates    -> ItemsPipeline    -> index and item table of the active view
recall     recall-requests -> RecallPipeline   -> recall-candidates

A worker that writes waits at start for what it needs; one that answers starts as soon as Kafka is there, and answers
`degraded` until the rest is.
"""

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import structlog

from models import tensors
from models.bundle import Bundle
from workers import topics, views
from workers.agents import Context, EventAgent, RecallAgent, attach
from workers.cancelling import cancel
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.doctor import start
from workers.ending import or_end_process, stopping_on_signals
from workers.engine import leave_and_end, run_until
from workers.errors import ConfigurationError
from workers.health import Condition, HealthServer, all_of
from workers.index.in_process import HeldIndex
from workers.index.opening import Indexes
from workers.index.schema import Collection
from workers.inflight import BatchPolicy
from workers.kafka_client import end_offsets, history_ends
from workers.late_writes import LateWrites
from workers.metrics import Metrics
from workers.pipelines.activity import ActivityPipeline
from workers.pipelines.activity_event import decode_activity
from workers.pipelines.item_order import ItemEvent, decode_item
from workers.pipelines.items import ItemsPipeline, ItemsResult, ItemsView, LogEnds
from workers.pipelines.opening import OpeningRecall
from workers.pipelines.popular_counts import PopularCounts, Spans
from workers.pipelines.recall import RecallPipeline
from workers.popularity import Popularity
from workers.ports import Clock
from workers.publisher import Publisher, ask_broker, partitions_known
from workers.recall_parts import Tools, open_recall_parts
from workers.reconcile.examine import Parts
from workers.refill import ONE_BATCH, Refill
from workers.retry import until_done
from workers.settings import AgentKind, Settings
from workers.stopwatch import Observe
from workers.stores import keys
from workers.stores.connect import close, connect, ping
from workers.stores.item_ends import note_ends
from workers.stores.item_redis import RedisItemTable
from workers.stores.markers_redis import RedisMarkers
from workers.stores.popular_redis import RedisPopularTable
from workers.stores.same_redis import SameRedis
from workers.stores.user_redis import GROUP as ACTIVITY_GROUP
from workers.stores.user_redis import RedisUserTable
from workers.towers.opening import open_tower
from workers.transport import create_app
from workers.watchdog import Watchdog
from workers.winners import WinnersAgain
from workers.worker import Worker

LOOK_EVERY_S = 0.5
RESTARTS_VARIABLE = "RECALL_RESTARTS"  # set by the supervisor
POLICIES: dict[AgentKind, BatchPolicy] = {
    "activity": BatchPolicy(max_batch=1024, in_flight=1, max_span=ONE_BATCH),
    "items": BatchPolicy(max_batch=1024, in_flight=1),
    "recall": BatchPolicy(max_batch=1024, in_flight=1),  # which the intake cuts: see IntakePolicy
}

T = TypeVar("T")

log = structlog.get_logger()


async def run(settings: Settings, kinds: Sequence[AgentKind]) -> None:
    """Run workers of these kinds in this process until SIGTERM or SIGINT. Raises ConfigurationError."""
    async with AsyncExitStack() as opened:
        stopping = stopping_on_signals()
        metrics = Metrics()
        indexes = Indexes(settings, opened)
        workers = [Worker(kind, settings, metrics, Dependencies(kind, metrics), opened, indexes) for kind in kinds]
        for kind in kinds:
            metrics.restarts.labels(kind).set(int(os.environ.get(RESTARTS_VARIABLE, "0")))
        if settings.web_port:
            pages = HealthServer(
                partial(_render, metrics, workers),
                lambda: all_of(worker.live() for worker in workers),
                lambda: all_of(worker.ready() for worker in workers),
                settings.hide,
            )
            await pages.start(settings.web_bind, settings.web_port)
            opened.push_async_callback(pages.close)
        watchdog = Watchdog(settings.stuck_after_ms / 1000, [each for worker in workers for each in worker.watched()])
        watching = asyncio.create_task(watchdog.run())
        opened.push_async_callback(cancel, watching)
        await _together([_work(worker, stopping) for worker in workers], stopping)


async def _together(work: Sequence[Coroutine[Any, Any, None]], stopping: asyncio.Event) -> None:
    """All kinds of a process: when one cannot work, none does, and the others drain. Raises what came first."""
    tasks = [asyncio.create_task(each) for each in work]
    first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    stopping.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in (*first, *tasks):
        task.result()


def _render(metrics: Metrics, workers: Sequence[Worker]) -> bytes:
    for worker in workers:
        worker.measure()
    return metrics.render()


async def _work(worker: Worker, stopping: asyncio.Event) -> None:
    """One kind: wait for what it needs, run, drain."""
    structlog.contextvars.bind_contextvars(kind=worker.kind)
    log.info("worker starts")
    try:
        if not await _unless(stopping, _compose(worker)):
            return
        _settle()
        work = [worker.dependencies.watch(worker.probes), _tell_readiness(worker)]
        work += [background() for background in worker.background]
        tasks = [asyncio.create_task(background) for background in work]
        for task in tasks:
            task.add_done_callback(partial(_stop_after_failure, stopping))
        try:
            await run_until(worker.app, stopping)
        finally:
            await cancel(*tasks)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    finally:
        log.info("worker ends")


def _stop_after_failure(stopping: asyncio.Event, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        stopping.set()


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> bool:
    """Do some work, or give it up when it is time to stop; whether it was done."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    done = task.done()
    await cancel(stop, task)
    if done:
        task.result()
    return done


async def _tell_readiness(worker: Worker) -> None:
    """One log line whenever the worker becomes ready, or waits for something."""
    before: Condition | None = None
    while True:
        now = worker.ready()
        if before is None or now.well != before.well:
            log.info("worker ready" if now.well else "worker not ready", detail=now.detail)
        before = now
        await asyncio.sleep(LOOK_EVERY_S)


async def _compose(worker: Worker) -> None:
    """Everything between a worker's topic and its backends."""
    settings, dependencies = worker.settings, worker.dependencies
    worker.waiting = lambda: "kafka"
    await until_done(lambda: start.check_kafka(settings, [worker.kind]), dependencies)
    worker.waiting = lambda: None
    await {"activity": _activity, "items": _items, "recall": _recall}[worker.kind](worker)


async def _activity(worker: Worker) -> None:
    bundle, _ = await until_done(lambda: _active_bundle(worker), worker.dependencies)
    client, same = await _kept_redis(worker)
    settings, spec = worker.settings, bundle.spec
    markers, popularity = RedisMarkers(client, settings, ACTIVITY_GROUP), Popularity(bundle.encoding)
    counts = RedisPopularTable(client, settings, popularity.definition)
    refill = Refill(markers, worker.dependencies, counts, popularity.definition)
    context = _context(worker, ACTIVITY_GROUP, refill, same)
    users, popular = RedisUserTable(client, settings, markers), PopularCounts(counts, popularity)
    pipeline = ActivityPipeline(users, spec.seen_actions, spec.actions, context.observe, popular)
    attach(worker.app, settings.topic("user-activity"), EventAgent(context, decode_activity, pipeline.run))


async def _items(worker: Worker) -> None:
    settings = worker.settings
    bundle, view = await until_done(lambda: _active_bundle(worker), worker.dependencies)
    tower = await until_done(lambda: open_tower(bundle, "item", settings), worker.dependencies)
    worker.tower = tower
    worker.opened.push_async_callback(tower.close)
    worker.probes["tower"] = tower.ping
    client, same = await _kept_redis(worker)
    group = keys.items_group(view.collection)
    table = RedisItemTable(client, settings, view.collection, bundle.dim)
    rows = len(bundle.encoding.vocabularies.item_ids)
    collection, markers = _collection(bundle, view), RedisMarkers(client, settings, group)
    await until_done(lambda: _forget_what_is_gone(worker, collection, markers, same), worker.dependencies)
    index, held = await until_done(lambda: worker.indexes.prepare(collection, rows), worker.dependencies)
    worker.probes[settings.index] = index.ping
    deletions_ms = topics.DELETE_RETENTION_MS if held is None else None  # that one is made of the topic at every start
    refill = Refill(markers, worker.dependencies, deletions_ms=deletions_ms, held=held)
    worker.missed_deletions = refill.missed_deletions
    context = _context(worker, group, refill, same)
    topic = settings.topic("item-updates")
    log_ends = partial(end_offsets, settings, topic)
    ends = await until_done(lambda: _noted_ends(client, settings, view.collection, group), worker.dependencies)
    items = ItemsView(bundle.dim, bundle.version, tuple(bundle.spec.filterable), partitions=len(ends))
    inputs = partial(tensors.item_inputs, encoding=bundle.encoding)
    winners = WinnersAgain(partial(context.outbox.send_all, topic), context.count_events, ends)
    pipeline = ItemsPipeline(items, table, index, tower, inputs, context.observe, winners.produce, log_ends)
    attach(
        worker.app, topic, EventAgent(context, decode_item, await _following(worker, pipeline, held, refill, log_ends))
    )
    parts = Parts(items, view.collection, bundle.metric, table, index, tower, inputs)
    late = LateWrites(parts, pipeline, lambda: worker.facts().partitions, context.count_events)
    worker.background.append(lambda: late.watch(lambda look: until_done(look, worker.dependencies)))


async def _forget_what_is_gone(worker: Worker, collection: Collection, markers: RedisMarkers, same: SameRedis) -> None:
    """A view whose collection is not there is read from the beginning, whatever Redis has of it.

    Returns when Redis will not lose that any more: once the collection is there again, nobody would notice. Who comes
    second has nothing to forget, and waits all the same: the first may have done so a moment ago, and be gone.
    """
    if await worker.indexes.gone(collection) and await markers.forget():
        log.warning("the collection is gone: reading item-updates again", collection=collection.name)
        await asyncio.sleep(worker.settings.redis_durability_ms / 1000)
        await same.check()


async def _following(
    worker: Worker, pipeline: ItemsPipeline, held: HeldIndex | None, refill: Refill, ends: LogEnds
) -> Callable[[Sequence[ItemEvent], Spans], Awaitable[ItemsResult]]:
    """What runs batches of item updates; an index of this process begins with its snapshot, and follows the topic."""
    if held is None:
        return lambda batch, _: pipeline.run(batch)
    await held.restore(await until_done(ends, worker.dependencies))
    held.missing = refill.missing
    if every_ms := worker.settings.index_snapshot_ms:
        worker.background.append(lambda: held.keep(every_ms))
        worker.opened.push_async_callback(held.save)

    async def run(batch: Sequence[ItemEvent], spans: Spans) -> ItemsResult:
        result = await pipeline.run(batch)
        held.took_in(spans)
        return result

    return run


async def _noted_ends(client: Any, settings: Settings, collection: str, group: str) -> dict[int, int]:
    """Where the history of the item topic ends for this view, which that group feeds. Raises DependencyError."""
    ends = await history_ends(settings, settings.group(group), settings.topic("item-updates"))
    return await note_ends(client, settings, collection, ends)


async def _recall(worker: Worker) -> None:
    settings = worker.settings
    answers = settings.topic("recall-candidates")
    at_start = await until_done(lambda: topics.partition_count(settings, answers), worker.dependencies)
    context = _context(worker, "recall-requests")
    opening = OpeningRecall(
        partial(open_recall, worker, context.clock, context.observe), context.clock, worker.dependencies, settings.index
    )
    users = RedisUserTable(_redis(worker, worker.opened), settings)
    redis = worker.dependencies.breaker("redis")

    def readable() -> RedisUserTable | None:
        return users if opening.is_open and redis.open_since_s is None else None

    agent = RecallAgent(context, opening, lambda: partitions_known(worker.app, answers) or at_start, readable)
    attach(worker.app, settings.topic("recall-requests"), agent)
    await opening.try_open()
    worker.waiting = lambda: None if opening.is_open else "the active bundle, its tables and its index"
    worker.background.append(opening.keep_opening)


async def open_recall(worker: Worker, clock: Clock, observe: Observe) -> RecallPipeline:
    """What answers requests. Raises DependencyError while a part is missing, and holds nothing open then."""
    async with AsyncExitStack() as opened:
        active = await _active_bundle(worker)
        client = _redis(worker, opened)
        tools = Tools(clock, worker.dependencies, worker.metrics, observe, _spawn)
        ready = await open_recall_parts(worker.settings, active, client, tools, opened, worker.indexes.open)
        worker.probes |= ready.probes
        worker.tower = ready.tower
        worker.opened.push_async_exit(opened.pop_all())
        _settle()
        return ready.pipeline


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(or_end_process(work))


def _settle() -> None:
    """What was loaded stays: garbage collections no longer walk it."""
    gc.collect()
    gc.freeze()


async def _active_bundle(worker: Worker) -> tuple[Bundle, views.ActiveView]:
    """The active bundle, verified, of a Redis that keeps it. Raises DependencyError while Redis does not answer.

    Raises ConfigurationError when Redis is unsafe, and when there is no such bundle.
    """
    if not worker.redis_checked:
        await start.check_redis(worker.settings)
        worker.redis_checked = True
    view = await views.read_or_put_back(worker.settings)
    if view is None:
        raise ConfigurationError("no bundle is active; make one: recall model fit --data movielens-1m")
    bundle = views.load(view)
    views.remember(worker.settings, view)
    worker.metrics.info.labels(worker.kind, version("recall-worker"), bundle.version, view.collection).set(1)
    return bundle, view


def _context(worker: Worker, group: str, refill: Refill | None = None, same: SameRedis | None = None) -> Context:
    """The engine of one consumer group, and what its agent shares. `refill` and `same` for one that writes to Redis."""
    settings = worker.settings
    worker.app = create_app(settings.group(group), settings, POLICIES[worker.kind], refill)
    if refill is not None:
        worker.filling = refill.missing
        worker.background.append(lambda: or_end_process(refill.watch(), partial(leave_and_end, worker.app)))
    if same is not None:
        worker.app.recall_before_commit = same.check
    worker.probes["kafka"] = partial(ask_broker, worker.app)
    publisher = Publisher(worker.app, settings.publish_timeout_ms)
    context = Context(worker.kind, settings, publisher, worker.metrics, worker.dependencies, SystemClock())
    worker.paused = context.giving_up.pause.missing
    worker.opened.push_async_callback(context.giving_up.pause.close)
    return context


def _redis(worker: Worker, opened: AsyncExitStack) -> Any:
    client = connect(worker.settings)
    opened.push_async_callback(close, client)
    worker.probes["redis"] = partial(ping, client)
    return client


async def _kept_redis(worker: Worker) -> tuple[Any, SameRedis]:
    """A client for what must last. Another Redis in its place ends the process; a commit waits for its answer."""
    client = _redis(worker, worker.opened)
    same = SameRedis(client, lambda: leave_and_end(worker.app))
    await until_done(same.begin, worker.dependencies)
    worker.probes["redis"] = same.check
    return client, same


def _collection(bundle: Bundle, view: views.ActiveView) -> Collection:
    return Collection(view.collection, bundle.dim, bundle.metric, bundle.version)
