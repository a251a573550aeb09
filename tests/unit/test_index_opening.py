"""Which index the setting opens, what it refuses, and what agents of one process share."""

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from workers.errors import ConfigurationError, DependencyUnavailable
from workers.index.opening import BUILTINS, GROUP, Indexes, adapter, of_one_process, open_index, prepare_index
from workers.index.schema import Collection
from workers.ports import IndexRows
from workers.settings import load_settings

COLLECTION = Collection("items_v1", 4, "IP", "v1")
THEIRS = """
from workers.index.adapter import IndexAdapter
from workers.index.memory import MemoryItemIndex

KEPT = {}

async def prepare(settings, collection, rows):
    return KEPT.setdefault(collection.name, MemoryItemIndex(collection))

async def open(settings, collection):
    return KEPT[collection.name]

ADAPTER = IndexAdapter(prepare, open)
NOTHING = "a string"
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that somebody installed beside ours, with an index on a server of its own."""
    folder = tmp_path / "vespa-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vespa\nVersion: 1.0\n")
    points = "vespa = their_index:ADAPTER\nnothing = their_index:NOTHING\n"
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    (tmp_path / "their_index.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_index", raising=False)


@pytest.mark.parametrize("name", BUILTINS)
def test_ours_are_there(name: str) -> None:
    assert adapter(load_settings(index=name)).in_process is (name != "milvus")


async def test_that_of_another_package_is_prepared_and_opened(registered: None) -> None:
    settings = load_settings(index="vespa")
    written = await prepare_index(settings, COLLECTION, 10)
    await written.upsert(IndexRows(["a"], np.ones((1, 4), dtype=np.float32), [{}]))
    assert await (await open_index(settings, COLLECTION)).visible(["a", "b"]) == [True, False]
    async with AsyncExitStack() as opened:
        indexes = Indexes(settings, opened)
        assert await indexes.prepare(COLLECTION, 10) == (written, None)
        assert await indexes.open(COLLECTION) is written
    with of_one_process(settings, together=False):
        pass


def test_what_is_no_adapter_is_said(registered: None) -> None:
    with pytest.raises(ConfigurationError, match="index = 'nothing': it is no IndexAdapter, but str"):
        adapter(load_settings(index="nothing"))
    with pytest.raises(ConfigurationError, match="only faiss, memory, milvus, nothing, vespa"):
        adapter(load_settings(index="lucene"))


@pytest.mark.parametrize("name", ["faiss", "memory"])
async def test_agents_of_a_process_share_an_index_and_others_have_none(name: str, tmp_path: Path) -> None:
    settings = load_settings(index=name, data_dir=tmp_path)
    async with AsyncExitStack() as opened:
        indexes = Indexes(settings, opened)
        with pytest.raises(DependencyUnavailable, match="does not exist yet") as caught:
            await indexes.open(COLLECTION)
        assert caught.value.dependency == name
        written, held = await indexes.prepare(COLLECTION, 10)
        assert held is not None
        searched = await indexes.open(COLLECTION)
        await written.upsert(IndexRows(["a"], np.ones((1, 4), dtype=np.float32), [{}]))
        held.missing = lambda: None
        assert await searched.visible(["a"]) == [True]
    with pytest.raises(ConfigurationError, match="nothing outside it can look at them"):
        await open_index(settings, COLLECTION)
    with (
        pytest.raises(ConfigurationError, match="recall worker all --one-process"),
        of_one_process(settings, together=False),
    ):
        pass
