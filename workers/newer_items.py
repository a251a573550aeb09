"""Whether an item has a record in `item-updates` that is newer than a dead letter of it.

The later offset wins: an old update that is produced again would win over whatever came after it, in every view and in
the compaction of the topic. So it may be replayed only while no record of its key stands behind it, refused ones too.
"""

from types import TracebackType

from aiokafka import TopicPartition

from schemas.dead_letter import DeadLetter
from workers.kafka_client import connected, log_ends, reader_client
from workers.settings import Settings
from workers.topic_standing import read_until
from workers.topics import partition_count


class NewerItems:
    """Reads `item-updates` for some keys: `watch` letters, `look`, ask, and `look` again for what came since.

    Memory: a few hundred bytes for each key that is watched. `async with NewerItems(settings)`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.topic = settings.topic("item-updates")
        self._consumer = reader_client(settings)
        self._connected = connected(settings, self._consumer)
        self._newest: dict[bytes, dict[int, tuple[int, int]]] = {}  # key -> partition -> (offset, time) of its last one
        self._first_offset: dict[int, int] = {}  # partition -> of the watched letters that came from it
        self._first_ms = 2**62
        self._looking = False

    async def __aenter__(self) -> "NewerItems":
        await self._connected.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connected.__aexit__(kind, error, trace)

    def watch(self, letter: DeadLetter) -> None:
        """Look out for records of its key; before the first look."""
        self._newest.setdefault(letter.key or b"", {})
        first = self._first_offset.get(letter.partition, letter.offset)
        self._first_offset[letter.partition] = min(first, letter.offset)
        self._first_ms = min(self._first_ms, letter.record_timestamp_ms)

    async def look(self) -> None:
        """Read to the end of the topic: at first from the oldest letter on, later what has come since.

        Open transactions are waited for: what they bring would stand before what is replayed now. Raises as `fetched`.
        """
        if not self._newest:
            return
        if not self._looking:
            await self._begin()
        partitions = self._consumer.assignment()
        async for record in read_until(self._consumer, await log_ends(self._consumer, partitions)):
            found = self._newest.get(record.key or b"")
            if found is not None:
                found[record.partition] = (record.offset, record.timestamp)

    async def _begin(self) -> None:
        """By time, and no later than the first letter in its own partition."""
        consumer = self._consumer
        partitions = [TopicPartition(self.topic, n) for n in range(await partition_count(self._settings, self.topic))]
        ends = await consumer.end_offsets(partitions)
        by_time = await consumer.offsets_for_times(dict.fromkeys(partitions, self._first_ms))
        consumer.assign(partitions)
        for partition in partitions:
            starts = [ends[partition] if by_time[partition] is None else by_time[partition].offset]
            if partition.partition in self._first_offset:
                starts.append(self._first_offset[partition.partition])
            consumer.seek(partition, min(starts))
        self._looking = True

    def newer_than(self, letter: DeadLetter) -> bool:
        """Whether a record of its key was found behind a letter; in other partitions the broker's time decides.

        In its own either does: offsets begin anew in a topic that was made anew.
        """
        at_ms = letter.record_timestamp_ms
        return any(
            offset > letter.offset or 0 < at_ms < taken_ms if partition == letter.partition else taken_ms >= at_ms
            for partition, (offset, taken_ms) in self._newest.get(letter.key or b"", {}).items()
        )
