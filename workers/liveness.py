"""What a running app says of itself: facts for health pages, metrics and the watchdog. Nobody is asked for them.

Like transport.py, whose consumer this reads, it knows what Faust's consumer is made of.
"""

import time
from dataclasses import dataclass
from typing import Any

from faust.exceptions import ConsumerNotStarted

from workers.inflight import Batch


@dataclass(frozen=True, slots=True)
class Liveness:
    """Facts about an app: seconds since the poll loop turned, partitions assigned, records not yet taken, the age of
    the oldest one taken and not finished (0 = there is none), batches being worked on, and the partitions' numbers."""

    idle_s: float = 0.0
    assigned: int = 0
    lag: int = 0
    lag_age_ms: int = 0
    in_flight: int = 0
    partitions: frozenset[int] = frozenset()


def liveness(app: Any) -> Liveness:
    """Facts for health pages; asks nobody."""
    consumer = app._consumer
    if consumer is None:
        return Liveness()
    idle_s = time.monotonic() - consumer.last_poll
    try:
        placed = consumer.positions.placed and not app.rebalancing
        assigned = consumer.assignment() if placed else frozenset()
    except ConsumerNotStarted:
        return Liveness(idle_s)
    lag = 0
    for partition in assigned:
        highwater = consumer.highwater(partition)
        read = consumer._read_offset[partition]
        lag += max(0, highwater - read) if highwater is not None and read is not None else 0
    oldest_ms = consumer.flight.oldest_ms()
    age_ms = 0 if oldest_ms is None else max(0, time.time_ns() // 1_000_000 - oldest_ms)
    working = consumer.flight.counts[0] + (0 if consumer.backlog is None else consumer.backlog.running)
    return Liveness(idle_s, len(assigned), lag, age_ms, working, frozenset(each.partition for each in assigned))


def poll_turns(app: Any) -> int | None:
    """How often the poll loop has turned; None before there is one, 0 while it waits to join its group."""
    return None if app is None or app._consumer is None else app._consumer.turns


def oldest_batch(app: Any) -> Batch | None:
    """The batch in hand that was polled first; None without one."""
    return None if app is None or app._consumer is None else app._consumer.flight.oldest()
