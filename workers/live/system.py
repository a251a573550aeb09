"""A stack and workers of one's own through which a data set is streamed: what the demo and evaluations share."""

import asyncio
import time

from models.bundle import Bundle
from models.datasets import Dataset
from models.verify import Side
from workers import topics, views
from workers.errors import RecallError
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import group_lag, produce
from workers.live.replay import Step, history_messages
from workers.live.told import Told
from workers.local.discover import of_own_stack
from workers.local.ready import wait_ready
from workers.local.stack import MILVUS_DATA, LocalStack, wipe
from workers.local.workers import WorkerProcesses, in_one_process
from workers.settings import Settings
from workers.towers.opening import open_tower

STACK = "starting Kafka, Redis and Milvus"


async def try_towers(bundle: Bundle, settings: Settings) -> None:
    """Open both towers of a bundle once, as workers do. Raises ConfigurationError, DependencyError."""
    sides: tuple[Side, ...] = ("user", "item")
    for side in sides:
        tower = await open_tower(bundle, side, settings)
        await tower.close()


class LiveSystem:
    """Kafka, Redis and Milvus, and one worker of each kind, under `settings.data_dir`, which is wiped at start.

    No Milvus where the items are elsewhere, and one worker for all kinds where that is in its process. In place of a
    file of Milvus Lite that the settings name, it has one of its own.
    """

    def __init__(self, settings: Settings, told: Told) -> None:
        if settings.milvus_file is not None:
            file = settings.data_dir / MILVUS_DATA["lite"] / "items.db"  # wiped with that folder
            settings = settings.model_copy(update={"milvus_uri": str(file)})
        self.settings = settings
        self._told = told
        self._stack = LocalStack(settings.data_dir, told.done, told.interrupted, settings.stack_milvus)
        self._workers = WorkerProcesses(settings)

    def start(self) -> dict[str, str]:
        """Wipe, and start the servers; their versions by name. Raises RecallError."""
        self._told.progress("starting Kafka and Redis" if self.settings.stack_milvus is None else STACK, None)
        wipe(self.settings.data_dir)
        self._stack.start()
        return {service.name: service.version for service in self._stack.services}

    def serve(self, bundle: Bundle) -> None:
        """Make a bundle the active one and start the workers. Blocks until they are ready.

        Raises ConfigurationError, DependencyError when its towers do not run where the setting `tower` says.
        """
        self.settings = of_own_stack(self.settings)
        self._told.progress("starting workers", None)

        async def prepare() -> None:
            await try_towers(bundle, self.settings)  # workers would wait for a model server
            await topics.apply(self.settings)
            await views.activate(self.settings, bundle.path, bundle.version)

        asyncio.run(prepare())
        self._workers = WorkerProcesses(self.settings, one_process=in_one_process(self.settings))
        self._workers.start()
        wait_ready(self._workers)
        self._note_workers()
        self._told.done("workers ready: " + ", ".join(state.kind for state in self._workers.states))

    async def load(self, dataset: Dataset, plan: dict[int, list[Step]]) -> int:
        """Stream in the catalogue and what the planned users did before the test window; how many activities."""
        told, settings = self._told, self.settings
        started = time.perf_counter()
        told.progress("streaming the catalogue in", None)
        await produce(settings, settings.topic("item-updates"), item_messages(list(dataset.items())))
        await wait_for_items(settings)
        told.done(f"{len(dataset.item_ids):,} items embedded and indexed ({time.perf_counter() - started:.1f} s)")
        started = time.perf_counter()
        told.progress(f"sending the earlier activity of {len(plan)} users", None)
        sent = await produce(settings, settings.topic("user-activity"), history_messages(dataset, plan))
        await self._wait_for_activity()
        told.done(f"{sent:,} earlier activities of {len(plan)} users taken in ({time.perf_counter() - started:.1f} s)")
        return sent

    def stop(self) -> None:
        """End workers and stack. May be called twice."""
        self._workers.stop()
        self._stack.stop()

    def check(self) -> None:
        """Raise RecallError when a server has died; a worker that has is started again."""
        dead = self._stack.dead()
        if dead is not None:
            raise RecallError(dead.death())
        if self._workers.supervise():
            self._note_workers()

    def _note_workers(self) -> None:
        if self._stack.state is not None:
            self._stack.state.workers = self._workers.states
            self._stack.write()

    async def _wait_for_activity(self, within_s: float = 300.0) -> None:
        settings = self.settings
        end = time.monotonic() + within_s
        while lag := await group_lag(settings, settings.group("recall-activity"), settings.topic("user-activity")):
            if time.monotonic() > end:
                raise RecallError(f"{lag} activities are still waiting after {within_s:.0f} s")
            await asyncio.sleep(0.1)
