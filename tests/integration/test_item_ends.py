"""Where the history of item-updates ends for a view: on a real broker and a real Redis."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from workers import topics
from workers.errors import DependencyUnavailable
from workers.kafka_client import history_ends
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.item_ends import note_ends

GROUP = "some-view"
COLLECTION = "items_v1"
RECORDS = {0: 5, 1: 4, 2: 0}

CASES: dict[str, tuple[dict[int, int], dict[int, int]]] = {
    "a new view": ({}, {0: 5, 1: 4, 2: 0}),
    "all is done": ({0: 5, 1: 4}, {0: 5, 1: 4, 2: 0}),
    "a worker that is behind": ({0: 2, 1: 0}, {0: 2, 1: 0, 2: 0}),
    "nothing was ever done of one partition": ({0: 2}, {0: 2, 1: 4, 2: 0}),
    "one was committed in a topic that has been made anew since": ({0: 90, 1: 3}, {0: 5, 1: 3, 2: 0}),
}


async def commit(settings: Settings, offsets: Mapping[int, int]) -> None:
    """As the group, while it does not run."""
    topic, group = settings.topic("item-updates"), settings.group(GROUP)
    own = {"bootstrap_servers": settings.kafka_bootstrap, "group_id": group, "enable_auto_commit": False}
    async with AIOKafkaConsumer(**own) as consumer:
        consumer.assign([TopicPartition(topic, n) for n in offsets])
        await consumer.commit({TopicPartition(topic, n): offset for n, offset in offsets.items()})


@pytest.fixture
async def written(settings: Settings, tmp_path: Path) -> Settings:
    """A topic of three partitions that holds some records."""
    settings = settings.model_copy(update={"data_dir": tmp_path, "partitions": len(RECORDS)})
    await topics.apply(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap) as producer:
        for partition, records in RECORDS.items():
            for n in range(records):
                await producer.send_and_wait(settings.topic("item-updates"), b"%d" % n, b"a", partition=partition)
    return settings


@pytest.mark.parametrize("case", CASES)
async def test_history_ends_at_what_is_done(written: Settings, case: str) -> None:
    committed, ends = CASES[case]
    if committed:
        await commit(written, committed)
    assert await history_ends(written, written.group(GROUP), written.topic("item-updates")) == ends


async def test_a_group_of_which_nothing_is_said_is_no_new_one(
    written: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that has just started may not have read yet what groups have committed."""
    await commit(written, {0: 2})

    async def nothing(*_: object, **__: object) -> dict[TopicPartition, object]:
        return {}

    monkeypatch.setattr("workers.kafka_client.ANSWERS_WITHIN_S", 1.0)
    monkeypatch.setattr("aiokafka.admin.AIOKafkaAdminClient.list_consumer_group_offsets", nothing)
    with pytest.raises(DependencyUnavailable):
        await history_ends(written, written.group(GROUP), written.topic("item-updates"))


async def test_what_was_noted_first_stays_until_redis_is_emptied(written: Settings) -> None:
    client = connect(written)
    ends = partial(history_ends, written, written.group(GROUP), written.topic("item-updates"))
    assert await note_ends(client, written, COLLECTION, await ends()) == {0: 5, 1: 4, 2: 0}
    await commit(written, {0: 2, 1: 3})
    assert await note_ends(client, written, COLLECTION, await ends()) == {0: 5, 1: 4, 2: 0}
    async for key in client.scan_iter(match=f"{written.namespace}:*"):
        await client.delete(key)
    assert await note_ends(client, written, COLLECTION, await ends()) == {0: 2, 1: 3, 2: 0}
    await client.aclose()
