"""What stands in the topics, read by a consumer of the harness' own."""

from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

ACTIVITY, ITEMS, REQUESTS = "user-activity", "item-updates", "recall-requests"
CANDIDATES, DEAD_LETTERS = "recall-candidates", "recall-dead-letters"
INPUTS = (ACTIVITY, ITEMS, REQUESTS)
TOPICS = (*INPUTS, CANDIDATES, DEAD_LETTERS)

Place = tuple[str, int, int]
"""(topic without its namespace, partition, offset)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a topic. `taken_ms` is the broker's time."""

    topic: str
    partition: int
    offset: int
    taken_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.topic, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset} key {self.key!r}: {(self.value or b'null')[:200]!r}"


async def read_topics(bootstrap: str, namespace: str, partitions: int) -> dict[str, list[Entry]]:
    """Every record of the five topics, each topic in the order in which the broker took them."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, max_poll_records=5000)
    await consumer.start()
    try:
        return {topic: await _read(consumer, f"{namespace}.{topic}", partitions, topic) for topic in TOPICS}
    finally:
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer, full_name: str, count: int, topic: str) -> list[Entry]:
    partitions = [TopicPartition(full_name, number) for number in range(count)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning()
    ends = await consumer.end_offsets(partitions)
    entries = []
    while any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await consumer.getmany(timeout_ms=500)).values():
            entries += [
                Entry(topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records
            ]
    return sorted(entries, key=lambda entry: (entry.taken_ms, entry.partition, entry.offset))
