"""A view to measure on: towers fitted on generated films, the catalogue streamed in, users with full histories."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.datasets.dataset import Dataset
from models.datasets.generated import generate
from models.fit import FitOptions, fit
from models.spec import builtin_spec, load_spec
from schemas.records import HISTORY_ROW, MAX_HISTORY_ROWS, SEEN_ENTRY, TOKEN_BYTES, ProfileField, UserRecord, hash64
from workers import topics, views
from workers.bench.home import Home, Workers
from workers.cli.items import item_messages, wait_for_items
from workers.index.milvus_collection import seal
from workers.index.schema import Collection
from workers.kafka_client import produce
from workers.ports import UserChange
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable

FIT_USERS = 3000
FIT_EVENTS = 150_000
USERS = 10_000
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
    settings = home.settings.model_copy(update={"namespace": f"items{items}"})
    home.say(f"fitting towers for {items:,} generated films")
    dataset = generate(items=items, users=FIT_USERS, events=FIT_EVENTS)
    spec = builtin_spec(dataset.spec)
    log, features = dataset.log, spec.read_text()
    options = FitOptions(dim=64, polish=False)
    folder = settings.data_dir / "bundles"
    bundle = fit(log, dataset.catalogue(), load_spec(spec), features, folder, options, lambda *_: None)
    asyncio.run(_activate(settings, bundle))
    workers = home.workers(settings)
    home.say(f"streaming {items:,} items in")
    throughput = _stream_items(settings, bundle, dataset, workers)
    popular = np.bincount(dataset.item, minlength=items) + 1.0
    users = [f"reader-{n}" for n in range(USERS)]
    home.say(f"writing {USERS:,} users with {MAX_HISTORY_ROWS} events each")
    asyncio.run(write_users(settings, users, dataset.item_ids, popular / popular.sum()))
    return BenchView(settings, bundle, workers, users, throughput)


async def _activate(settings: Settings, bundle: Bundle) -> None:
    await topics.apply(settings)
    await views.activate(settings, bundle.path, bundle.version)


def _stream_items(settings: Settings, bundle: Bundle, dataset: Dataset, workers: Workers) -> dict[str, Any]:
    """The catalogue over Kafka; then what was streamed in is sealed and indexed, as after every bulk load."""
    before, began_s = workers.scrape("items"), time.perf_counter()

    async def stream() -> float:
        await produce(settings, settings.topic("item-updates"), item_messages(list(dataset.items())))
        await wait_for_items(settings)
        took_s = time.perf_counter() - began_s
        name = settings.collection(bundle.version)
        await seal(settings, Collection(name, bundle.dim, bundle.metric, bundle.version))
        return took_s

    took_s = asyncio.run(stream())
    cpu_s = workers.scrape("items").cpu_s - before.cpu_s
    count = len(dataset.item_ids)
    return {
        "items_per_s": round(count / took_s),
        "items_per_s_per_core": round(count / cpu_s),
        "cpu_us_per_item": round(cpu_s / count * 1e6, 1),
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
