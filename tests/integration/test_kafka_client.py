"""Commands that ask the broker again and again end with Ctrl-C, whenever it comes."""

import asyncio

import pytest
from aiokafka.client import AIOKafkaClient

from workers import topics
from workers.kafka_client import group_lag
from workers.settings import Settings


async def test_a_cancellation_while_a_client_closes_is_not_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topics.apply(settings)
    close = AIOKafkaClient.close
    closes = 0

    async def interrupted(client: AIOKafkaClient) -> None:
        nonlocal closes
        closes += 1
        task = asyncio.current_task()
        assert task is not None
        if closes == 1:
            task.cancel()  # arrives at the first wait in close, which keeps it
        await close(client)

    async def again_and_again() -> None:
        while True:
            await group_lag(settings, "nobody", settings.topic("item-updates"))

    monkeypatch.setattr(AIOKafkaClient, "close", interrupted)
    done, _ = await asyncio.wait([asyncio.create_task(again_and_again())], timeout=30)
    assert [task.cancelled() for task in done] == [True]
    assert closes == 2, "the other client is closed all the same, and nothing is opened again"
