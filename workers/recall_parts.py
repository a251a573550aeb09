"""Opens everything that answers requests of one view: tables, tower, index and sources. For the worker and others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.bundle import Bundle
from workers.cancelling import cancel
from workers.dependencies import Dependencies, Probe
from workers.extractors import with_code
from workers.features.of_spec import open_sourcing
from workers.features.opening import configured
from workers.index.opening import open_index
from workers.index.schema import Collection
from workers.metrics import Metrics
from workers.pipelines.admission import View
from workers.pipelines.ladder import Ladder
from workers.pipelines.recall import Parts, RecallPipeline, StepTimeouts
from workers.plans import plans
from workers.popularity import Popularity
from workers.ports import Clock, ItemIndex, Tower
from workers.remembered import LastLists, Results
from workers.retry import until_done
from workers.settings import Settings
from workers.sources.nearest import SessionSource, SimilarSource, TowerSource
from workers.sources.popular import PopularLists, PopularSource
from workers.stopwatch import Observe, unobserved
from workers.stores.item_facts import ItemFacts
from workers.stores.item_follower import ItemFollower
from workers.stores.item_redis import RedisItemTable
from workers.stores.popular_redis import RedisPopularTable
from workers.stores.user_redis import RedisUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.opening import open_tower
from workers.views import ActiveView

FEED_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Tools:
    """What opened parts tell the outside with."""

    clock: Clock
    dependencies: Dependencies
    metrics: Metrics
    observe: Observe = unobserved
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task


@dataclass(frozen=True, slots=True)
class RecallParts:
    """What was opened. The tasks that keep it fresh run already; `probes` ask what can be asked for its health."""

    view: View
    parts: Parts
    index: ItemIndex
    popular: PopularLists
    pipeline: RecallPipeline
    tower: Tower
    probes: dict[str, Probe]


async def open_recall_parts(
    settings: Settings,
    active: tuple[Bundle, ActiveView],
    client: Any,
    tools: Tools,
    opened: AsyncExitStack,
    shared: Callable[[Collection], Awaitable[ItemIndex]] | None = None,
) -> RecallParts:
    """Open what the active bundle needs; `opened` closes it. `client` is Redis'. `shared` opens the process's indexes.

    Raises DependencyError while something is missing, and ConfigurationError when it cannot work.
    """
    bundle, names = active
    spec = bundle.spec
    encoding = with_code(bundle, settings, tools.metrics).encoding
    configured(settings, spec)  # before anything is waited for
    view = View(encoding, bundle.dim, bundle.version, names.collection, plans(settings.scenes, spec))
    tower = await open_tower(bundle, "user", settings)
    opened.push_async_callback(tower.close)
    collection = Collection(names.collection, bundle.dim, bundle.metric, bundle.version)
    index = await (shared(collection) if shared is not None else open_index(settings, collection))
    opened.push_async_callback(index.close)
    table = RedisItemTable(client, settings, names.collection, bundle.dim)
    vectors = VectorCache(table, bundle.dim, looked_up=_counted(tools.metrics))
    facts = ItemFacts(table, tuple(spec.filterable))
    popularity = Popularity(bundle.encoding)
    counts = RedisPopularTable(client, settings, popularity.definition)
    popular = PopularLists(counts, facts, popularity.segments)
    sourcing, probes = await open_sourcing(settings, spec, tools.dependencies, tools.metrics, opened)
    parts = Parts(
        users=RedisUserTable(client, settings),
        items=vectors,
        facts=facts,
        tower=tower,
        sources={
            "tower": TowerSource(index, settings.index),
            "session": SessionSource(index, settings.index),
            "similar": SimilarSource(index, settings.index),
            "popular": PopularSource(popular),
        },
        ladder=Ladder(popular, LastLists(settings.last_lists, settings.last_list_ttl_ms)),
        results=Results(settings.reuse_ms, looked_up=_reused(tools.metrics)),
        sourcing=sourcing,
    )
    timeouts = StepTimeouts(settings.store_timeout_ms, settings.tower_timeout_ms, settings.index_timeout_ms)
    pipeline = RecallPipeline(view, parts, tools.clock, timeouts, tools.dependencies, tools.observe)
    follower = ItemFollower(table, vectors, facts, popular)

    async def refresh() -> None:
        parts.expire()  # first, so that it is done while Redis is away, too
        await follower.refresh()

    follow = _repeat(refresh, partial(asyncio.sleep, FEED_EVERY_S), tools.dependencies)
    renew = _repeat(popular.refresh, partial(popular.due, settings.popular_refresh_ms / 1000), tools.dependencies)
    for work in (follow, renew):
        opened.push_async_callback(cancel, tools.spawn(work))
    probes |= {settings.index: index.ping, "tower": tower.ping}
    return RecallParts(view, parts, index, popular, pipeline, tower, probes)


def _counted(metrics: Metrics) -> Callable[[int, int], None]:
    hit, miss = metrics.vector_cache.labels("hit"), metrics.vector_cache.labels("miss")

    def looked_up(hits: int, misses: int) -> None:
        hit.inc(hits)
        miss.inc(misses)

    return looked_up


def _reused(metrics: Metrics) -> Callable[[bool], None]:
    hit, miss = metrics.reused.labels("hit"), metrics.reused.labels("miss")

    def looked_up(found: bool) -> None:
        (hit if found else miss).inc()

    return looked_up


async def _repeat(
    work: Callable[[], Awaitable[None]], due: Callable[[], Awaitable[None]], dependencies: Dependencies
) -> None:
    """Keep something fresh, until cancelled."""
    while True:
        await until_done(work, dependencies)
        await due()
