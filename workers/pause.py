"""A worker's pause at the cap of dead letters, and the word that ends it: a record of the dead-letter topic.

Whoever can write letters can read it, whatever else is down. Its first partition is read from the end that it had when
the pause began, so that an earlier resume does not count, and no clocks are compared.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog
from aiokafka import TopicPartition

from schemas import dead_letter_marks
from schemas.dead_letter_marks import RESUME, RESUME_PARTITION
from workers.dependencies import SAY_EVERY_S, Dependencies
from workers.ending import or_end_process
from workers.errors import DependencyError
from workers.kafka_client import connected, producer_client, reader_client, require_topics
from workers.metrics import Metrics
from workers.settings import AgentKind, Settings

LOOK_MS = 500
TRY_AGAIN_S = 1.0
CLOSED_WITHIN_S = 1.0

log = structlog.get_logger()


async def send_resume(settings: Settings, now_ms: int) -> None:
    """Let every paused worker go on. Raises ConfigurationError for a missing topic, DependencyUnavailable."""
    topic = settings.topic("recall-dead-letters")
    await require_topics(settings, topic)
    producer = producer_client(settings)
    async with connected(settings, producer):
        headers = list(dead_letter_marks.headers(RESUME, now_ms))
        await producer.send_and_wait(topic, value=b"[]", partition=RESUME_PARTITION, headers=headers)


class Pause:
    """Off until `begin`, and again once a resume was read; `ended` is called then. Its task ends with `close`."""

    def __init__(
        self,
        kind: AgentKind,
        settings: Settings,
        metrics: Metrics,
        dependencies: Dependencies,
        ended: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._dependencies = dependencies
        self._ended = ended
        self._gauge = metrics.dead_letters_paused.labels(kind)
        self._gauge.set(0)
        self._over = asyncio.Event()
        self._over.set()
        self._task: asyncio.Task[None] | None = None
        self._code = ""
        self._since_s = 0.0
        self._said_s = 0.0
        self._listening = False
        self._position: int | None = None  # read up to here; None = not known yet

    @property
    def on(self) -> bool:
        """Whether it lasts."""
        return not self._over.is_set()

    def missing(self) -> str | None:
        """What is waited for, in one line: from when a resume would be heard on."""
        if not (self.on and self._listening):
            return None
        cap, for_s = self._settings.dead_letters_per_minute, monotonic() - self._since_s
        return (
            f"`recall dead-letters resume`: over {cap} dead letters in a minute, now {self._code} (for {for_s:.0f} s)"
        )

    def begin(self, code: str) -> None:
        """Pause, if that is not so already; `code` is that of the first letter that was not written."""
        if self.on:
            return
        self._over.clear()
        self._gauge.set(1)
        self._code, self._since_s, self._said_s = code, monotonic(), 0.0
        self._task = asyncio.create_task(or_end_process(self._until_resumed()))

    async def over(self) -> None:
        """Wait for its end."""
        await self._over.wait()

    async def close(self) -> None:
        """Listen no longer. May be called twice; waits no longer than a second for a broker that is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSED_WITHIN_S)

    async def _until_resumed(self) -> None:
        place = TopicPartition(self._settings.topic("recall-dead-letters"), RESUME_PARTITION)
        self._position = None
        while True:
            try:
                await self._listen(place)
                break
            except DependencyError as error:
                self._dependencies.failed(error)
                await asyncio.sleep(TRY_AGAIN_S)
        log.info("dead letters resumed", after_s=round(monotonic() - self._since_s, 1))
        self._listening = False
        self._gauge.set(0)
        self._ended()
        self._over.set()

    async def _listen(self, place: TopicPartition) -> None:
        """Read on from where the end was at first, until a resume comes."""
        consumer = reader_client(self._settings)
        async with connected(self._settings, consumer):
            if self._position is None:
                self._position = (await consumer.end_offsets([place]))[place]
            self._dependencies.worked("kafka")
            consumer.assign([place])
            consumer.seek(place, self._position)
            self._listening = True
            while True:
                self._say()
                found = await consumer.getmany(place, timeout_ms=LOOK_MS)
                for record in found.get(place, ()):
                    if dead_letter_marks.is_mark(record.headers, RESUME):
                        return
                    self._position = record.offset + 1

    def _say(self) -> None:
        """One line at first and one every ten seconds."""
        now_s = monotonic()
        if now_s - self._said_s >= SAY_EVERY_S:
            cap, for_s = self._settings.dead_letters_per_minute, round(now_s - self._since_s, 1)
            log.error("dead letters paused", cap=cap, code=self._code, for_s=for_s, todo="recall dead-letters resume")
            self._said_s = now_s
