"""Where the partitions of an assignment are read from, and how far they were read.

First what is committed, then, where there is a refill, what it says. All of it is done by the loop that polls, before
it polls, for as long as that takes: Faust, which asks for it at the end of an assignment, would not wait longer than
for a request, and give the assignment up for good, unsaid.

Like transport.py, whose consumer this belongs to, it goes through Faust's consumer thread to aiokafka's consumer.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import structlog
from aiokafka.errors import IllegalStateError, KafkaError

from workers.dependencies import SAY_EVERY_S
from workers.errors import DependencyError, DependencyUnavailable
from workers.kafka_client import log_ends
from workers.refill import Extent, Refill, Start

LOOK_EVERY_S = 0.1
TRY_AGAIN_S = 0.5
COMMITTED_WITHIN_S = 5.0
POSITION_WITHIN_S = 1.0
ENDS_WITHIN_S = 2.0

log = structlog.get_logger()


class Positions:
    """Of one consumer; without a refill, positions are what is committed."""

    def __init__(self, consumer: Any, refill: Refill | None) -> None:
        self._consumer = consumer
        self._refill = refill
        self._assignment = 0  # counts them
        self.placed = False  # where they are known; else nothing may be polled
        self._begun: set[Any] = set()  # topic partitions that the refill has placed
        self._begin_at_s = 0.0
        self._filling: dict[Any, int] = {}  # topic partition -> complete once all before this offset is done
        self._look_at_s = 0.0
        self._say_at_s = 0.0

    def put_back(self) -> None:
        """They are to be what is committed again, before the next poll."""
        self._assignment += 1
        self.placed = False
        self._begun, self._filling = set(), {}
        self._begin_at_s = 0.0
        self._consumer._read_offset.clear()

    async def settle(self) -> bool:
        """Before each poll: whether positions are where they must be. Tells the refill of what is complete."""
        if not self.placed:
            await self._works(self._place)
        ready = self.placed and (self._refill is None or await self._refilled(self._refill))
        if not ready:
            await asyncio.sleep(TRY_AGAIN_S)
        return ready

    def may_deliver(self, partition: Any) -> bool:
        """Whether what was polled of it counts; where not, the refill has yet to place it, and it is polled again."""
        return self._refill is None or partition in self._begun

    async def _works(self, work: Callable[[], Awaitable[None]]) -> None:
        """Try; what is missing is said."""
        error: DependencyError
        try:
            await work()
        except IllegalStateError:
            return  # another assignment has come
        except DependencyError as missing:
            error = missing
        except (KafkaError, TimeoutError) as missing:
            error = DependencyUnavailable("kafka", f"{type(missing).__name__}: {missing}")
        else:
            return
        if self._refill is not None:
            self._refill.dependencies.failed(error)
        elif time.monotonic() >= self._say_at_s:
            self._say_at_s = time.monotonic() + SAY_EVERY_S
            log.warning("where partitions begin is not known yet", why=str(error))

    async def _place(self) -> None:
        """Seek to what is committed, and to the beginning where nothing is: aiokafka leaves those as they are.

        Else what a poll has brought and given up, in a group that is new, would never be read. An offset behind the end
        was committed in another log, because the topic has been made anew: it is as if nothing were committed.
        """
        assignment = self._assignment
        committed = await self._consumer._thread.call_thread(self._seek, assignment)
        if assignment == self._assignment:
            self._consumer._read_offset.update(committed)
            self.placed = True

    async def _seek(self, assignment: int) -> dict[Any, int | None]:
        """In the consumer's thread; what is committed. Does nothing once another assignment has come."""
        consumer = self._consumer._thread._ensure_consumer()
        assigned = list(consumer.assignment())
        async with asyncio.timeout(COMMITTED_WITHIN_S):
            found = await consumer._coordinator.fetch_committed_offsets(assigned)
        committed = {each: found[each].offset if each in found else -1 for each in assigned}
        ends: Mapping[Any, int] = {}
        with contextlib.suppress(KafkaError, TimeoutError):  # it is found out when the partition is fetched
            async with asyncio.timeout(ENDS_WITHIN_S):
                ends = await log_ends(
                    consumer, [each for each in assigned if committed[each] > 0 and _led(consumer, each)]
                )
        for partition, end in ends.items():
            if committed[partition] > end:
                say_made_anew(partition, committed[partition])
                committed[partition] = -1
        if assignment == self._assignment:
            for partition, offset in committed.items():
                if offset > 0:
                    consumer.seek(partition, offset)
            if unread := [partition for partition, offset in committed.items() if offset <= 0]:
                with contextlib.suppress(TimeoutError):  # it is done as soon as there is a leader
                    async with asyncio.timeout(POSITION_WITHIN_S):
                        await consumer.seek_to_beginning(*unread)
        return {partition: None if offset < 0 else offset for partition, offset in committed.items()}

    async def _refilled(self, refill: Refill) -> bool:
        """Place what the refill has not placed yet, look after what it fills; whether anything may be read."""
        assigned, now_s = self._consumer.assignment(), time.monotonic()
        if not assigned:
            refill.nothing_assigned()
            return True
        if assigned - self._begun and now_s >= self._begin_at_s:
            self._begin_at_s = now_s + TRY_AGAIN_S
            for places in self._by_leader(assigned - self._begun):
                await self._works(partial(self._begin, refill, places))
        if self._filling and now_s >= self._look_at_s:
            await self._works(partial(self._look, refill))
        return bool(self._begun)

    def _by_leader(self, left: Set[Any]) -> list[dict[int, Any]]:
        """Partitions by number, of each broker: one that does not answer, or is none, keeps no others waiting."""
        client, found = self._consumer._thread._ensure_consumer(), dict[int, dict[int, Any]]()
        for each in left:
            if _led(client, each):
                found.setdefault(_leader(client, each), {})[each.partition] = each
        return list(found.values())

    async def _begin(self, refill: Refill, found: Mapping[int, Any]) -> None:
        """Place some that have a leader."""
        consumer, assignment = self._consumer, self._assignment
        committed = {n: consumer._read_offset[each] for n, each in found.items()}
        starts = await self._starts(refill, found, committed)
        if assignment != self._assignment:
            return
        await consumer._thread.seek_wait({found[n]: start.offset for n, start in starts.items()})
        if assignment != self._assignment:
            return
        for n, start in starts.items():
            consumer._read_offset[found[n]] = start.offset
            if start.offset < (before := committed[n] or 0):
                consumer.flight.repeats_before[found[n].topic, n] = before
        self._filling |= {found[n]: s.complete_at for n, s in starts.items() if s.complete_at is not None}
        self._begun |= set(found.values())

    async def _starts(
        self, refill: Refill, found: Mapping[int, Any], committed: dict[int, int | None]
    ) -> dict[int, Start]:
        """What is `committed` in a log that was longer is as if it were not."""
        consumer, assigned = self._consumer, self._consumer.assignment()

        async def extents() -> dict[int, Extent]:
            first, end, log_end = await consumer._thread.call_thread(self._ends, list(found.values()))
            for n, each in found.items():
                if (offset := committed[n] or 0) > log_end[each]:
                    say_made_anew(each, offset)
                    committed[n] = None
            return {n: Extent(committed[n], first[each], end[each], log_end[each]) for n, each in found.items()}

        topic = next(iter(found.values())).topic
        client = consumer._thread._ensure_consumer()
        of = len(client.partitions_for_topic(topic) or ())
        if of <= max(each.partition for each in assigned):  # metadata may come later than the group's assignment
            await consumer._thread.call_thread(client._client.force_metadata_update)
            raise DependencyUnavailable("kafka", f"{topic} is not known yet")
        begun = [each.partition for each in self._begun]
        later = len(assigned) - len(begun) - len(found)
        return await refill.begin(sorted(found), of, extents, begun=begun, later=later)

    async def _ends(self, partitions: Sequence[Any]) -> tuple[Mapping[Any, int], ...]:
        """First offsets, those behind the last that can be read, and behind the log; in the consumer's thread."""
        consumer = self._consumer._thread._ensure_consumer()
        async with asyncio.timeout(ENDS_WITHIN_S):
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


def _led(consumer: Any, partition: Any) -> bool:
    """Whether a partition has a leader, as far as is known."""
    return _leader(consumer, partition) not in {None, -1}


def _leader(consumer: Any, partition: Any) -> Any:
    return consumer._client.cluster.leader_for_partition(partition)


def say_made_anew(partition: Any, read_to: int) -> None:
    """One line for who has to know that offsets do not mean what they did."""
    line = "offsets have gone back: the topic was made anew, or has lost records"
    log.error(line, topic=partition.topic, partition=partition.partition, read_to=read_to)
