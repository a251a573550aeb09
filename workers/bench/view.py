"""A view to measure on: towers fitted on generated films, the catalogue streamed in, users with full histories."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models import signature, tensors
from models.bundle import Bundle
from models.datasets.dataset import Dataset
from models.datasets.generated import generate
from models.fit import FitOptions, fit
from models.spec import builtin_spec, load_spec
from schemas.items import ItemUpdate
from schemas.records import HISTORY_ROW, MAX_HISTORY_ROWS, SEEN_ENTRY, TOKEN_BYTES, ProfileField, UserRecord, hash64
from workers import topics, views
from workers.bench.home import Home, Workers
from workers.index.milvus_collection import merged, seal
from workers.index.schema import Collection
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.ports import UserChange
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable
from workers.towers.onnx import OnnxTower

FIT_ITEMS = 4000
FIT_USERS = 3000
FIT_EVENTS = 150_000
USERS = 10_000
SPREAD = 0.5  # of a film's vector about that of the film it is like, in standard deviations of all
TOWER_TIMEOUT_MS = 60_000
MERGED_WITHIN_S = 120.0
MINUTE_MS = 60_000
WRITTEN_AT_ONCE = 1000
PROFILE: tuple[ProfileField, ...] = (("age", "3", 1), ("gender", "F", 1), ("occupation", "7", 1))


@dataclass(frozen=True)
class BenchView:
    """A running view: its settings and bundle, its workers, who may ask, and what streaming the catalogue in cost."""

    settings: Settings
    bundle: Bundle
    workers: Workers
    users: Sequence[str]
    throughput: dict[str, Any]


def open_view(home: Home, items: int) -> BenchView:
    """Fit, start workers, stream `items` items in, write users."""
    index_type = "HNSW" if items >= home.settings.index_flat_below else "FLAT"
    settings = home.settings.model_copy(update={"namespace": f"items{items}", "index_type": index_type})
    home.say(f"fitting towers for {FIT_ITEMS:,} generated films")
    dataset = generate(items=FIT_ITEMS, users=FIT_USERS, events=FIT_EVENTS)
    spec = builtin_spec(dataset.spec)
    log, features = dataset.log, spec.read_text()
    options = FitOptions(dim=64, polish=False)
    folder = settings.data_dir / "bundles"
    bundle = fit(log, dataset.catalogue(), load_spec(spec), features, folder, options, lambda *_: None)
    asyncio.run(_activate(settings, bundle))
    workers = home.workers(settings)
    home.say(f"streaming {items:,} items in")
    throughput = _stream_items(settings, bundle, list(_catalogue(dataset, bundle, items)), workers)
    popular = np.bincount(dataset.item, minlength=FIT_ITEMS) + 1.0
    users = [f"reader-{n}" for n in range(USERS)]
    home.say(f"writing {USERS:,} users with {MAX_HISTORY_ROWS} events each")
    asyncio.run(write_users(settings, users, dataset.item_ids, popular / popular.sum()))
    return BenchView(settings, bundle, workers, users, throughput)


def _catalogue(dataset: Dataset, bundle: Bundle, items: int) -> Iterator[ItemUpdate]:
    """The films that were fitted, and beyond them films like these, each with a vector near that of its model.

    A catalogue so much larger than what was fitted would else consist of items without a history of their own, many of
    them with one and the same vector, which no index finds its way through.
    """
    yield from dataset.items()
    tower = OnnxTower(
        bundle.item_tower, signature.item_inputs(bundle.encoding), signature.item_outputs(bundle.dim), TOWER_TIMEOUT_MS
    )
    inputs = tensors.item_inputs(dataset.item_ids, dataset.attributes, bundle.encoding)
    vectors = tower.run(inputs)[signature.ITEM_EMBEDDING]
    rng, spread = np.random.default_rng(3), SPREAD * vectors.std(axis=0)
    for n in range(FIT_ITEMS, items):
        like = n % FIT_ITEMS
        vector = vectors[like] + spread * rng.standard_normal(bundle.dim).astype(np.float32)
        yield ItemUpdate(
            item_id=f"film-{n}",
            op="upsert",
            timestamp_ms=int(dataset.item_added_ms[like]),
            attributes=dataset.attributes[like],
            embedding=vector.tolist(),
            embedding_model=bundle.version,
        )


async def _activate(settings: Settings, bundle: Bundle) -> None:
    await topics.apply(settings)
    await views.activate(settings, bundle.path, bundle.version)


def fitted(item_id: str) -> str:
    """The film of the fit that a film of the catalogue is like; itself, if it was fitted."""
    return f"film-{int(item_id.removeprefix('film-')) % FIT_ITEMS}"


def _stream_items(settings: Settings, bundle: Bundle, updates: list[ItemUpdate], workers: Workers) -> dict[str, Any]:
    """The catalogue over Kafka; then it is sealed, indexed and merged, as it is minutes later."""
    before, began_s = workers.scrape("items"), time.perf_counter()

    async def stream() -> tuple[float, int]:
        await produce(settings, settings.topic("item-updates"), item_messages(updates))
        await wait_for_items(settings)
        took_s = time.perf_counter() - began_s
        name = settings.collection(bundle.version)
        collection = Collection(name, bundle.dim, bundle.metric, bundle.version)
        await seal(settings, collection)
        return took_s, await merged(settings, collection, MERGED_WITHIN_S)

    took_s, segments = asyncio.run(stream())
    cpu_s = workers.scrape("items").cpu_s - before.cpu_s
    return {
        "items": len(updates),
        "index_type": settings.index_type,
        "segments": segments,
        "items_per_s": round(len(updates) / took_s),
        "items_per_s_per_core": round(len(updates) / cpu_s),
        "cpu_us_per_item": round(cpu_s / len(updates) * 1e6, 1),
    }


async def write_users(settings: Settings, users: Sequence[str], item_ids: Sequence[str], chance: Any) -> None:
    """Records with full histories and their seen sets, made the way the activity worker stores them."""
    table = RedisUserTable(connect(settings), settings)
    try:
        changes = _changes(users, item_ids, chance)
        while batch := [change for change, _ in zip(changes, range(WRITTEN_AT_ONCE), strict=False)]:
            await table.write(batch)
    finally:
        await table.close()


def _changes(users: Sequence[str], item_ids: Sequence[str], chance: Any) -> Iterator[UserChange]:
    rng = np.random.default_rng(11)
    hashes = np.array([hash64(item_id) for item_id in item_ids], dtype=np.uint64)
    now_ms = time.time_ns() // 1_000_000
    draw = partial(rng.choice, len(hashes), size=MAX_HISTORY_ROWS, p=chance)
    pool = [draw() for _ in range(min(len(users), WRITTEN_AT_ONCE))]  # a draw of a large catalogue takes a while
    rows = np.zeros(MAX_HISTORY_ROWS, dtype=HISTORY_ROW)
    seen = np.zeros(MAX_HISTORY_ROWS, dtype=SEEN_ENTRY)
    rows["action"], rows["value"] = hash64("rate"), 5.0
    for n, user in enumerate(users):
        times_ms = now_ms - 60 * MINUTE_MS + np.sort(rng.integers(0, 59 * MINUTE_MS, MAX_HISTORY_ROWS))
        rows["timestamp_ms"] = seen["timestamp_ms"] = times_ms
        rows["event"] = rng.integers(1, 2**63, MAX_HISTORY_ROWS)
        rows["item"] = seen["item"] = hashes[pool[n % len(pool)]]
        record = UserRecord(
            token=os.urandom(TOKEN_BYTES),
            count=MAX_HISTORY_ROWS,
            floor=(int(times_ms[0]) - 1).to_bytes(8, "big") + bytes(8),
            history=rows.tobytes(),
            profile=PROFILE,
        )
        yield UserChange(user, b"", record.encode(), seen.tobytes())
