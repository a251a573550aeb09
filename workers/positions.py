"""Where the partitions of an assignment are read from, and how far they were read: the engine's side of a refill.

Like transport.py, whose consumer this belongs to, it goes through Faust's consumer thread to aiokafka's consumer.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka.errors import IllegalStateError, KafkaError

from workers.errors import DependencyError, DependencyUnavailable
from workers.kafka_client import log_ends
from workers.refill import Extent, Refill, Start

LOOK_EVERY_S = 0.1
TRY_AGAIN_S = 0.5
POSITION_WITHIN_S = 1.0
ENDS_WITHIN_S = 10.0

log = structlog.get_logger()


class Positions:
    """Of one consumer; without a refill, positions are what is committed."""

    def __init__(self, consumer: Any, refill: Refill | None) -> None:
        self._consumer = consumer
        self._refill = refill
        self._assignment = 0  # counts them
        self._settled = False
        self._filling: dict[Any, int] = {}  # topic partition -> complete once all before this offset is done
        self._look_at_s = 0.0

    async def put_back(self) -> Mapping[Any, int | None]:
        """Seek to what is committed, and to the beginning where nothing is: aiokafka leaves those as they are.

        Else what a poll has brought and given up, in a group that is new, would never be read. An offset behind the end
        was committed in another log, because the topic has been made anew: it is as if nothing were committed.
        Returns what is committed.
        """
        self._assignment += 1
        self._settled = False
        self._filling = {}
        committed: Mapping[Any, int | None] = await self._consumer._thread.call_thread(self._put_back)
        return committed

    async def _put_back(self) -> Mapping[Any, int | None]:
        consumer = self._consumer._thread._ensure_consumer()
        committed: dict[Any, int | None] = await consumer.seek_to_committed()
        ends: Mapping[Any, int] = {}
        with contextlib.suppress(KafkaError, TimeoutError):  # it is found out when the partition is fetched
            async with asyncio.timeout(ENDS_WITHIN_S):
                ends = await log_ends(consumer, [partition for partition, offset in committed.items() if offset])
        for partition, end in ends.items():
            if (offset := committed[partition] or 0) > end:
                say_made_anew(partition, offset)
                committed[partition] = None
        with contextlib.suppress(IllegalStateError):  # another assignment has come, which begins where it must
            if unread := [partition for partition, offset in committed.items() if not offset]:
                await consumer.seek_to_beginning(*unread)
        return committed

    async def settle(self) -> bool:
        """Before each poll: whether positions are where they must be. Tells the refill of what is complete."""
        if self._refill is None:
            return True
        if self._settled and not (self._filling and time.monotonic() >= self._look_at_s):
            return True
        try:
            await (self._look(self._refill) if self._settled else self._begin(self._refill))
        except DependencyError as error:
            self._refill.dependencies.failed(error)
        except IllegalStateError:
            pass  # another assignment has come
        except (KafkaError, TimeoutError) as error:
            self._refill.dependencies.failed(DependencyUnavailable("kafka", f"{type(error).__name__}: {error}"))
        if not self._settled:
            await asyncio.sleep(TRY_AGAIN_S)
        return self._settled

    async def _begin(self, refill: Refill) -> None:
        consumer, assignment = self._consumer, self._assignment
        assigned = {each.partition: each for each in consumer.assignment()}
        if assigned:
            committed = {n: consumer._read_offset[each] for n, each in assigned.items()}
            starts = await self._starts(refill, assigned, committed)
            if assignment != self._assignment:
                return
            await consumer._thread.seek_wait({assigned[n]: start.offset for n, start in starts.items()})
            if assignment != self._assignment:
                return
            for n, start in starts.items():
                consumer._read_offset[assigned[n]] = start.offset
                if start.offset < (before := committed[n] or 0):
                    consumer.flight.repeats_before[assigned[n].topic, n] = before
            self._filling = {assigned[n]: s.complete_at for n, s in starts.items() if s.complete_at is not None}
        else:
            refill.nothing_assigned()
        self._settled, self._look_at_s = True, 0.0

    async def _starts(
        self, refill: Refill, assigned: Mapping[int, Any], committed: Mapping[int, int | None]
    ) -> dict[int, Start]:
        consumer = self._consumer

        async def extents() -> dict[int, Extent]:
            first, end, log_end = await consumer._thread.call_thread(self._ends, list(assigned.values()))
            return {n: Extent(committed[n], first[each], end[each], log_end[each]) for n, each in assigned.items()}

        topic = next(iter(assigned.values())).topic
        client = consumer._thread._ensure_consumer()
        of = len(client.partitions_for_topic(topic) or ())
        if of <= max(assigned):  # of its own metadata, which may come later than the group's leader's assignment
            await consumer._thread.call_thread(client._client.force_metadata_update)
            raise DependencyUnavailable("kafka", f"{topic} is not known yet")
        return await refill.begin(sorted(assigned), of, extents)

    async def _ends(self, partitions: Sequence[Any]) -> tuple[Mapping[Any, int], ...]:
        """First offsets, those behind the last that can be read, and behind the log; in the consumer's thread."""
        consumer = self._consumer._thread._ensure_consumer()
        first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        return first, end, await log_ends(consumer, partitions)

    async def _look(self, refill: Refill) -> None:
        """Tell of partitions that are done up to where they ended when reading began, whatever came since."""
        self._look_at_s = time.monotonic() + LOOK_EVERY_S
        consumer, assignment = self._consumer, self._assignment
        begun = {each: consumer.flight.unfinished_from((each.topic, each.partition)) for each in self._filling}
        reached = {each: first for each, first in begun.items() if first is not None}
        if len(reached) < len(begun):  # all that was polled of the others is done
            others = [each for each in begun if each not in reached]
            reached |= await consumer._thread.call_thread(self._positions, others)
        for each, offset in reached.items():
            if assignment == self._assignment and offset >= self._filling[each]:
                if not await consumer._may_commit() or assignment != self._assignment:
                    return  # a marker is a commit: none for what a Redis took that is another one by now
                await refill.complete(each.partition)
                self._filling.pop(each, None)

    async def _positions(self, partitions: Sequence[Any]) -> dict[Any, int]:
        """What is read next; behind records of no data too, which nobody delivers. In the consumer's thread."""
        consumer, found = self._consumer._thread._ensure_consumer(), {}
        for each in partitions:
            with contextlib.suppress(TimeoutError):
                found[each] = await asyncio.wait_for(consumer.position(each), POSITION_WITHIN_S)
        return found


def say_made_anew(partition: Any, read_to: int) -> None:
    """One line for who has to know that offsets do not mean what they did."""
    line = "offsets have gone back: the topic was made anew, or has lost records"
    log.error(line, topic=partition.topic, partition=partition.partition, read_to=read_to)
