"""What a worker remembers of its answers: search results for an equal request a moment later, lists for bad times.

Both are bounded and live in the process: a user's requests come through one partition, so to one worker.
"""

from collections.abc import Callable, Hashable
from time import monotonic
from typing import Generic, TypeVar

import msgspec
import numpy as np
from cachetools import TTLCache

from schemas.records import FORGET_SLICE
from workers.digest import digest
from workers.pipelines.admission import Asked
from workers.ports import Float32

MAX_RESULTS = 1024
MAX_ITEMS = 200

T = TypeVar("T")

_encode_ids = msgspec.msgpack.Encoder().encode
_decode_ids = msgspec.msgpack.Decoder(list[str]).decode


class Results(Generic[T]):
    """What the steps before the selection gave, for at most `ttl_ms`; the newest MAX_RESULTS. 0 = nothing is kept.

    The key holds the token of the user's record, which changes with every event, and all of the request that the steps
    depend on. What is removed from a list is looked at anew for every answer.
    """

    def __init__(
        self,
        ttl_ms: int,
        now_s: Callable[[], float] = monotonic,
        looked_up: Callable[[bool], None] = lambda _hit: None,
    ) -> None:
        """`looked_up(hit)` is told of every call, unless nothing is kept."""
        self.ttl_ms = ttl_ms
        self._now_s = now_s
        self._looked_up = looked_up
        self._kept: TTLCache[Hashable, tuple[float, T]] | None = None
        if ttl_ms:
            self._kept = TTLCache(MAX_RESULTS, ttl_ms / 1000, now_s)

    def get(self, key: Hashable) -> tuple[T, float] | None:
        """What was kept, and its age in milliseconds."""
        if self._kept is None:
            return None
        found = self._kept.get(key)
        self._looked_up(found is not None)
        return None if found is None else (found[1], (self._now_s() - found[0]) * 1000)

    def put(self, key: Hashable, result: T) -> None:
        """Keep it."""
        if self._kept is not None:
            self._kept[key] = self._now_s(), result

    def expire(self) -> None:
        """Let go of what is too old: until then only the next `put` does."""
        if self._kept is not None:
            self._kept.expire()


def result_key(asked: Asked, token: bytes) -> Hashable:
    """Equal for requests whose search results are equal. Every user of whom nothing is stored has the token b""."""
    request = asked.request
    own = request.timestamp_ms, request.context or {}, asked.k, asked.exclude_seen, request.exclude_items
    return token, digest(own, *_of_scene(asked))


def list_key(asked: Asked, record: bytes | None) -> Hashable:
    """Equal for a user's requests that may be given each other's lists; another one after the user was forgotten."""
    return asked.request.user_id, b"" if record is None else record[FORGET_SLICE], digest(*_of_scene(asked))


def _of_scene(asked: Asked) -> tuple[object, ...]:
    return asked.request.scene, asked.where, asked.request.anchor_items


class LastLists:
    """The last good list of each user and question, for at most `ttl_ms`; the newest `max_lists`.

    Of a long list the first MAX_ITEMS are kept, 1 to 10 KB each.
    """

    def __init__(self, max_lists: int, ttl_ms: int, now_s: Callable[[], float] = monotonic) -> None:
        self._kept: TTLCache[Hashable, tuple[bytes, Float32]] | None = None
        if max_lists and ttl_ms:
            self._kept = TTLCache(max_lists, ttl_ms / 1000, now_s)

    def get(self, key: Hashable) -> tuple[list[str], Float32]:
        """Item ids and float32[n] scores, best first; nothing when there is none."""
        found = None if self._kept is None else self._kept.get(key)
        return ([], np.zeros(0, dtype=np.float32)) if found is None else (_decode_ids(found[0]), found[1])

    def put(self, key: Hashable, item_ids: list[str], scores: Float32) -> None:
        """Keep it."""
        if self._kept is not None and item_ids:
            self._kept[key] = _encode_ids(item_ids[:MAX_ITEMS]), scores[:MAX_ITEMS].copy()

    def expire(self) -> None:
        """As in Results."""
        if self._kept is not None:
            self._kept.expire()
