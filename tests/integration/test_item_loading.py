"""The wait for a catalogue: as long as it is taken in, however large it is, and no longer."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas.items import ItemUpdate
from tests.conftest import Stack
from workers import topics, views
from workers.errors import RecallError
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.settings import Settings
from workers.stores import keys

ITEMS = 20
STILL_S = 3.0


@pytest.fixture
async def loaded(stack: Stack, namespace: str, tmp_path: Path) -> Settings:
    """Items in the topic, and an active view that nobody feeds."""
    settings = stack.settings(namespace=namespace, data_dir=tmp_path / "data", partitions=1)
    await topics.apply(settings)
    await views.activate(settings, Path("bundles/1"), "1")
    updates = [ItemUpdate(item_id=f"i{n}", op="upsert", timestamp_ms=1) for n in range(ITEMS)]
    await produce(settings, settings.topic("item-updates"), item_messages(updates))
    return settings


async def test_as_long_as_items_are_taken_in(loaded: Settings) -> None:
    """Each look finds one more committed: all in all later than the wait bears when nothing moves."""
    place = TopicPartition(loaded.topic("item-updates"), 0)
    group = loaded.group(keys.items_group(loaded.collection("1")))
    consumer = AIOKafkaConsumer(bootstrap_servers=loaded.kafka_bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([place])
    await consumer.commit({place: 0})  # the first one of a broker takes long
    told: list[int] = []
    committing: set[asyncio.Task[None]] = set()

    def taken_in(lag: int) -> None:
        told.append(lag)
        committing.add(asyncio.create_task(consumer.commit({place: ITEMS - lag + 1})))

    try:
        begun_s = asyncio.get_running_loop().time()
        await wait_for_items(loaded, taken_in, within_s=STILL_S)
        assert asyncio.get_running_loop().time() - begun_s > STILL_S
        assert set(told) == set(range(1, ITEMS + 1))
        await asyncio.gather(*committing)
    finally:
        await consumer.stop()


async def test_no_longer_than_nothing_is_taken_in(loaded: Settings) -> None:
    told: list[int] = []
    with pytest.raises(RecallError, match=f"{ITEMS} item updates are still waiting"):
        await wait_for_items(loaded, told.append, within_s=0.5)
    assert set(told) == {ITEMS}
