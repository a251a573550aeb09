"""What an index in the process leaves for the next one: all of it, or a line that says why not."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import xxhash
from structlog.testing import capture_logs

from schemas.records import hash64_each
from workers import topics
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.index import in_process, snapshot
from workers.index.in_process import FOLDER, HeldIndex, held_alone
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.index.snapshot import FORMAT, Piece, Snapshot
from workers.ports import IndexRows
from workers.settings import load_settings

OURS = Collection("items_v1", 4, "COSINE", "v1")
OWN = Snapshot.empty(OURS, {0: 90, 1: 50}, 1 << 60)
ENDS = {0: 100, 1: 50}
DAY_MS = 86_400_000
HOSTILE = ["it's", "nul\0", "🎬 film", "é" * 122, "new\nline"]
ATTRIBUTES = {"title": 'it\'s "quoted" \\ \n🎬', "year": 1999, "genres": ["'", '"'], "used": True}


def held(folder: Path, collection: Collection = OURS) -> HeldIndex:
    return HeldIndex("memory", MemoryItemIndex(collection), collection, folder)


async def filled(folder: Path, ids: list[str]) -> HeldIndex:
    ours = held(folder)
    for partition, end in ENDS.items():
        ours.begins(partition, 0, end)
    vectors = np.random.default_rng(0).standard_normal((len(ids), 4)).astype(np.float32)
    await ours.index.upsert(IndexRows(ids, vectors, [ATTRIBUTES] * len(ids)))
    ours.took_in({0: (0, 90), 1: (0, 50)})
    ours.missing = lambda: None
    return ours


async def test_the_next_process_begins_where_this_one_was(tmp_path: Path) -> None:
    ids = [*HOSTILE, *(f"item {n}" for n in range(5000))]
    ours = await filled(tmp_path, ids)
    await ours.save()
    theirs = held(tmp_path)
    with capture_logs() as logs:
        await theirs.restore(ENDS)
    assert [each["event"] for each in logs] == ["the index begins with its snapshot"]
    assert {n: theirs.begins(n, 0, end) for n, end in {**ENDS, 2: 7}.items()} == {0: 90, 1: 50, 2: 0}
    before, after = [await each.index.rows(hash64_each(ids)) for each in (ours, theirs)]
    assert sorted(after.item_ids) == sorted(ids)
    vectors = dict(zip(before.item_ids, before.vectors.tolist(), strict=True))
    assert vectors == dict(zip(after.item_ids, after.vectors.tolist(), strict=True))
    assert list(after.attributes) == list(before.attributes)[:1] * len(ids)


async def test_it_is_written_only_when_something_came(tmp_path: Path) -> None:
    ours = await filled(tmp_path, ["a"])
    await ours.save()
    [file] = tmp_path.glob("*.snapshot")
    before = file.stat().st_ino
    await ours.save()
    assert file.stat().st_ino == before
    ours.took_in({0: (90, 91)})
    await ours.save()
    assert file.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [file]


async def test_it_is_renewed_in_quiet_weeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = start_ms = 1_700_000_000_000
    monkeypatch.setattr(in_process, "_now_ms", lambda: now_ms)
    ours = await filled(tmp_path, ["a"])
    await ours.save()
    [file] = tmp_path.glob("*.snapshot")
    now_ms += 5 * DAY_MS
    theirs = held(tmp_path)
    await theirs.restore(ENDS)
    theirs.took_in({0: (90, 95)})
    await theirs.save()
    assert snapshot.read(file).positions[0] == 95
    assert snapshot.read(file).saved_ms == start_ms, "what it began with is so old, until it follows the topic"
    theirs = held(tmp_path)
    await theirs.restore(ENDS)
    theirs.missing = lambda: None
    for _ in range(20):
        now_ms += DAY_MS // 2
        await theirs.save()
        age_ms = now_ms - snapshot.read(file).saved_ms
        assert age_ms <= DAY_MS
    assert age_ms > 0, "not written each time"
    last = held(tmp_path)
    await last.restore(ENDS)
    assert await last.index.count() == 1


async def test_an_index_that_is_filled_for_the_first_time_is_not_written(tmp_path: Path) -> None:
    ours = await filled(tmp_path, ["a"])
    ours.missing = lambda: "the retained events of 1 partitions"
    await ours.save()
    assert list(tmp_path.iterdir()) == []


def test_positions_move_only_without_a_gap(tmp_path: Path) -> None:
    ours = held(tmp_path)
    assert ours.begins(0, 5, 100) == 5
    ours.took_in({0: (20, 30)})
    assert ours.begins(0, 5, 100) == 5, "what is between was not taken in"
    ours.took_in({0: (5, 30)})
    ours.took_in({0: (10, 12)})
    assert ours.begins(0, 5, 100) == 30
    assert ours.begins(0, 40, 100) == 40, "the topic begins later now"


def damaged(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def file_of(*parts: object) -> bytes:
    encoded = [msgspec.msgpack.encode(part) for part in parts]
    body = b"".join(len(each).to_bytes(4, "little") + each for each in encoded)
    return FORMAT + xxhash.xxh3_64_digest(body) + body


def changed(**values: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        found = msgspec.structs.replace(OWN, **values)
        return file_of(msgspec.structs.replace(found, pieces=[]), *found.pieces)

    return change


def not_ours(content: bytes) -> bytes:
    return file_of({"collection": 7})


def nothing(content: bytes) -> bytes:
    return file_of()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (damaged, "it is damaged"),
        (lambda content: content[: len(content) // 2], "it is damaged"),
        (lambda content: b"", "it has another format"),
        (lambda content: FORMAT, "it is damaged"),
        (lambda content: b"recall-index 2\n" + content[len(FORMAT) :], "it has another format"),
        (not_ours, "it cannot be read"),
        (changed(schema_format=99), "its schema format is 99, not 1"),
        (changed(saved_ms=1), "it is older than the topic keeps deletions"),
        (nothing, "it cannot be read"),
        (changed(pieces=[Piece(["a"], b"", [])]), "its columns are not equally long"),
        (changed(pieces=[Piece(["a"], b"1234", [b"{}"])]), "its columns are not equally long"),
        (changed(positions={0: 101}), "it has read partition 0 up to 101, which ends at 100"),
        (changed(positions={7: 1}), "it has read partition 7 up to 1, which ends at nowhere"),
    ],
)
async def test_what_does_not_fit_is_said_and_ignored(
    tmp_path: Path, change: Callable[[bytes], bytes], why: str
) -> None:
    ours = await filled(tmp_path, ["a"])
    await ours.save()
    [file] = tmp_path.glob("*.snapshot")
    file.write_bytes(change(file.read_bytes()))
    await nothing_restored(held(tmp_path), why)


async def nothing_restored(ours: HeldIndex, why: str) -> None:
    with capture_logs() as logs:
        await ours.restore(ENDS)
    [line] = logs
    assert why in line["why"]
    assert "\n" not in line["why"]
    assert await ours.index.count() == 0
    assert ours.begins(0, 3, 100) == 3


@pytest.mark.parametrize(
    ("collection", "why"),
    [
        (replace(OURS, dim=8), "its dimension is 4, not 8"),
        (replace(OURS, metric="IP"), "its metric is COSINE, not IP"),
        (replace(OURS, model_version="v2"), "its model version is v1, not v2"),
    ],
)
async def test_one_of_another_collection_is_ignored(tmp_path: Path, collection: Collection, why: str) -> None:
    await (await filled(tmp_path, ["a"])).save()
    await nothing_restored(held(tmp_path, collection), why)


async def test_without_one_nothing_is_said_and_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "items_v1.99.0.tmp"
    left.touch()
    with capture_logs() as logs:
        await held(tmp_path).restore(ENDS)
    assert (logs, left.exists()) == ([], False)


async def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    ours = await filled(tmp_path / "folder", ["a"])
    (tmp_path / "folder").write_text("a file")
    with capture_logs() as logs:
        await ours.save()
    assert [each["event"] for each in logs] == ["the index cannot be written down"]
    (tmp_path / "folder").unlink()
    await ours.save()
    assert snapshot.read(tmp_path / "folder" / "items_v1.snapshot").pieces[0].ids == ["a"]


async def test_nothing_is_searched_before_all_is_there(tmp_path: Path) -> None:
    ours = await filled(tmp_path, ["a"])
    ours.missing = lambda: "the retained events of 1 partitions"
    queries = np.ones((1, 4), dtype=np.float32)
    for call in (ours.searched.search(queries, 3), ours.searched.ping(), ours.searched.exact(queries, 3)):
        with pytest.raises(DependencyUnavailable, match="the index in this process is not filled yet") as caught:
            await call
        assert caught.value.dependency == "memory"
    ours.missing = lambda: None
    assert (await ours.searched.search(queries, 3)).item_ids == [["a"]]
    await ours.searched.close()
    assert await ours.searched.count() == 1


def test_one_process_holds_the_items_of_a_namespace(tmp_path: Path) -> None:
    ours = load_settings(data_dir=tmp_path, index="faiss", namespace="a")
    others = load_settings(data_dir=tmp_path, index="faiss", namespace="b")
    refused = pytest.raises(ConfigurationError, match="another process holds the items of")
    with held_alone(ours), held_alone(others), refused, held_alone(ours):
        pass
    with held_alone(ours):
        assert (tmp_path / FOLDER).is_dir()


async def test_saves_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    ours = await filled(tmp_path, [f"item {n}" for n in range(3000)])
    await asyncio.gather(*(ours.save() for _ in range(4)))
    [file] = tmp_path.iterdir()
    kept = snapshot.read(file)
    kept.require(OURS, ENDS, kept.saved_ms - topics.DELETE_RETENTION_MS)
    assert kept.items == 3000
