"""What stands in the topics, read by a consumer of the harness' own."""

from dataclasses import dataclass, replace

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

ACTIVITY, ITEMS, REQUESTS = "user-activity", "item-updates", "recall-requests"
CANDIDATES, DEAD_LETTERS = "recall-candidates", "recall-dead-letters"
INPUTS = (ACTIVITY, ITEMS, REQUESTS)
TOPICS = (*INPUTS, CANDIDATES, DEAD_LETTERS)

Place = tuple[str, int, int, int]
"""(topic without its namespace, how often that had been made anew before, partition, offset)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a topic. `taken_ms` is the broker's time, `log` how often the topic had been made anew before."""

    topic: str
    partition: int
    offset: int
    taken_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    log: int = 0

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.topic, self.log, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset} key {self.key!r}: {(self.value or b'null')[:200]!r}"


class Logs:
    """The five topics of a namespace, with what stood in those that were made anew in between."""

    def __init__(self, bootstrap: str, namespace: str) -> None:
        self._bootstrap = bootstrap
        self._namespace = namespace
        self._earlier: dict[str, list[Entry]] = {topic: [] for topic in TOPICS}
        self._number = dict.fromkeys(TOPICS, 0)  # of the present log of each
        self._letters: dict[str, dict[tuple[int, int], int]] = {}  # source topic -> place of a letter -> log

    async def read(self) -> dict[str, list[Entry]]:
        """Every record of each topic, in the order in which the broker took them; of the last one letters alone.

        A word to paused workers stands there too.
        """
        found = await self._read(*TOPICS)
        letters = [entry for entry in found[DEAD_LETTERS] if source_topic(entry)]
        found[DEAD_LETTERS] = [replace(letter, log=self._source_log(letter)) for letter in letters]
        return {topic: self._earlier[topic] + entries for topic, entries in found.items()}

    async def keep(self, topic: str) -> None:
        """Before a topic is made anew, once all of it has been taken in: what stands there, and letters about it."""
        found = await self._read(topic, DEAD_LETTERS)
        known = self._letters.setdefault(topic, {})
        for letter in found[DEAD_LETTERS]:
            if source_topic(letter) == topic:
                known.setdefault((letter.partition, letter.offset), self._number[topic])
        self._earlier[topic] += found[topic]
        self._number[topic] += 1

    def _source_log(self, letter: Entry) -> int:
        topic = source_topic(letter)
        return self._letters.get(topic, {}).get((letter.partition, letter.offset), self._number.get(topic, 0))

    async def _read(self, *topics: str) -> dict[str, list[Entry]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, max_poll_records=5000)
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await consumer.start()
        await admin.start()
        try:
            return {topic: await self._read_one(consumer, admin, topic) for topic in topics}
        finally:
            await consumer.stop()
            await admin.close()

    async def _read_one(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient, topic: str) -> list[Entry]:
        (described,) = await admin.describe_topics([f"{self._namespace}.{topic}"])
        partitions = [TopicPartition(described["topic"], each["partition"]) for each in described["partitions"]]
        return await _read(consumer, partitions, topic, self._number[topic])


def source_topic(letter: Entry) -> str:
    """Which topic a dead letter is about, without its namespace; '' for what is none."""
    return dict(letter.headers).get("dlq.topic", b"").decode().rpartition(".")[2]


async def _read(consumer: AIOKafkaConsumer, partitions: list[TopicPartition], topic: str, log: int) -> list[Entry]:
    consumer.assign(partitions)
    await consumer.seek_to_beginning()
    ends = await consumer.end_offsets(partitions)
    entries = []
    while any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await consumer.getmany(timeout_ms=500)).values():
            entries += [
                Entry(topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers), log) for r in records
            ]
    return sorted(entries, key=lambda entry: (entry.taken_ms, entry.partition, entry.offset))
