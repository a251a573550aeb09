"""A live system to break: real servers, several workers of each kind, and the traffic that they work on."""

import asyncio
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.fit import FitOptions, fit
from models.spec import builtin_spec, load_spec
from schemas.recall import RecallRequest
from tests.chaos.answers import TakenIn
from tests.chaos.feeder import Feeder
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS, Logs
from tests.chaos.processes import Worker, Workers
from tests.chaos.proxy import Proxy
from tests.chaos.replayed import Replayed
from tests.chaos.workload import Rates, Workload, one_of_each_partition
from workers import topics, views
from workers.client import RecallClient
from workers.errors import RecallError
from workers.kafka_client import admin_client, connected, end_offsets, group_lag
from workers.local.discover import with_local_stack
from workers.local.process import free_ports
from workers.local.service import Service
from workers.local.stack import LocalStack
from workers.settings import AGENT_KINDS, AgentKind, Settings, load_settings

WORKERS_OF_A_KIND = 2
READY_WITHIN_S = 300.0  # these end a run that never comes to an end; a busy machine takes its time
DRAINED_WITHIN_S = 300.0
RECOVERED_WITHIN_S = 300.0
BUSY_WITHIN_S = 60.0
DURABILITY_MS = 3000  # a second more than the two that Redis loses
STUCK_AFTER_MS = 15_000
DATASET = generate(items=100, users=60, events=2500)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class NotRecoveredError(Exception):
    """The system did not come back, or did not take in what was sent."""


@dataclass
class Rig:
    """One run's namespace on a running stack. `async with Rig(...) as rig:` starts the workers and the traffic."""

    stack: LocalStack
    bundle: Bundle
    seed: int
    mutant: str | None = None
    rates: Rates = field(default_factory=Rates)
    unreachable_s: float = 60.0
    data: Dataset = DATASET
    in_time: bool = False  # whether a slow recovery is a broken promise; it may be the machine's fault

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.to_pause: set[AgentKind] = set()  # kinds whose workers are to pause, and have not yet
        namespace = f"c{uuid.uuid4().hex[:8]}"
        own = load_settings(
            namespace=namespace,
            data_dir=self.stack.data_dir,
            stuck_after_ms=STUCK_AFTER_MS,
            redis_durability_ms=DURABILITY_MS,
        )
        self.settings: Settings = with_local_stack(own)
        (port,) = free_ports(1)
        self.milvus = Proxy(port, urlsplit(self.settings.milvus_uri).port or 0)
        through_proxy = {"milvus_uri": f"http://127.0.0.1:{port}"}
        self.workers = Workers(self.settings.model_copy(update=through_proxy), self.mutant)
        catalogue = [(update.item_id, update.attributes or {}) for update in self.data.items(self.data.test_ms)]
        given = self.seed, self.settings.partitions, catalogue, self.rates
        workload = Workload(*given) if self.data is DATASET else Replayed(*given, data=self.data)
        self.feeder = Feeder(self.settings.kafka_bootstrap, namespace, workload)
        self.logs = Logs(self.settings.kafka_bootstrap, namespace)
        self.view: views.ActiveView | None = None
        self.problems: list[str] = []
        self.taken_in_by: list[TakenIn] = []
        self.refilled_from_ms: int | None = None  # Redis is emptied, and not all is known to be back
        self.refilled: list[tuple[int, int]] = []  # from when to when
        self._fault_ended_s: float | None = None

    async def __aenter__(self) -> "Rig":
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        await self.milvus.start()
        await topics.apply(self.settings)
        self.view = await views.activate(self.settings, self.bundle.path, self.bundle.version)
        for kind in AGENT_KINDS:
            for _ in range(WORKERS_OF_A_KIND):
                self.workers.start(kind)
        await self.until(self.workers.ready, READY_WITHIN_S, "the workers are not ready")
        await self.feeder.connect()
        await self.feeder.send(self.feeder.workload.catalogue(self.now_ms()))
        await self.feeder.acknowledged()
        await self.drained()
        self.feeder.start()

    async def __aexit__(self, *_: object) -> None:
        with suppress(Exception):
            await self.feeder.stop()
        await asyncio.to_thread(self.workers.stop)  # they may need what runs in this loop
        await self.milvus.stop()

    async def finish(self) -> None:
        """No more traffic; requests are answered; everything is taken in; the workers drain and end, for good."""
        await self.feeder.stop()
        await self.well()
        await self.drained()
        await asyncio.to_thread(self.workers.stop)  # they may need what runs in this loop

    async def until(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        """Ask in a thread until it holds, and look after the workers meanwhile. Raises NotRecoveredError."""
        end = time.monotonic() + within_s
        while not await asyncio.to_thread(holds):
            self.workers.supervise()
            if time.monotonic() > end:
                raise NotRecoveredError(f"{what} after {within_s:.0f} s")
            await asyncio.sleep(0.1)

    async def until_async(self, holds: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
        """The same for what is asked in this loop."""
        end = time.monotonic() + within_s
        while not await holds():
            self.workers.supervise()
            if time.monotonic() > end:
                raise NotRecoveredError(f"{what} after {within_s:.0f} s")
            await asyncio.sleep(0.2)

    async def drained(self) -> None:
        """Wait until the offsets that every group has committed are the ends of its topic. Raises NotRecoveredError."""
        end = time.monotonic() + DRAINED_WITHIN_S
        while lags := await self.lags():
            self.workers.supervise()
            if time.monotonic() > end:
                for worker in self.workers.running:
                    live, gauges = await asyncio.to_thread(lambda worker=worker: (worker.live(), worker.gauges()))
                    say(f"  {worker.log.name}: live {live}, {gauges}")
                raise NotRecoveredError(f"not taken in after {DRAINED_WITHIN_S:.0f} s: {lags}")
            await asyncio.sleep(0.2)

    async def lags(self) -> dict[str, int]:
        """Topic -> records that its group has not committed; those with none are left out."""
        found = {}
        for topic, group in self._groups().items():
            try:
                found[topic] = await group_lag(self.settings, group, self.settings.topic(topic))
            except RecallError as error:
                found[topic] = -1
                say(f"  {error}")
        return {topic: lag for topic, lag in found.items() if lag}

    def _groups(self) -> dict[str, str]:
        assert self.view is not None
        names = {
            ACTIVITY: "recall-activity",
            ITEMS: f"recall-items.{self.view.collection}",
            REQUESTS: "recall-requests",
        }
        return {topic: self.settings.group(name) for topic, name in names.items()}

    async def ends(self, topic: str) -> dict[int, int]:
        """Partition -> its end now."""
        return await end_offsets(self.settings, self.settings.topic(topic))

    async def committed(self, topic: str) -> dict[int, int]:
        """Partition -> what its group has committed."""
        admin = admin_client(self.settings)
        async with connected(self.settings, admin):
            offsets = await admin.list_consumer_group_offsets(self._groups()[topic])
        own = self.settings.topic(topic)
        return {place.partition: entry.offset for place, entry in offsets.items() if place.topic == own}

    async def taken_in(self, topics: Sequence[str], within_s: float) -> None:
        """Wait until all that stands in these topics now is committed. Raises NotRecoveredError."""
        until_ms = self.now_ms()
        left = {topic: await self.ends(topic) for topic in topics}

        async def done() -> bool:
            for topic, ends in list(left.items()):
                with suppress(RecallError):
                    committed = await self.committed(topic)
                    if all(committed.get(partition, 0) >= end for partition, end in ends.items()):
                        del left[topic]
            return not left

        await self.until_async(done, within_s, f"not all of {' and '.join(topics)} is committed")
        if ACTIVITY in topics:
            self.taken_in_by.append(TakenIn(until_ms, self.now_ms()))

    async def apply_topics(self, partitions: int) -> None:
        """`recall topics apply`, with so many partitions."""
        await topics.apply(self.settings.model_copy(update={"partitions": partitions}))

    def wrong(self, line: str) -> None:
        """Something was not as it must be: it is a difference of the kind `wrong_state`."""
        self.problems.append(line)

    def service(self, name: str) -> Service:
        """One server of the stack."""
        return next(service for service in self.stack.services if service.name == name)

    @staticmethod
    def now_ms() -> int:
        """Epoch milliseconds."""
        return time.time_ns() // 1_000_000

    def fault_ended(self) -> None:
        """What was broken is whole now; the last call counts. A fault that never calls this ends when it returns."""
        self._fault_ended_s = time.monotonic()

    async def recovered(self) -> float:
        """Seconds from the end of the fault until all workers are ready and each partition's requests answered `ok`.

        Waits for that; raises NotRecoveredError.
        """
        begun = time.monotonic() if self._fault_ended_s is None else self._fault_ended_s
        self._fault_ended_s = None
        await self.until(self.workers.ready, RECOVERED_WITHIN_S, "the workers are not ready")
        await self.well()
        if self.refilled_from_ms is not None:
            self.refilled.append((self.refilled_from_ms, self.now_ms()))
            self.refilled_from_ms = None
        return time.monotonic() - begun

    async def ask(self) -> str:
        """What is said to a request that anybody might send: `ok`, or status and reason, or `nothing`."""
        return (await self._ask(["one-0"]))[0]

    async def _ask(self, user_ids: Sequence[str]) -> list[str]:
        try:
            async with RecallClient(self.settings) as client:
                return await asyncio.gather(*(_said(client, user_id) for user_id in user_ids))
        except RecallError:
            return ["nothing"] * len(user_ids)

    async def well(self) -> None:
        """Ask one user of each partition of requests, until every one was answered `ok`. Raises NotRecoveredError."""
        left = one_of_each_partition(self.feeder.workload.activity_partitions)  # they grow together

        async def all_ok() -> bool:
            said = dict(zip(left, await self._ask(left), strict=True))
            left[:] = [user_id for user_id in left if said[user_id] != "ok"]
            return not left

        await self.until_async(all_ok, RECOVERED_WITHIN_S, "requests of each partition are not answered `ok`")

    async def answered(self, wanted: str) -> None:
        """Ask until that is said. Raises NotRecoveredError."""

        async def said() -> bool:
            return await self.ask() == wanted

        await self.until_async(said, RECOVERED_WITHIN_S, f"requests are not answered `{wanted}`")

    async def working(self, kind: AgentKind) -> None:
        """Wait until all workers of a kind are ready: they have partitions to work on."""
        await self.until(lambda: all(each.ready() for each in self.workers.of(kind)), READY_WITHIN_S, f"{kind} waits")

    async def in_hand(self, workers: Sequence[Worker]) -> None:
        """Wait until each of these has a batch in hand."""
        await self.until(lambda: all(map(busy, workers)), BUSY_WITHIN_S, "nothing is in hand")

    async def restart(self, service: Service) -> None:
        """Start a server again, on its ports and data, while the traffic goes on: that is the end of its fault."""
        service.start()
        self.fault_ended()
        end = time.monotonic() + service.ready_within_s
        while not await asyncio.to_thread(service.probe):
            if service.process is None or service.process.poll() is not None or time.monotonic() > end:
                raise NotRecoveredError(service.death())
            await asyncio.sleep(0.1)
        self.stack.write()


async def _said(client: RecallClient, user_id: str) -> str:
    request_id = f"probe-{uuid.uuid4().hex}"
    try:
        answer = await client.ask(RecallRequest(request_id=request_id, user_id=user_id, k=10, timeout_ms=5000))
    except RecallError:
        return "nothing"
    return " ".join([answer.status, *answer.reasons]) if answer.status != "ok" else "ok"


def busy(worker: Worker) -> bool:
    """Whether it has a batch in hand."""
    return worker.gauges().get("recall_in_flight_batches", 0) > 0


def fit_bundle(folder: Path, data: Dataset = DATASET) -> Bundle:
    """A small closed-form bundle, on made-up films unless told otherwise."""
    spec = builtin_spec(data.spec)
    log, catalogue = data.log.before(data.test_ms), data.catalogue(data.test_ms)
    return fit(log, catalogue, load_spec(spec), spec.read_text(), folder, FitOptions(dim=32), lambda *_: None)
