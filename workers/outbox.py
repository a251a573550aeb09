"""Where answers and dead letters leave a worker: a partition that takes nothing keeps nobody waiting for the others.

Whoever sends waits until all in-sync replicas have everything, for half a second. A partition that needs longer is
late: what is left for it, and whatever else comes for it, goes on being sent in the background, in order, for as long
as it takes, and nobody waits for it. Nothing is committed past a record whose message is owed. `owed_bytes` and the
records that InFlight may hold back are the bounds: past either nothing more is polled.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from workers.dependencies import Dependencies
from workers.ending import or_end_process
from workers.errors import DependencyTimeout
from workers.publisher import Delivery, Outgoing, Publisher, Told, refusals, together
from workers.retry import until_done

PATIENCE_S = 0.5
SAY_EVERY_S = 4.0  # more often than an outage is taken for over
MAX_OWED_BYTES = 64_000_000


class Outbox:
    """Sends the messages of one worker until it works, each once."""

    def __init__(self, publisher: Publisher, dependencies: Dependencies) -> None:
        self._publisher = publisher
        self._dependencies = dependencies
        self._late: dict[tuple[str, int], Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def owed_bytes(self) -> int:
        """How large everything is that late partitions are owed."""
        return sum(delivery.owed_bytes for delivery in self._late.values())

    async def send(self, topic: str, messages: Sequence[Outgoing], told: Told) -> None:
        """Send all; returns when `told` was told of all, but for what late partitions are owed: of that it will be."""
        prompt = []
        for delivery in await self._deliveries(topic, messages, told):
            if (topic, delivery.partition) in self._late:
                self._owe(delivery)
            else:
                prompt.append(delivery)
        if not prompt:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await together([until_done(delivery.finish, self._dependencies) for delivery in prompt])
        except TimeoutError:
            for delivery in prompt:
                if not delivery.done:
                    self._owe(delivery)

    async def send_all(self, topic: str, messages: Sequence[Outgoing]) -> list[int]:
        """Send all and wait for as long as it takes; positions of messages that are too large to send."""
        refused: list[int] = []
        deliveries = await self._deliveries(topic, messages, refusals(refused))
        await together([until_done(delivery.finish, self._dependencies) for delivery in deliveries])
        return sorted(refused)

    async def _deliveries(self, topic: str, messages: Sequence[Outgoing], told: Told) -> list[Delivery]:
        if not messages:
            return []
        return await until_done(lambda: self._publisher.deliveries(topic, messages, told), self._dependencies)

    def _owe(self, delivery: Delivery) -> None:
        """Behind what its partition is owed already, or in a task of its own, the only one of that partition."""
        place = delivery.topic, delivery.partition
        if place in self._late:
            self._late[place].join(delivery)
            return
        self._late[place] = delivery
        delivery.owed_bytes = delivery.size_bytes()
        task = asyncio.create_task(or_end_process(self._go_on(delivery)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go_on(self, delivery: Delivery) -> None:
        await until_done(partial(self._finish, delivery), self._dependencies)
        del self._late[delivery.topic, delivery.partition]  # at once: whoever joins it relies on this task

    async def _finish(self, delivery: Delivery) -> None:
        """Says now and then that it takes long, and goes on without a pause: whoever comes meanwhile would wait too."""
        told: DependencyTimeout | None = None
        while True:
            try:
                await delivery.finish(SAY_EVERY_S)
            except DependencyTimeout as error:
                told = error
                self._dependencies.failed(error)
            else:
                break
        if told is not None:
            self._dependencies.worked(told.dependency)
