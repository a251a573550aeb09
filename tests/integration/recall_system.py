"""A recall pipeline with everything in memory but the user tower, which is the real one. Imported where it is used."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from models import signature
from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.tensors import item_inputs
from schemas import codec
from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from schemas.records import ItemRecord, UserRecord, hash64, hash64_each
from tests.e2e.conftest import fit_small
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.merge import merge
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming, View
from workers.pipelines.ladder import Ladder
from workers.pipelines.recall import Parts, RecallPipeline, StepTimeouts
from workers.plans import plans
from workers.ports import Float32, IndexRows, ItemTable, PopularChange, Tower, UInt64, UserChange
from workers.remembered import LastLists, Results
from workers.scenes import SceneSettings
from workers.sources.nearest import SessionSource, SimilarSource, TowerSource
from workers.sources.popular import PopularLists, PopularSource
from workers.stores.item_facts import ItemFacts
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable
from workers.stores.popular_memory import MemoryPopularTable
from workers.stores.user_memory import MemoryUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.onnx import OnnxTower

ITEMS = 60
PATIENT = StepTimeouts(store_ms=5000, tower_ms=5000, index_ms=5000)  # a busy machine is no finding
SHORT_MS = 400  # where something never answers
STEPS = {"users": "store_ms", "tower": "tower_ms", "index": "index_ms"}
DATASET = generate(items=ITEMS, users=60, events=2500)


def short(part: str) -> StepTimeouts:
    """Patient but with this part, which never answers."""
    return replace(PATIENT, **{STEPS[part]: SHORT_MS})


class System:
    """All the parts; `pipeline` puts them together, with others in their places where a test says so."""

    def __init__(self, bundle: Bundle) -> None:
        dim = bundle.dim
        self.bundle = bundle
        self.dataset: Dataset = DATASET
        self.users = MemoryUserTable()
        self.table = MemoryItemTable(dim)
        self.vectors = VectorCache(self.table, dim)
        self.facts = ItemFacts(self.table, tuple(bundle.spec.filterable))
        self.follower = ItemFollower(self.table, self.vectors, self.facts)
        self.counts = MemoryPopularTable()
        self.popular = PopularLists(self.counts, self.facts, [])
        self.index = MemoryItemIndex(Collection("c", dim, bundle.metric, bundle.version))
        inputs, outputs = signature.user_inputs(bundle.encoding, dim), signature.user_outputs(dim)
        self.tower = OnnxTower(bundle.user_tower, inputs, outputs, PATIENT.tower_ms)

    async def fill(self) -> None:
        """The catalogue is in; `known` has liked film-3; film-5 is the most popular, then film-3, then others."""
        inputs, outputs = signature.item_inputs(self.bundle.encoding), signature.item_outputs(self.bundle.dim)
        tower = OnnxTower(self.bundle.item_tower, inputs, outputs, 1000)
        dataset = self.dataset
        vectors = tower.run(item_inputs(dataset.item_ids, dataset.attributes, self.bundle.encoding))
        await tower.close()
        self.item_vectors: Float32 = vectors["item_embedding"]
        self.history_vectors: Float32 = vectors["history_embedding"]
        await self.index.upsert(IndexRows(dataset.item_ids, self.item_vectors, dataset.attributes))
        rows = zip(dataset.items(), self.history_vectors, strict=True)
        records = [
            ItemRecord(update.item_id, 0, n, history_vector=row.tobytes(), update=codec.encode_event(update))
            for n, (update, row) in enumerate(rows)
        ]
        await self.table.write(records, [None] * len(records))
        await self.follower.refresh()
        await self.like("known", ["film-3"])
        amounts = {"film-5": 100, "film-3": 90} | {f"film-{n}": 60 - n for n in range(10, 50)}
        counts = {hash64(item_id): amount for item_id, amount in amounts.items()}
        await self.counts.add([PopularChange(0, 0, 1, {(1, ""): counts})])
        await self.popular.refresh()

    def pipeline(
        self, *, scenes: dict[str, dict[str, object]] | None = None, reuse_ms: int = 0, **others: Any
    ) -> RecallPipeline:
        index = others.get("index", self.index)
        declared = {name: SceneSettings.model_validate(scene) for name, scene in (scenes or {}).items()}
        view = View(self.bundle.encoding, self.bundle.dim, "v", "c", plans(declared, self.bundle.spec))
        parts = Parts(
            users=others.get("users", self.users),
            items=others.get("items", self.vectors),
            facts=others.get("facts", self.facts),
            tower=others.get("tower", self.tower),
            sources={
                "tower": TowerSource(index),
                "session": SessionSource(index),
                "similar": SimilarSource(index),
                "popular": PopularSource(self.popular),
            },
            ladder=Ladder(self.popular, others.get("last") or LastLists(10, 60_000)),
            results=others.get("results") or Results(reuse_ms),
            sourcing=others.get("sourcing"),
        )
        dependencies = others.get("dependencies") or Dependencies("recall", Metrics())
        return RecallPipeline(view, parts, SystemClock(), others.get("timeouts", PATIENT), dependencies)

    async def like(self, user_id: str, item_ids: Sequence[str | None], ago_ms: int = 1000) -> None:
        """Events of a user (None = without an item), the last one `ago_ms` ago, the others a second apart before it."""
        last_ms = SystemClock().now_ms() - ago_ms
        events = [
            UserActivity(
                event_id=f"e-{user_id}-{item_id}",
                user_id=user_id,
                action="rate",
                value=5.0,
                item_id=item_id,
                timestamp_ms=last_ms - 1000 * (len(item_ids) - 1 - n),
            )
            for n, item_id in enumerate(item_ids)
        ]
        (stored,) = await self.users.records([user_id])
        record = UserRecord() if stored is None else UserRecord.decode(stored)
        merged = merge(record, events, frozenset())
        data = merged.record.with_token(os.urandom(8)).encode()
        await self.users.write([UserChange(user_id, b"" if stored is None else record.token, data, merged.seen)])

    async def delete(self, item_id: str) -> None:
        """Delete an item from the table, and tell it; the index has it still."""
        (stored,) = await self.table.read(hash64_each([item_id]))
        assert stored is not None
        await self.table.write([ItemRecord(item_id, 0, 1000, deleted=True)], [stored])
        await self.follower.refresh()

    def nearest(self, vector: Float32) -> list[str]:
        """All items by the inner product with a vector, best first."""
        return [self.dataset.item_ids[n] for n in (-(self.item_vectors @ vector)).argsort().tolist()]

    def liked_vector(self, *item_ids: str) -> Float32:
        """The mean of the history vectors of some items."""
        mean: Float32 = self.history_vectors[[self.dataset.item_ids.index(item) for item in item_ids]].mean(axis=0)
        return mean


def plain_pipeline(bundle: Bundle, tower: Tower, **parts: Any) -> RecallPipeline:
    """One scene, one source, nothing popular, nothing reused: on the `users`, `table`, `vectors` and `index` given."""
    table: ItemTable = parts.get("table") or MemoryItemTable(bundle.dim)
    vectors = parts.get("vectors") or VectorCache(table, bundle.dim)
    facts = ItemFacts(table, ())
    popular = PopularLists(MemoryPopularTable(), facts, [])
    return RecallPipeline(
        View(bundle.encoding, bundle.dim, bundle.version, "c", plans({}, bundle.spec)),
        Parts(
            users=parts.get("users") or MemoryUserTable(),
            items=vectors,
            facts=facts,
            tower=tower,
            sources={"tower": TowerSource(parts["index"])},
            ladder=Ladder(popular, LastLists(0, 0)),
            results=Results(0),
        ),
        SystemClock(),
        StepTimeouts(5000, 5000, 5000),
        Dependencies("recall", Metrics()),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(DATASET, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
async def system(bundle: Bundle) -> AsyncIterator[System]:
    system = System(bundle)
    await system.fill()
    yield system
    await system.tower.close()


def ask(user_id: str = "known", *, taken_ms: int | None = None, **fields: object) -> Incoming:
    values = {"request_id": f"r-{user_id}", "user_id": user_id, "k": 10, "timeout_ms": 10_000} | fields
    return Incoming(RecallRequest(**values), SystemClock().now_ms() if taken_ms is None else taken_ms)


class Broken:
    """A dependency that fails as adapters fail, or never answers: each port's one method that recall calls."""

    def __init__(self, *, name: str = "test", hangs: bool = False) -> None:
        self._name, self._hangs = name, hangs
        self.asked = 0

    async def _fail(self, *_: object) -> None:
        self.asked += 1
        if self._hangs:
            await asyncio.Event().wait()
        raise DependencyUnavailable(self._name, "it is broken")

    def at_hand(self, hashes: UInt64) -> list[None]:
        return [None] * len(hashes)  # of items' facts

    read = embed = search = vectors = _fail
