"""Milvus Lite as our own server: what it keeps, in which order it answers, what it refuses, when it is chosen."""

import asyncio
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from workers.errors import ConfigurationError, RecallError
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_client import MilvusClient
from workers.index.milvus_collection import open_index, prepare_index
from workers.index.schema import Collection
from workers.local.milvus_lite import MilvusLite, file_opened
from workers.local.process import free_ports
from workers.local.stack import MILVUS_DATA, choose_milvus
from workers.ports import Float32, IndexRows
from workers.settings import LocalMilvus, Settings, load_settings

DIM = 32
EVERYTHING = 16_384


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MilvusLite]:
    server = make_server(tmp_path / "data", tmp_path / "log")
    server.start()
    server.wait_ready()
    yield server
    server.stop()


def make_server(data: Path, log: Path) -> MilvusLite:
    server = MilvusLite(data, log, data.parent)
    server.ports = free_ports(1)
    return server


def settings_of(server: MilvusLite, index_type: str = "FLAT") -> Settings:
    return load_settings(milvus_uri=server.address, index_timeout_ms=20_000, index_type=index_type)


def collection() -> Collection:
    return Collection(f"lite_{uuid.uuid4().hex[:8]}", DIM, "IP", "v1")


def vectors(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


async def everything(index: MilvusItemIndex) -> set[str]:
    return set((await index.search(vectors(1, 9), EVERYTHING)).item_ids[0])


@pytest.mark.parametrize("index_type", ["FLAT", "HNSW"])
@pytest.mark.parametrize("killed", [True, False])
async def test_a_restart_keeps_what_was_acknowledged_and_open_indexes_go_on(
    server: MilvusLite, index_type: str, killed: bool
) -> None:
    settings, ours = settings_of(server, index_type), collection()
    index = await prepare_index(settings, ours, 100)
    ids, rows = [f"item {n}" for n in range(900)], vectors(900)
    await index.upsert(IndexRows(ids, rows, [{"title": "x" * 3000}] * 900))  # beyond what is kept in lists
    await index.upsert(IndexRows(ids[:10], rows[10:20], [{}] * 10))
    await index.delete(ids[500:600])
    if killed:
        server.kill()
    else:
        server.stop()
        assert server.process is not None
        assert server.process.returncode == 0
    server.start()
    server.wait_ready()
    assert await everything(index) == set(ids[:500] + ids[600:])
    assert await index.count() == 800
    assert await index.visible(ids[499:501]) == [True, False]
    hits = await index.search(rows[10:11], 900)
    of = dict(zip(hits.item_ids[0], hits.scores[0].tolist(), strict=True))
    assert np.isclose(of[ids[0]], of[ids[10]]), "the upsert that came second counts"
    await index.close()


async def test_writers_and_searches_at_once_miss_nothing(server: MilvusLite) -> None:
    settings, ours = settings_of(server), collection()
    indexes = [await prepare_index(settings, ours, 100) for _ in range(4)]
    known: set[str] = set()
    for n in range(20):  # 16 MB: several times what makes a segment
        names = [[f"item {n}.{writer}.{m}" for m in range(50)] for writer in range(4)]
        writes = [
            index.upsert(IndexRows(ids, vectors(50, n), [{"title": "x" * 4000}] * 50))
            for index, ids in zip(indexes, names, strict=True)
        ]
        found = await asyncio.gather(*(everything(index) for index in indexes), *writes)
        assert all(known <= seen for seen in found[: len(indexes)])
        known |= {item_id for ids in names for item_id in ids}
        assert await everything(indexes[0]) == known
    assert list(server.data.rglob("*.parquet")), "nothing became a segment: this proves nothing"
    for index in indexes:
        await index.close()


async def test_calls_that_open_a_collection_at_once_share_it(server: MilvusLite) -> None:
    settings, ours = settings_of(server), collection()
    first = await prepare_index(settings, ours, 100)
    old = [f"old {n}" for n in range(1000)]
    await first.upsert(IndexRows(old, vectors(1000), [{}] * 1000))
    await first.close()
    server.kill()
    server.start()
    server.wait_ready()
    indexes = await asyncio.gather(*(open_index(settings, ours) for _ in range(8)))
    writes = [index.upsert(IndexRows([f"item {n}"], vectors(1), [{}])) for n, index in enumerate(indexes)]
    await asyncio.gather(*writes)
    wanted = {*old, *(f"item {n}" for n in range(8))}
    assert [await everything(index) for index in indexes] == [wanted] * 8
    server.kill()
    server.start()
    server.wait_ready()
    assert await everything(indexes[0]) == wanted
    for index in indexes:
        await index.close()


def test_a_second_server_on_the_same_folder_is_refused_in_one_line(server: MilvusLite, tmp_path: Path) -> None:
    second = make_server(server.data, tmp_path / "second.log")
    second.start()
    with pytest.raises(RecallError) as caught:
        second.wait_ready()
    assert str(caught.value) == f"{server.data} is open in another process; Milvus Lite serves one at a time"
    assert server.probe()


def test_a_port_that_is_taken_is_named(server: MilvusLite, tmp_path: Path) -> None:
    second = make_server(tmp_path / "other", tmp_path / "second.log")
    second.ports = server.ports
    second.start()
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert second.death().startswith(f"Milvus Lite cannot listen at 127.0.0.1:{server.ports[0]}")


def test_what_was_not_made_by_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.db").write_bytes(b"SQLite format 3\0")
    settings = load_settings(milvus_uri=f"{tmp_path}/items.db", data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="was not made by Milvus Lite 3"), file_opened(settings):
        pass


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "milvus_lite", None)  # as on a machine without it
    settings = load_settings(milvus_uri=f"{tmp_path}/items.db", data_dir=tmp_path)
    line = r"extra `lite`: pip install '\.\[lite\]' in the checkout"
    with pytest.raises(ConfigurationError, match=line), file_opened(settings):
        pass
    assert not (tmp_path / "items.db").exists()


async def test_a_file_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"items\.db is a file; only the worker that opened it can use it"):
        MilvusClient(load_settings(milvus_uri="items.db"))


@pytest.mark.parametrize(
    ("uri", "is_file"),
    [
        ("items.db", True),
        ("./items", True),
        ("/data/items", True),
        ("~/items.db", True),
        ("http://127.0.0.1:19530", False),
        ("https://a.b/items.db", False),
        ("milvus:19530", False),
        ("milvus:19530/items", False),
    ],
)
def test_which_uri_is_a_file(uri: str, is_file: bool) -> None:
    file = load_settings(milvus_uri=uri).milvus_file
    assert (file is not None) is is_file
    assert file is None or file.is_absolute()


@pytest.mark.parametrize(
    ("wanted", "server_runs", "holds", "chosen"),
    [
        ("auto", True, None, "server"),
        ("auto", False, None, "lite"),
        ("auto", True, "lite", "lite"),
        ("auto", False, "server", "server"),
        ("server", False, None, "server"),
        ("lite", True, None, "lite"),
        ("lite", True, "lite", "lite"),
    ],
)
def test_the_stack_goes_on_with_what_holds_the_items(
    tmp_path: Path, wanted: LocalMilvus, server_runs: bool, holds: str | None, chosen: str
) -> None:
    for kind, name in MILVUS_DATA.items():
        (tmp_path / name).mkdir()
        if kind == holds:
            (tmp_path / name / "rows").touch()
    assert choose_milvus(wanted, tmp_path, server_runs) == chosen


@pytest.mark.parametrize(("wanted", "holds"), [("server", "milvus-lite"), ("lite", "milvus")])
def test_the_stack_does_not_start_the_other_one_without_its_items(
    tmp_path: Path, wanted: LocalMilvus, holds: str
) -> None:
    (tmp_path / holds / "rows").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=f"local_milvus: {wanted}, but the items of .* recall down --wipe"):
        choose_milvus(wanted, tmp_path, server_runs=True)
