"""A window asked over Kafka: every request of it goes through running workers, in lock-step with the activity."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from models.bundle import Bundle
from models.datasets import Dataset
from models.evaluation.ranking import Ranking
from models.evaluation.window import Window
from models.event_log import Catalogue
from workers.client import RecallClient
from workers.errors import RecallError
from workers.live.replay import ReplayResult, plan_users, replay
from workers.live.sender import Sender
from workers.live.system import LiveSystem
from workers.live.told import Told
from workers.settings import Settings

IndexKind = Literal["FLAT", "HNSW"]
UNANSWERED_AT_MOST = 100  # then something is down, and the rest would only wait as well


@dataclass(frozen=True)
class Live:
    """The bundle that answers, and the data set and window that it is asked about, from `begin_ms` on."""

    bundle: Bundle
    dataset: Dataset
    catalogue: Catalogue
    window: Window
    begin_ms: int


def ask_stream(live: Live, index: IndexKind, settings: Settings, told: Told) -> tuple[Ranking, dict[str, Any]]:
    """Ranks by the places in the answers (infinite for a target that is not in its list), and counts of the replay.

    Starts a stack and workers of its own under `<data_dir>/evaluate`, wiped at start, and ends them. Blocks for as long
    as the replay takes. Raises RecallError.
    """
    own = {"data_dir": settings.data_dir / "evaluate", "namespace": "", "reuse_ms": 0, "index_type": index}
    system = LiveSystem(settings.model_copy(update=own), told)
    try:
        stack = system.start()
        system.serve(live.bundle)
        result, duplicates = asyncio.run(_asked(live, system, told))
    finally:
        system.stop()
    if result.targets != len(live.window.item):
        raise RecallError(f"{result.targets} targets were asked for, the window has {len(live.window.item)}")
    ranks = np.full(len(live.window.item), np.inf)
    ranks[list(result.places)] = list(result.places.values())
    shown = np.array([result.shown[item_id] for item_id in live.catalogue.item_ids], dtype=np.int64)
    counts = {
        "index": index,
        "stack": stack,
        "requests": result.requests,
        "answered": result.answered,
        "unanswered": result.unanswered,
        "ok": result.ok,
        "asked_again": result.stale,
        "duplicates": duplicates,
        "activities": result.activities,
        "p50_ms": result.percentile_ms(50),
        "p99_ms": result.percentile_ms(99),
    }
    return Ranking(ranks, shown), counts


async def _asked(live: Live, system: LiveSystem, told: Told) -> tuple[ReplayResult, int]:
    dataset = replace(live.dataset, test_ms=live.begin_ms)
    plan = plan_users(dataset, live.window, live.bundle.spec.history.time_resolution_ms)
    await system.load(dataset, plan)
    async with RecallClient(system.settings) as client, Sender(system.settings) as sender:
        result = await replay(
            dataset, plan, client, sender, lambda part: told.progress("asking over Kafka", part), UNANSWERED_AT_MOST
        )
        return result, client.duplicates
