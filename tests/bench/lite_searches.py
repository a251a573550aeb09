"""`python -m tests.bench.lite_searches [ITEMS]`: how long searches take in a Milvus server and in Milvus Lite.

Both are started for it. Prints one JSON object; docs/storage.md has the figures of one day.
"""

import asyncio
import json
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

import numpy as np

from workers.index.milvus_collection import prepare_index
from workers.index.schema import Collection
from workers.local.discover import with_local_stack
from workers.local.stack import LocalStack
from workers.ports import IndexRows
from workers.settings import Settings, load_settings


def main() -> None:
    """Server, then Lite."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    found = {"items": count, **{kind: measured(kind, count) for kind in ("server", "lite")}}
    print(json.dumps(found))


def measured(kind: str, count: int) -> dict[str, float]:
    """In a local stack of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(data_dir=folder, local_milvus=kind, index_timeout_ms=60_000)
        say = partial(print, file=sys.stderr)
        stack = LocalStack(Path(folder), say, milvus=settings.local_milvus)
        stack.start()
        try:
            return asyncio.run(measure(with_local_stack(settings), count))
        finally:
            stack.stop()


async def measure(settings: Settings, count: int) -> dict[str, float]:
    """Median milliseconds of a search, top 100, by batch; rows written a second."""
    index = await prepare_index(settings, Collection(f"speed_{uuid.uuid4().hex[:8]}", 64, "IP", "v1"), count)
    vectors = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    attributes = [{"title": f"film {n}", "year": 1950 + n % 70, "genres": ["Drama", "Comedy"]} for n in range(count)]
    started = time.perf_counter()
    for n in range(0, count, 1000):
        ids = [f"item {m}" for m in range(n, n + 1000)]
        await index.upsert(IndexRows(ids, vectors[n : n + 1000], attributes[n : n + 1000]))
    found = {"rows_per_s": round(count / (time.perf_counter() - started))}
    await asyncio.sleep(3)  # the indexes of both are built behind the writes
    for batch in (1, 64):
        took = []
        for n in range(20):
            started = time.perf_counter()
            hits = await index.search(vectors[n * batch : (n + 1) * batch], 100)
            took.append((time.perf_counter() - started) * 1000)
            assert all(len(ids) == 100 for ids in hits.item_ids)
        found[f"batch_{batch}_ms"] = round(float(np.median(took)), 1)
    await index.close()
    return found


if __name__ == "__main__":
    main()
