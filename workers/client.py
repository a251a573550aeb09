"""A request/reply client over Kafka: sends recall requests and hands back their answers. What `recall ask` uses."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas import codec
from schemas.recall import DEFAULT_TIMEOUT_MS, CandidateList, RecallRequest
from workers.cancelling import cancel
from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.kafka_client import connected, no_answer, require_topics
from workers.kafka_login import connection
from workers.settings import Settings

Headers = Sequence[tuple[str, bytes]]
POLL_MS = 1000
SENT_WITHIN_S = 10.0


class RecallClient:
    """Asks for candidates. The first answer per request id counts; later ones are counted in `duplicates`.

    `async with RecallClient(settings) as client: answer = await client.ask(request)`; any number may be under way.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._consumer: Any = None
        self._opened = AsyncExitStack()
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._answered: set[str] = set()
        self.duplicates = 0

    async def __aenter__(self) -> "RecallClient":
        """Connect and stand at the end of the answers' topic. Raises DependencyUnavailable, ConfigurationError."""
        settings, where = self._settings, connection(self._settings)
        answers = settings.topic("recall-candidates")
        await require_topics(settings, answers, settings.topic("recall-requests"))
        self._producer = AIOKafkaProducer(**where, acks="all", enable_idempotence=True)
        self._consumer = AIOKafkaConsumer(answers, **where, enable_auto_commit=False, group_id=None)
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(connected(settings, self._consumer, self._producer))
            await self._consumer.seek_to_end()  # without a group: of every partition of the topic
            self._opened = opened.pop_all()
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
        record = await self.ask_record(request, headers)
        return codec.decode_candidates(record.value)

    async def ask_record(self, request: RecallRequest, headers: Headers = ()) -> Any:
        """The same, but the answer as the Kafka record it came in: with its partition and headers."""
        value, key = codec.encode_event(request), request.user_id.encode()
        return await self._exchange(request.request_id, value, key, headers, request.timeout_ms)

    async def ask_raw(self, request_id: str, value: bytes) -> CandidateList:
        """Send bytes as they are, good or bad, and wait for the answer to `request_id`."""
        return codec.decode_candidates((await self._exchange(request_id, value, None, (), DEFAULT_TIMEOUT_MS)).value)

    async def _exchange(
        self, request_id: str, value: bytes, key: bytes | None, headers: Headers, timeout_ms: int
    ) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        topic = self._settings.topic("recall-requests")
        try:
            await self._send(topic, key, value, headers)
            return await asyncio.wait_for(answer, timeout_ms / 1000 + 1)
        except TimeoutError as error:
            line = f"no answer to request {request_id}; is one running? (`recall status`)"
            raise DependencyTimeout("recall worker", line) from error
        finally:
            del self._waiting[request_id]

    async def _send(self, topic: str, key: bytes | None, value: bytes, headers: Headers) -> None:
        try:
            async with asyncio.timeout(SENT_WITHIN_S):
                await self._producer.send_and_wait(topic, key=key, value=value, headers=list(headers))
        except KafkaError as error:
            raise DependencyUnavailable("kafka", f"the request was not sent: {error}") from error
        except TimeoutError as error:
            raise no_answer(self._settings) from error

    async def close(self) -> None:
        """End the reader and both connections. May be called twice."""
        if self._reader is not None:
            await cancel(self._reader)
            self._reader = None
        await self._opened.aclose()

    async def _read(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=POLL_MS)
            for record in (record for records in fetched.values() for record in records):
                request_id = next((value for name, value in record.headers if name == "request_id"), b"")
                self._take(request_id.decode(errors="replace"), record)

    def _take(self, request_id: str, record: Any) -> None:
        waiting = self._waiting.get(request_id)
        if request_id in self._answered:
            self.duplicates += 1
        elif waiting is not None and not waiting.done():
            self._answered.add(request_id)
            waiting.set_result(record)
