"""Product pipelines over tables in memory, fed a workload in random batches with rewinds, against the model."""

import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from aiokafka.partitioner import murmur2

from models.tensors import item_inputs
from schemas import codec
from tests.chaos.compare import _items, _users
from tests.chaos.formats import hash64, read_item, read_user
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS, Entry
from tests.chaos.model import Rules, expected
from tests.chaos.rig import DATASET, fit_bundle
from tests.chaos.stored import Row, Stored
from tests.chaos.vectors import ItemTower
from tests.chaos.workload import Workload
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.pipelines.activity import ActivityPipeline
from workers.pipelines.activity_event import decode_activity
from workers.pipelines.item_order import decode_item
from workers.pipelines.items import ItemsPipeline, ItemsView
from workers.stores.item_memory import MemoryItemTable
from workers.stores.user_memory import MemoryUserTable
from workers.towers.onnx import open_tower

NOW_MS = 1_700_000_000_000
PARTITIONS = 4


@dataclass(frozen=True)
class Taken:
    """A record as a worker gets it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def written(seed: int) -> list[Entry]:
    """A workload as the broker would have taken it."""
    catalogue = [(update.item_id, update.attributes or {}) for update in DATASET.items(DATASET.test_ms)]
    workload = Workload(seed, PARTITIONS, catalogue)
    messages = workload.catalogue(NOW_MS) + [m for n in range(150) for m in workload.step(NOW_MS + 100 * n)]
    ends: dict[tuple[str, int], int] = {}
    entries = []
    for n, message in enumerate(messages):
        by_key = (murmur2(message.key) & 0x7FFFFFFF) % PARTITIONS
        place = message.topic, by_key if message.partition is None else message.partition
        ends[place] = ends.get(place, -1) + 1
        entries.append(Entry(*place, ends[place], NOW_MS + n, message.key, message.value))
    return entries


def batches(entries: list[Entry], chance: random.Random) -> list[list[Entry]]:
    """Cut at random; now and then the last ones come again."""
    cut, at = [], 0
    while at < len(entries):
        size = chance.choice([1, 5, 60, 400])
        cut.append(entries[at : at + size])
        at += size if chance.random() < 0.7 else size // 3 + 1
    return cut


@pytest.mark.parametrize("seed", range(3))
async def test_they_agree(seed: int, tmp_path: Path) -> None:
    bundle, entries, chance = fit_bundle(tmp_path), written(seed), random.Random(seed)
    users, items = MemoryUserTable(), MemoryItemTable(bundle.dim)
    index = MemoryItemIndex(Collection("c", bundle.dim, bundle.metric, bundle.version))
    tower = open_tower(bundle, "item", 5000)
    view = ItemsView(bundle.dim, bundle.version, tuple(bundle.spec.filterable))
    pipelines = {
        ACTIVITY: (decode_activity, ActivityPipeline(users, bundle.spec.seen_actions, bundle.spec.actions)),
        ITEMS: (decode_item, ItemsPipeline(view, items, index, tower, partial(item_inputs, encoding=bundle.encoding))),
    }
    for topic, (decode, pipeline) in pipelines.items():
        for batch in batches([entry for entry in entries if entry.topic == topic], chance):
            events = []
            for entry in batch:
                record = Taken(topic, entry.partition, entry.offset, entry.taken_ms, entry.key, entry.value)
                try:
                    events.append(decode(record))
                except codec.DecodeError:
                    continue
            await pipeline.run(events)
    await tower.close()

    topics: dict[str, list[Entry]] = {topic: [] for topic in (ACTIVITY, ITEMS, REQUESTS)}
    for entry in entries:
        topics[entry.topic].append(entry)
    own_tower = ItemTower(bundle.path)
    must = expected(topics, Rules.read(bundle.path))
    records = {item.item_id: item for item in map(read_item, items._records.values())}
    rows = {
        name: [Row(vector.tolist(), index._attributes[name], hash64(name))] for name, vector in index._vectors.items()
    }
    found = {name: read_user(user.record or b"", user.seen) for name, user in users._users.items()}
    stored = Stored(found, records, rows, [])
    assert [*_users(must, stored), *_items(must, stored, own_tower)] == []
    assert len(found) > 10
    assert len(rows) > 50
    assert any(json.loads(item.update or b"{}").get("version") for item in records.values())
