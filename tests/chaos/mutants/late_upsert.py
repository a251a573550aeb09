"""No broken promise, but the worst moment: a worker is frozen before it writes the item `late`, writes it, and dies."""

import os
import signal

from workers.index.milvus import MilvusItemIndex
from workers.ports import IndexRows

upsert = MilvusItemIndex.upsert


async def frozen_upsert(self: MilvusItemIndex, rows: IndexRows) -> None:
    """SIGSTOP, and once somebody sends SIGCONT: write, and kill -9."""
    if "late" not in rows.item_ids:
        await upsert(self, rows)
        return
    os.kill(os.getpid(), signal.SIGSTOP)
    await upsert(self, rows)
    os.kill(os.getpid(), signal.SIGKILL)


MilvusItemIndex.upsert = frozen_upsert  # type: ignore[method-assign]
