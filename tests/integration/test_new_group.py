"""A group that has committed nothing yet reads everything, also when a rebalance comes while its first poll waits."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from workers import topics
from workers.engine import serve
from workers.inflight import Batch, BatchPolicy
from workers.settings import Settings
from workers.transport import Consumer, batch_topic, create_app

RECORDS = 40


async def test_what_a_poll_gave_up_is_polled_again(settings: Settings, tmp_path: Path) -> None:
    """The rebalance is made by hand: a poll that was waiting finds that its assignment is over."""
    await topics.apply(settings)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    for n in range(RECORDS):
        await producer.send_and_wait(settings.topic("user-activity"), b"%d" % n, key=b"%d" % n)
    await producer.stop()
    given_up: list[Any] = []
    taken: list[bytes] = []
    everything = asyncio.Event()

    class Interrupted(Consumer):
        async def _wait_next_records(self, timeout: float) -> Any:
            records, active = await super()._wait_next_records(timeout)
            if records and not given_up:
                given_up.extend(record for fetched in records.values() for record in fetched)
                self._renew_flight()  # as `on_partitions_assigned` does
            return records, active

    async def handle(batch: Batch) -> None:
        taken.extend(values(batch.records))
        batch.done()
        if len(set(taken)) == RECORDS:
            everything.set()

    app = create_app(settings.group("new"), settings.model_copy(update={"data_dir": tmp_path}), BatchPolicy())
    app.transport.Consumer = Interrupted

    @app.agent(batch_topic(app, settings.topic("user-activity")))
    async def agent(stream: Any) -> None:
        await serve(stream, handle)

    await app.start()
    try:
        async with asyncio.timeout(30):
            await everything.wait()
    finally:
        await app.stop()
    assert given_up
    assert sorted(taken) == sorted(b"%d" % n for n in range(RECORDS)), "and nothing twice"


def values(records: Sequence[Any]) -> list[bytes]:
    return [record.value for record in records]
