"""Produces the workload until it is told to stop. What the broker did not take was never sent: the log is the truth."""

import asyncio
import time
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.workload import Message, Workload

STEP_S = 0.1
MOST_PENDING = 5000
SENT_WITHIN_S = 20.0


class Feeder:
    """`start`, and in the end `stop`; `send` in between for what a fault needs on top."""

    def __init__(self, bootstrap: str, namespace: str, workload: Workload) -> None:
        self.workload = workload
        self._bootstrap = bootstrap
        self._namespace = namespace
        self._producer: AIOKafkaProducer | None = None
        self._pending: set[asyncio.Future[object]] = set()
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.steps = 0
        self.failed = 0
        self._over = False
        self.held: set[str] = set()  # topics that get nothing for the time being

    async def connect(self) -> None:
        """A plain producer: its own retries may write a record twice, which is part of the workload."""
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all", linger_ms=2)
        await self._producer.start()

    def start(self) -> None:
        """Begin to feed."""
        self._task = asyncio.create_task(self._feed())

    async def steps_more(self, steps: int) -> None:
        """Wait until so many more steps of the workload were produced."""
        goal = self.steps + steps
        while self.steps < goal:
            if self._task is None or self._task.done():
                raise RuntimeError("nothing is fed any more")
            await asyncio.sleep(0.02)

    async def send(self, messages: Iterable[Message]) -> None:
        """Hand messages to the producer; returns before they are acknowledged."""
        assert self._producer is not None
        for message in messages:
            if message.topic in self.held:
                continue
            try:
                future = await asyncio.wait_for(
                    self._producer.send(
                        f"{self._namespace}.{message.topic}",
                        key=message.key,
                        value=message.value,
                        partition=message.partition,
                    ),
                    SENT_WITHIN_S,
                )
            except (KafkaError, TimeoutError):
                self.failed += 1
                continue
            self._pending.add(future)
            future.add_done_callback(self._delivered)

    async def acknowledged(self) -> None:
        """Wait until the broker has taken, or refused for good, all that was sent until now."""
        if self._pending:
            await asyncio.wait(set(self._pending))

    async def knows(self, topic: str, partitions: int) -> None:
        """Learn of new partitions."""
        assert self._producer is not None
        while len(await self._producer.partitions_for(f"{self._namespace}.{topic}")) < partitions:
            await self._producer.client.force_metadata_update()

    async def stop(self) -> None:
        """End feeding, and wait for what is under way."""
        self._over = True  # and no cancellation, which `wait_for` may keep to itself
        if self._task is not None:
            await self._task
            self._task = None
        if self._producer is not None:
            await self.acknowledged()
            await self._producer.stop()
            self._producer = None

    async def _feed(self) -> None:
        while not self._over:
            if len(self._pending) < MOST_PENDING:
                await self.send(self.workload.step(time.time_ns() // 1_000_000))
                self.steps += 1
            await asyncio.sleep(STEP_S)

    def _delivered(self, future: "asyncio.Future[object]") -> None:
        self._pending.discard(future)
        if future.cancelled() or future.exception() is not None:
            self.failed += 1
