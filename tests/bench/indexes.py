"""`python -m tests.bench.indexes [--items N] [--json]`: what a search costs in every item index, recall beside it.

Vectors in clusters, 64 dimensions, inner product, top 100. A Milvus server and Milvus Lite are started for it. Prints a
table (docs/indexes.md has that of one day): microseconds a query in batches of 1 and of 64, of the quickest of some.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.clusters import Clusters, recall
from workers.filters import Clause, Filter
from workers.index import faiss, memory
from workers.index.milvus_collection import merged, prepare_index, seal
from workers.index.schema import Collection
from workers.local.milvus import Milvus
from workers.local.milvus_lite import MilvusLite
from workers.local.process import free_ports
from workers.local.service import Service
from workers.local.stack import cache_dir
from workers.ports import IndexRows, ItemIndex
from workers.settings import Settings, load_settings

DIM, K, QUERIES = 64, 100, 640
TYPES = ("FLAT", "HNSW", "IVF_FLAT")
TENTH: Filter = (Clause("group", "number", "lt", (10.0,)),)
BUILT_WITHIN_S = 120.0

Made = Callable[[Settings, Collection, int], Awaitable[ItemIndex]]


def main() -> None:
    """Every adapter in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = Clusters.of(options.items, QUERIES)
    settings = load_settings(index_timeout_ms=60_000)
    found = [asyncio.run(measured("memory", settings, data, memory.prepare))]
    found += [asyncio.run(measured(f"faiss {kind}", typed(settings, kind), data, faiss.prepare)) for kind in TYPES]
    with tempfile.TemporaryDirectory() as folder:
        for name, service in (("milvus", Milvus), ("milvus-lite", MilvusLite)):
            found += with_server(name, service(Path(folder) / name, Path(folder) / f"{name}.log", cache_dir()), data)
    print(json.dumps(found) if options.json else table(found, options.items))


def typed(settings: Settings, kind: str) -> Settings:
    return settings.model_copy(update={"index_type": kind})


def with_server(name: str, server: Any, data: Clusters) -> list[dict[str, Any]]:
    """All types of index on a server of its own."""
    assert isinstance(server, Service)
    server.prepare(lambda line: print(line, file=sys.stderr))
    server.ports = free_ports(server.port_count)
    server.start()
    try:
        server.wait_ready()
        settings = load_settings(milvus_uri=server.address, index_timeout_ms=60_000)
        types = TYPES if name == "milvus" else TYPES[:2]
        return [asyncio.run(measured(f"{name} {kind}", typed(settings, kind), data, prepare_index)) for kind in types]
    finally:
        server.stop()


async def measured(name: str, settings: Settings, data: Clusters, made: Made) -> dict[str, Any]:
    """One index: filled, built, searched."""
    print(name, file=sys.stderr)
    collection = Collection(f"cost_{uuid.uuid4().hex[:8]}", DIM, "IP", "v1")
    index, ids = await made(settings, collection, len(data.items)), data.ids
    started = time.perf_counter()
    for n in range(0, len(ids), 1000):
        rows = [{"group": m % 100} for m in range(n, n + 1000)]
        await index.upsert(IndexRows(ids[n : n + 1000], data.items[n : n + 1000], rows))
    filled_s = time.perf_counter() - started
    if name.startswith("milvus"):
        await built(settings, collection, index, len(ids), lite="lite" in name)
    figures = {
        "index": name,
        "recall": round(recall(data.best("IP", K), await in_batches(index, data, 64)), 3),
        "batch_1_us": await cost_us(index, data, 1),
        "batch_64_us": await cost_us(index, data, 64),
        "tenth_64_us": await cost_us(index, data, 64, TENTH),
        "rows_per_s": round(len(ids) / filled_s),
    }
    await index.close()
    return figures


async def built(settings: Settings, collection: Collection, index: ItemIndex, items: int, *, lite: bool) -> None:
    async with asyncio.timeout(BUILT_WITHIN_S):
        while await index.count() < items:
            await asyncio.sleep(0.1)
    if lite:
        await asyncio.sleep(5)  # behind the writes, and it does not tell
    else:
        await seal(settings, collection)
        await merged(settings, collection, BUILT_WITHIN_S)


async def in_batches(index: ItemIndex, data: Clusters, batch: int) -> Any:
    ids, scores = [], []
    for n in range(0, QUERIES, batch):
        hits = await index.search(data.queries[n : n + batch], K)
        ids += hits.item_ids
        scores += hits.scores
    return type(hits)(ids, scores)


async def cost_us(index: ItemIndex, data: Clusters, batch: int, where: Filter = ()) -> int:
    """Microseconds a query, of the quickest batch: others on the machine make it no quicker.

    The first search, which learns of the filter, does not count.
    """
    took = []
    for n in range(101 if batch == 1 else 21):
        queries = data.queries[n * batch % QUERIES :][:batch]
        started = time.perf_counter()
        await index.search(queries, K, where)
        took.append((time.perf_counter() - started) / batch * 1e6)
    return round(min(took[1:]))


def table(found: list[dict[str, Any]], items: int) -> str:
    lines = [
        f"{items:,} items, {DIM} dimensions, top {K}; microseconds a query",
        "| index | recall@100 | batch 1 | batch 64 | batch 64, filter leaves 10 % | rows/s written |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(str(value) for value in each.values())} |" for each in found])


if __name__ == "__main__":
    main()
