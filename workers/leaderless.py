"""A partition without a leader: aiokafka asks brokers where it is without a pause, and its producer sends to no other
one until they answer. Kafka's own client asks once in `retry.backoff.ms` and goes on meanwhile; so it is with this.
"""

import asyncio
import time
from collections.abc import Collection
from functools import partial, wraps
from typing import Any

from aiokafka.consumer.fetcher import Fetcher
from aiokafka.producer.sender import Sender

PAUSE_S = 0.1  # what Kafka's own client waits, between an answer that names no leader and the next question


def ask_with_pauses() -> None:
    """Have every producer that is made from now on do so, and every consumer. May be called twice."""
    if not hasattr(Sender.__init__, "__wrapped__"):
        Sender.__init__ = _with_pauses(Sender.__init__)
        Fetcher._get_actions_per_node = _now_and_then(Fetcher._get_actions_per_node)


def _now_and_then(actions: Any) -> Any:
    """What a fetcher is to do next: to ask where partitions are is not among it more often than once in a pause."""

    @wraps(actions)
    def found(fetcher: Any, assignment: Any) -> tuple[Any, ...]:
        fetches, resets, timeout_s, asks, resumed = actions(fetcher, assignment)
        if asks:
            now_s = time.monotonic()
            asks = now_s >= getattr(fetcher, "_asks_again_s", 0.0)
            if asks:
                fetcher._asks_again_s = now_s + PAUSE_S
            timeout_s = min(timeout_s, PAUSE_S)
        return fetches, resets, timeout_s, asks, resumed

    return found


def _with_pauses(init: Any) -> Any:
    @wraps(init)
    def made(sender: Any, client: Any, *, message_accumulator: Any, **named: Any) -> None:
        init(sender, client, message_accumulator=_Drained(client, message_accumulator), **named)

    return made


class _Drained:
    """The accumulator as the sender sees it: every batch in it has a leader, or may be left until somebody says so."""

    def __init__(self, client: Any, accumulator: Any) -> None:
        self._client = client
        self._accumulator = accumulator
        self._asking = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accumulator, name)

    def drain_by_nodes(
        self, ignore_nodes: Collection[int], muted_partitions: Collection[Any] = frozenset()
    ) -> tuple[Any, bool]:
        """Batches by node, and False: nothing is to be waited for but data, of which `waiter` tells."""
        batches, leaderless = self._accumulator.drain_by_nodes(ignore_nodes, muted_partitions)
        if leaderless and not self._asking:
            self._asking = True
            self._client.force_metadata_update().add_done_callback(self._answered)
        return batches, False

    def _answered(self, _: asyncio.Future[bool]) -> None:
        self._look_again()
        asyncio.get_running_loop().call_later(PAUSE_S, partial(self._look_again, asking=False))

    def _look_again(self, *, asking: bool = True) -> None:
        """Have the sender drain once more, as if there were data."""
        self._asking = asking
        waiter = self._accumulator.waiter()
        if not waiter.done():
            waiter.set_result(None)
