"""A request/reply client over Kafka: sends recall requests and hands back their answers. What `recall ask` uses."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from schemas import codec
from schemas.recall import CandidateList, RecallRequest
from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable
from workers.settings import Settings

Headers = Sequence[tuple[str, bytes]]


class RecallClient:
    """Asks for candidates. The first answer per request id counts; later ones are counted in `duplicates`.

    `async with RecallClient(settings) as client: answer = await client.ask(request)`; any number may be under way.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._consumer: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[CandidateList]] = {}
        self._answered: set[str] = set()
        self.duplicates = 0

    async def __aenter__(self) -> "RecallClient":
        """Connect and stand at the end of the answers' topic. Raises DependencyUnavailable, ConfigurationError."""
        topic = self._settings.topic("recall-candidates")
        bootstrap = self._settings.kafka_bootstrap
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
        self._consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, enable_auto_commit=False, group_id=None)
        try:
            await self._producer.start()
            await self._consumer.start()  # without a group: every partition of the topic
            await self._consumer.seek_to_end()
        except UnknownTopicOrPartitionError as error:
            await self.close()
            raise ConfigurationError(f"topic {topic} does not exist; `recall topics apply` creates it") from error
        except KafkaError as error:
            await self.close()
            raise DependencyUnavailable("kafka", f"{bootstrap} does not answer; is the stack up?") from error
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, request: RecallRequest, headers: Headers = ()) -> CandidateList:
        """Send one request and wait for its answer, a second longer than its own timeout.

        Raises DependencyTimeout when none came, DependencyUnavailable when the request could not be sent.
        """
        answer: asyncio.Future[CandidateList] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = answer
        try:
            await self._producer.send_and_wait(
                self._settings.topic("recall-requests"),
                key=request.user_id.encode(),
                value=codec.encode_event(request),
                headers=list(headers),
            )
            return await asyncio.wait_for(answer, request.timeout_ms / 1000 + 1)
        except KafkaError as error:
            raise DependencyUnavailable("kafka", f"the request was not sent: {error}") from error
        except TimeoutError as error:
            line = f"no answer to request {request.request_id}; is a recall worker running? (`recall status`)"
            raise DependencyTimeout("recall", line) from error
        finally:
            del self._waiting[request.request_id]

    async def close(self) -> None:
        """End the reader and both connections. May be called twice."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        for connection in (self._consumer, self._producer):
            if connection is not None:
                await connection.stop()
        self._consumer = self._producer = None

    async def _read(self) -> None:
        async for record in self._consumer:
            answer = codec.decode_candidates(record.value)
            waiting = self._waiting.get(answer.request_id)
            if answer.request_id in self._answered:
                self.duplicates += 1
            elif waiting is not None and not waiting.done():
                self._answered.add(answer.request_id)
                waiting.set_result(answer)
