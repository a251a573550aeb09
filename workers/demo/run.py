"""The demo from nothing to a live system: stack, fit, catalogue, history, replay, story."""

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import datasets
from models.bundle import Bundle
from models.datasets import Dataset
from models.evaluation import protocol
from models.evaluation.protocol import Window
from models.spec import builtin_spec, load_spec
from workers.client import RecallClient
from workers.demo.story import SCENES, Show, Story, Teller
from workers.errors import ConfigurationError, RecallError
from workers.fitting import Job, Source, exact_ranks, fit_bundle, load_before
from workers.live.replay import ReplayResult, Step, plan_users, replay
from workers.live.sender import Sender
from workers.live.system import LiveSystem
from workers.live.told import Told
from workers.scenes import SceneSettings
from workers.settings import Settings

SEED = 20
REQUESTS = 5000
USERS = 200
K = 100


@dataclass(frozen=True)
class Stage(Told):
    """What is told to a person, and how a list is shown."""

    show: Show


class Demo(LiveSystem):
    """A stack and workers of its own under `<data_dir>/demo`, wiped at start; bundles go to `<data_dir>/bundles`."""

    def __init__(self, settings: Settings, stage: Stage) -> None:
        self._bundles = settings.data_dir / "bundles"
        scenes = {name: SceneSettings.model_validate(scene) for name, scene in SCENES.items()}
        # The story asks the same again and again, to see when it changes: nothing is to be reused.
        own = {"data_dir": settings.data_dir / "demo", "namespace": "", "scenes": scenes, "reuse_ms": 0}
        super().__init__(settings.model_copy(update=own), stage)
        self._stage = stage

    def run(self, data: str, given: Path | None = None) -> dict[str, Any]:
        """All stages, with the bundle in the folder `given` or one that is fitted; the figures. Raises RecallError."""
        stage = self._stage
        dataset, source = self._read(data)
        bundle, fit_s = (None if given is None else self._load(given, source)), None
        stack = self.start()
        if bundle is None:
            bundle, fit_s = self._fit(source)
        self.serve(bundle)
        catalogue = dataset.catalogue()
        asked = protocol.window(dataset.log, catalogue, bundle.encoding, dataset.test_ms)
        sample = asked.of_users(protocol.sample_users(asked, REQUESTS, USERS, SEED))
        figures = {"stack": stack, "data": data, "bundle": bundle.version, "fit_s": fit_s, "items": len(catalogue)}
        live, story, duplicates = asyncio.run(self._live(dataset, sample, bundle.spec.history.time_resolution_ms))
        stage.progress("computing the exact lists of the same requests offline", None)
        ranks = exact_ranks(source, catalogue, bundle, sample, lambda part: stage.progress("ranking offline", part))
        popular = protocol.popularity_ranks(dataset.log, catalogue, bundle.encoding, sample, dataset.test_ms)
        figures |= _report(live, sample, duplicates, ranks, popular)
        return figures | asdict(story)

    def _read(self, data: str) -> tuple[Dataset, Source]:
        stage = self._stage
        stage.progress(f"reading {data}", None)
        started = time.perf_counter()
        try:
            dataset = datasets.load(data, stage.done)
        except datasets.DatasetError as error:
            raise RecallError(str(error)) from error
        log = dataset.log
        stage.done(
            f"{len(log):,} activities of {len(log.user_ids):,} users, {len(dataset.item_ids):,} items "
            f"({time.perf_counter() - started:.1f} s)"
        )
        path = builtin_spec(dataset.spec)
        return dataset, Source(log, dataset.catalogue, load_spec(path), path.read_text(), dataset.test_ms)

    def _load(self, given: Path, source: Source) -> Bundle:
        before = source.log_until(source.test_ms)
        bundle = load_before(given, int(before.timestamp_ms.max(initial=0)), self.settings)
        found, wanted = (f"{spec.name} {spec.hash[:12]}" for spec in (bundle.spec, source.spec))
        if found != wanted:
            raise ConfigurationError(f"--bundle: {bundle.version} is of the spec {found}, the data set is of {wanted}")
        self._stage.done(f"the bundle {bundle.version}, fitted before")
        return bundle

    def _fit(self, source: Source) -> tuple[Bundle, float]:
        stage = self._stage
        started = time.perf_counter()
        job = Job(dim=64, polish=None, seed=0, until_ms=source.test_ms, evaluate=False)
        bundle = fit_bundle(source, job, self._bundles, lambda what: stage.progress(f"fitting: {what}", None))
        fit_s = round(time.perf_counter() - started, 2)
        stage.done(f"two towers fitted on what happened before the test window: {bundle.version} ({fit_s} s)")
        return bundle, fit_s

    async def _live(self, dataset: Dataset, sample: Window, step_ms: int) -> tuple[ReplayResult, Story, int]:
        stage, settings = self._stage, self.settings
        plan = plan_users(dataset, sample, step_ms)
        sent = await self.load(dataset, plan)
        async with RecallClient(settings) as client, Sender(settings) as sender:
            started = time.perf_counter()
            live = await replay(dataset, plan, client, sender, lambda part: stage.progress("asking over Kafka", part))
            live.activities += sent
            stage.done(
                f"{live.answered:,} of {live.requests:,} requests answered while {live.activities - sent:,} activities "
                f"streamed in ({time.perf_counter() - started:.1f} s)"
            )
            story = await Teller(dataset, _talkative(plan), client, sender, stage.show).tell()
            return live, story, client.duplicates


def _talkative(plan: dict[int, list[Step]]) -> int:
    """The user with the most seconds in the plan; of equals the first."""
    return max(sorted(plan), key=lambda user: len(plan[user]))


def _report(live: ReplayResult, sample: Window, duplicates: int, ranks: Any, popular: Any) -> dict[str, Any]:
    if live.targets != len(sample.item):
        raise RecallError(f"{live.targets} targets were asked for, the sample has {len(sample.item)}")
    return {
        "users": len(np.unique(sample.requests.user)),
        "activities": live.activities,
        "requests": live.requests,
        "answered": live.answered,
        "ok": live.ok,
        "asked_again": live.stale,
        "duplicates": duplicates,
        "p50_ms": live.percentile_ms(50),
        "p99_ms": live.percentile_ms(99),
        "recall_at_100": round(live.found / live.targets, 4),
        "recall_at_100_offline": round(float((ranks < K).mean()), 4),
        "recall_at_100_popular": round(float((popular < K).mean()), 4),
    }
