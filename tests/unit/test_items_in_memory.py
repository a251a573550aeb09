"""Item updates on the memory adapters: which event counts, whatever the batches, repetitions and refusals."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64_each
from workers.errors import ConfigurationError, DependencyUnavailable, RowRefused
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.partitioner import partition_of
from workers.pipelines.items import ItemEvent, ItemsPipeline, ItemsResult, ItemsView
from workers.ports import Float32, Hits, IndexRows
from workers.stores.item_memory import MemoryItemTable

DIM = 4
MODEL = "m1"


def inputs(item_ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    return {"value": np.array([row.get("value", 0.0) for row in attributes], dtype=np.float32)}


class ScaleTower:
    """item_embedding = value, history_embedding = -value; a negative value cannot be embedded, 666 is refused."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.down = False
        self.loses = 0  # rows of its outputs

    async def embed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        if self.down:
            raise DependencyUnavailable("tower", "down")
        value = inputs["value"][:, None] * np.ones((1, DIM), dtype=np.float32)
        self.batches.append(len(value))
        if (value == 666).any():
            raise RowRefused("tower", "666 is refused")
        value = np.where(value < 0, np.float32(np.nan), value)[self.loses :]
        return {"item_embedding": value, "history_embedding": -value}

    async def close(self) -> None:
        pass


class PickyIndex(MemoryItemIndex):
    """Refuses rows of value 13 without saying which."""

    async def upsert(self, rows: IndexRows) -> None:
        if (rows.vectors == 13).any():
            raise RowRefused("memory index", "13 is refused")
        await super().upsert(rows)


class View:
    def __init__(self, partitions: int | None = None) -> None:
        self.table = MemoryItemTable(DIM)
        self.index = PickyIndex(Collection("items", DIM, "IP", MODEL))
        self.tower = ScaleTower()
        fields = ItemsView(DIM, MODEL, ("value",), partitions)
        self.pipeline = ItemsPipeline(fields, self.table, self.index, self.tower, inputs)

    async def run(self, *events: ItemEvent) -> ItemsResult:
        return await self.pipeline.run(events)

    async def codes(self, *events: ItemEvent) -> list[str | None]:
        return [None if error is None else str(error.code) for error in (await self.run(*events)).errors]

    async def values(self) -> dict[str, float]:
        """What the index holds: item id -> value."""
        hits: Hits = await self.index.search(np.eye(1, DIM, dtype=np.float32), 1000)
        return dict(zip(hits.item_ids[0], hits.scores[0].tolist(), strict=True))

    async def record(self, item_id: str) -> ItemRecord:
        record = (await self.table.read(hash64_each([item_id])))[0]
        assert record is not None
        return record


def upsert(
    item_id: str, value: float, offset: int, *, partition: int = 0, version: int | None = None, **fields: Any
) -> ItemEvent:
    update = ItemUpdate(
        item_id=item_id, op="upsert", timestamp_ms=1, attributes={"value": value}, version=version, **fields
    )
    return ItemEvent(item_id, update, codec.encode_event(update), partition, offset)


def delete(item_id: str, offset: int, *, partition: int = 0, version: int | None = None) -> ItemEvent:
    update = ItemUpdate(item_id=item_id, op="delete", timestamp_ms=1, version=version)
    return ItemEvent(item_id, update, codec.encode_event(update), partition, offset)


def tombstone(item_id: str, offset: int, *, partition: int = 0) -> ItemEvent:
    return ItemEvent(item_id, None, b"", partition, offset)


@pytest.fixture
def view() -> View:
    return View()


async def test_an_empty_batch_touches_nothing(view: View) -> None:
    view.tower.down = True
    assert await view.run() == ItemsResult([], {})


async def test_the_newest_of_a_batch_counts_and_is_embedded_once(view: View) -> None:
    first, second = upsert("a", 1, 0), upsert("a", 2, 1)
    result = await view.run(first, second, upsert("b", 3, 2))
    assert result.errors == [None] * 3
    assert result.outcomes == {"superseded": 1, "upserted": 2}
    assert await view.values() == {"a": 2, "b": 3}
    assert view.tower.batches == [2]
    record = await view.record("a")
    assert (record.offset, record.update, record.deleted) == (1, second.raw, False)
    assert np.frombuffer(record.history_vector, dtype="<f4").tolist() == [-2.0] * DIM


async def test_what_is_superseded_is_not_embedded_but_its_own_faults_are_told(view: View) -> None:
    unseen = [upsert("a", 1, 0, version=2), upsert("a", 666, 1), upsert("a", -1, 2, version=2)]
    given = upsert("a", 1, 4, embedding=[1.0], embedding_model=MODEL)
    batch = [*unseen, upsert("a", 1, 3, version=1), given, upsert("a", 1, 5, partition=1), upsert("a", 2, 6)]
    again = [None, None, None, None, "invalid_embedding", "wrong_partition", None]
    assert await view.codes(*batch) == [*again[:3], "stale_version", *again[4:]]
    assert await view.codes(*batch) == again
    assert await view.values() == {"a": 2}


@pytest.mark.parametrize("gone", [delete("a", 5), tombstone("a", 5)])
async def test_both_ways_to_delete(view: View, gone: ItemEvent) -> None:
    await view.run(upsert("a", 1, 0), upsert("b", 1, 1))
    result = await view.run(gone)
    assert result.outcomes == {"deleted": 1}
    assert await view.values() == {"b": 1}
    record = await view.record("a")
    assert record.deleted
    assert record.history_vector == b""
    assert record.update == gone.raw
    assert (await view.run(upsert("a", 4, 6))).outcomes == {"upserted": 1}
    assert await view.values() == {"a": 4, "b": 1}


async def test_an_earlier_offset_changes_nothing(view: View) -> None:
    await view.run(upsert("a", 2, 7))
    result = await view.run(upsert("a", 1, 6), tombstone("a", 5))
    assert result.errors == [None, None]
    assert result.outcomes == {"superseded": 2}
    assert await view.values() == {"a": 2}


async def test_a_lower_version_is_stale_against_the_record_and_inside_the_batch(view: View) -> None:
    await view.run(upsert("a", 1, 0, version=5))
    assert await view.codes(
        upsert("a", 2, 1, version=4), upsert("a", 3, 2, version=6), delete("a", 3, version=5), upsert("a", 4, 4)
    ) == ["stale_version", None, "stale_version", None]
    assert await view.values() == {"a": 4}
    assert (await view.record("a")).version is None
    assert await view.codes(upsert("a", 5, 5, version=1)) == [None]


async def test_a_tombstone_ends_the_versions_and_a_delete_does_not(view: View) -> None:
    await view.run(upsert("a", 1, 0, version=5), upsert("b", 1, 1, version=5))
    await view.run(tombstone("a", 2), delete("b", 3, version=6))
    assert await view.codes(upsert("a", 2, 4, version=1), upsert("b", 2, 5, version=1)) == [None, "stale_version"]


async def test_an_item_stays_in_its_partition(view: View) -> None:
    codes = await view.codes(upsert("a", 1, 10), upsert("a", 2, 99, partition=3), upsert("a", 3, 11))
    assert codes == [None, "wrong_partition", None]
    assert await view.codes(tombstone("a", 100, partition=1)) == ["wrong_partition"]
    assert await view.values() == {"a": 3}


@given(data=st.data())
def test_in_whatever_order_partitions_are_read_an_item_is_that_of_the_usual_one(data: st.DataObject) -> None:
    usual = partition_of(b"a", 4)
    logs = {usual: [upsert("a", 10 + n, n, partition=usual) for n in range(3)]}
    logs |= {other: [upsert("a", 20 + other, 7, partition=other)] for other in range(4) if other != usual}
    left, events = {partition: list(log) for partition, log in logs.items()}, []
    while any(left.values()):
        partition = data.draw(st.sampled_from([partition for partition, log in left.items() if log]))
        events.append(left[partition].pop(0))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events) - 1))))

    async def run() -> None:
        view = View(partitions=4)
        for start, end in pairwise([0, *cuts, len(events)]):
            await view.run(*events[start:end])
        assert await view.values() == {"a": 12}
        assert (await view.record("a")).partition == usual
        assert await view.codes(logs[(usual + 1) % 4][0]) == ["wrong_partition"]

    asyncio.run(run())


async def test_an_embedding_of_this_model_takes_the_place_of_the_towers(view: View) -> None:
    given = [0.5, 0.0, 0.0, 1.0]
    await view.run(
        upsert("mine", 1, 0, embedding=given, embedding_model=MODEL),
        upsert("theirs", 1, 1, embedding=[9.0], embedding_model="m0"),
        upsert("nobody's", 1, 2, embedding=[9.0]),
    )
    assert await view.values() == {"mine": 0.5, "theirs": 1, "nobody's": 1}
    assert np.frombuffer((await view.record("mine")).history_vector, dtype="<f4").tolist() == [-1.0] * DIM


@pytest.mark.parametrize("embedding", [[], [1.0], [1.0] * 5, [1.0, 1.0, 1.0, 1e39], [0, 0, 0, -1.1e15]])
async def test_an_embedding_that_does_not_fit_is_refused_and_the_update_before_it_counts(
    view: View, embedding: list[float]
) -> None:
    codes = await view.codes(
        upsert("a", 1, 0), upsert("a", 2, 1, embedding=embedding, embedding_model=MODEL), upsert("b", 3, 2)
    )
    assert codes == [None, "invalid_embedding", None]
    assert await view.values() == {"a": 1, "b": 3}


async def test_a_row_that_the_tower_cannot_embed_is_refused_alone(view: View) -> None:
    await view.run(upsert("b", 9, 0))
    result = await view.run(upsert("a", 1, 1), upsert("a", -1, 2), upsert("b", -1, 3), upsert("c", 3, 4))
    assert [None if e is None else str(e.code) for e in result.errors] == [None, "tower_output", "tower_output", None]
    assert result.outcomes == {"upserted": 2, "refused": 2}
    assert await view.values() == {"a": 1, "b": 9, "c": 3}
    assert (await view.record("a")).offset == 1


@pytest.mark.parametrize("name", ["item_embedding", "history_embedding"])
async def test_a_vector_of_the_tower_that_is_too_long_is_refused_and_the_update_before_it_counts(
    view: View, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await view.run(upsert("a", 1, 0))
    embed = view.tower.embed

    async def too_long(inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        vectors = await embed(inputs)
        return vectors | {name: np.where(vectors[name] == np.sign(vectors[name]) * 30, 1e30, vectors[name])}

    monkeypatch.setattr(view.tower, "embed", too_long)
    result = await view.run(upsert("a", 30, 1), upsert("b", 3, 2))
    assert [None if e is None else (str(e.code), str(e)) for e in result.errors] == [
        ("tower_output", "the item tower gave no vector for it that is finite and no longer than 1e+15"),
        None,
    ]
    assert await view.values() == {"a": 1, "b": 3}


@pytest.mark.parametrize("guilty", [{0}, {6}, {3, 4}, set(range(7))])
async def test_a_row_that_the_tower_refuses_is_found_and_refused_alone(view: View, guilty: set[int]) -> None:
    events = [upsert(f"item {n}", 666 if n in guilty else n + 1, n) for n in range(7)]
    assert await view.codes(*events) == ["tower_output" if n in guilty else None for n in range(7)]
    assert await view.values() == {f"item {n}": n + 1 for n in range(7) if n not in guilty}


async def test_vectors_of_a_wrong_shape_are_waited_for(view: View) -> None:
    view.tower.loses = 1
    with pytest.raises(DependencyUnavailable, match=r"item_embedding is of shape \(1, 4\), the view needs \(2, 4\)"):
        await view.run(upsert("a", 1, 0), upsert("b", 2, 1))
    view.tower.loses = 0
    assert await view.codes(upsert("a", 1, 0), upsert("b", 2, 1)) == [None, None]


@pytest.mark.parametrize("guilty", [{0}, {6}, {3, 4}, set(range(7))])
async def test_a_row_that_the_index_refuses_is_found_and_refused_alone(view: View, guilty: set[int]) -> None:
    events = [upsert(f"item {n}", 13 if n in guilty else n + 1, n) for n in range(7)]
    assert await view.codes(*events) == ["index_refused" if n in guilty else None for n in range(7)]
    assert await view.values() == {f"item {n}": n + 1 for n in range(7) if n not in guilty}
    assert [record is None for record in await view.table.read(hash64_each([e.item_id for e in events]))] == [
        n in guilty for n in range(7)
    ]


async def test_a_batch_that_fails_half_way_is_completed_by_running_it_again(view: View) -> None:
    events = [upsert("a", 1, 0), tombstone("b", 1)]
    view.tower.down = True
    with pytest.raises(DependencyUnavailable):
        await view.run(*events)
    view.tower.down = False
    assert (await view.run(*events)).outcomes == {"upserted": 1, "deleted": 1}
    assert (await view.run(*events)).outcomes == {"upserted": 1, "deleted": 1}


class OvertakenTable(MemoryItemTable):
    """Lets another worker write between our read and our write, once."""

    def __init__(self, overtake: ItemEvent, other: ItemsPipeline | None = None) -> None:
        super().__init__(DIM)
        self.overtake = overtake
        self.other = other

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[int | None], intent: str | None = None
    ) -> list[bool]:
        if self.other is not None:
            other, self.other = self.other, None
            await other.run([self.overtake])
        return await super().write(records, expected, intent)


@pytest.mark.parametrize(
    ("theirs", "code", "standing", "fence"),
    [
        (upsert("a", 8, 50), None, {"a": 8, "b": 2}, (0, 50)),
        (tombstone("a", 50), None, {"b": 2}, (0, 50)),
        (upsert("a", 8, 0, partition=2), "wrong_partition", {"a": 8, "b": 2}, (2, 0)),
        (upsert("a", 8, 0), None, {"a": 1, "b": 2}, (0, 3)),
    ],
)
async def test_a_worker_that_was_overtaken_leaves_the_others_effect(
    theirs: ItemEvent, code: str | None, standing: dict[str, float], fence: tuple[int, int]
) -> None:
    view = View()
    table = OvertakenTable(theirs)
    fields = ItemsView(DIM, MODEL, ("value",))
    ours = ItemsPipeline(fields, table, view.index, view.tower, inputs)
    table.other = ItemsPipeline(fields, table, view.index, view.tower, inputs)
    result = await ours.run([upsert("a", 1, 3), upsert("b", 2, 4)])
    assert [None if error is None else str(error.code) for error in result.errors] == [code, None]
    assert await view.values() == standing
    record = (await table.read(hash64_each(["a"])))[0]
    assert record is not None
    assert (record.partition, record.offset) == fence


def log_of_events(values: list[float], versions: list[int | None]) -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["upsert", "upsert", "upsert", "delete", "tombstone"])
    return st.lists(
        st.tuples(st.sampled_from("ab"), kinds, st.sampled_from(values), st.sampled_from(versions)), max_size=10
    )


# Not both at once: the version of an update that would be refused is not known while a later one supersedes it.
refusals = log_of_events([1, 2, 3, -1, 13], [None])
versions = log_of_events([1, 2, 3], [None, None, 1, 2, 3])


@settings(deadline=None, max_examples=150)
@given(st.one_of(refusals, versions), st.lists(st.integers(0, 10), max_size=4), st.integers(0, 10))
def test_batches_and_redelivery_change_nothing(
    log: list[tuple[str, str, float, int | None]], cuts: list[int], again_from: int
) -> None:
    events = []
    for offset, (item_id, kind, value, version) in enumerate(log):
        if kind == "upsert":
            events.append(upsert(item_id, value, offset, version=version))
        else:
            events.append(tombstone(item_id, offset) if kind == "tombstone" else delete(item_id, offset))

    async def state(view: View) -> tuple[dict[str, float], list[ItemRecord | None]]:
        return await view.values(), await view.table.read(hash64_each(["a", "b"]))

    async def check() -> None:
        one_by_one, cut = View(), View()
        for event in events:
            await one_by_one.run(event)
        edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
        for start, end in pairwise(edges):
            await cut.run(*events[start:end])
        assert await state(cut) == await state(one_by_one)
        await cut.run(*events[again_from:])
        assert await state(cut) == await state(one_by_one)

    asyncio.run(check())


async def test_records_of_a_topic_that_was_made_anew_are_refused_and_supersede_nothing() -> None:
    view, ends, asked = View(), {0: 901}, []

    async def log_ends() -> dict[int, int]:
        asked.append(dict(ends))
        return ends

    view.pipeline = ItemsPipeline(
        ItemsView(DIM, MODEL, ("value",)), view.table, view.index, view.tower, inputs, log_ends=log_ends
    )
    await view.run(upsert("a", 1.0, 3), upsert("b", 2.0, 900))
    assert asked == []
    assert (await view.run(upsert("b", 9.0, 4))).outcomes == {"superseded": 1}, "delivered again"
    await view.run(upsert("b", 9.0, 4))
    assert asked == [{0: 901}], "and asked once"
    ends[0] = 17
    anew = ItemsPipeline(
        ItemsView(DIM, MODEL, ("value",)), view.table, view.index, view.tower, inputs, log_ends=log_ends
    )
    with pytest.raises(ConfigurationError, match=r"updates ends at 17, .* its offset 900; the topic was made anew"):
        await anew.run([upsert("b", 5.0, 5)])
    assert (await view.record("b")).offset == 900
