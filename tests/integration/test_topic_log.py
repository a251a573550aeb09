"""A topic as one log: every record once, as the brokers took them, and the same when it is read again."""

from workers import topics
from workers.event_sources import open_events
from workers.kafka_client import connected, producer_client
from workers.settings import Settings
from workers.topic_log import TopicLog

EVENT = b'{"event_id":"e%d","user_id":"u","action":"rate","timestamp_ms":1}'


async def test_partitions_are_read_as_one_log(settings: Settings) -> None:
    await topics.apply(settings)
    name = settings.topic("user-activity")
    producer = producer_client(settings)
    async with connected(settings, producer):
        sent = [await producer.send_and_wait(name, EVENT % n, partition=n % 3) for n in range(40)]
        await producer.send_and_wait(name, b"rubbish", partition=0)
        await producer.send_and_wait(name, None, key=b"u", partition=1)
        async with TopicLog(settings, "user-activity") as log:
            await producer.send_and_wait(name, EVENT % 99, partition=0)  # behind its end
            first, again = [[each async for batch in log.records() for each in batch] for _ in range(2)]
            assert log.part() == 1.0
    places = [(record.timestamp, record.partition, record.offset) for record in first]
    assert places == sorted(places)
    assert places == [(record.timestamp, record.partition, record.offset) for record in again]
    assert places[:40] == sorted((each.timestamp, each.partition, each.offset) for each in sent)
    assert len(places) == 42


async def test_what_no_worker_could_read_is_counted(settings: Settings) -> None:
    await topics.apply(settings)
    activity, items = settings.topic("user-activity"), settings.topic("item-updates")
    producer = producer_client(settings)
    async with connected(settings, producer):
        for value in (EVENT % 1, b"rubbish", None):
            await producer.send_and_wait(activity, value, key=b"u")
        for number, op in enumerate(("upsert", "upsert", "delete", "upsert")):
            value = b'{"item_id":"i%d","op":"%s","timestamp_ms":%d}' % (number % 2, op.encode(), number)
            await producer.send_and_wait(items, value, key=b"i%d" % (number % 2))
        await producer.send_and_wait(items, b"rubbish", key=b"i1")
    async with open_events(settings, None, None) as events:
        catalogue = await events.catalogue()
        read = [event async for batch in events.activity() for event in batch]
    assert catalogue.item_ids == ["i1"]
    assert [event.activity is None for event in read] == [False, True]
    assert events.unreadable == {"items": 1, "activity": 1}
