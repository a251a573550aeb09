"""What the pipelines need from the outside, as small protocols: batch in, batch out, in input order.

Every method is a coroutine that never blocks the event loop, raises only errors of workers/errors.py (DependencyError
and its children; nothing of a vendor), and may be cancelled at any await. A batch of one equals the same row inside a
larger batch. An empty batch is answered without touching the backend. `close` may be called twice.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.records import ItemRecord
from workers.filters import Filter

MAX_SEARCH_DEPTH = 16_384  # what one Milvus search may return

Float32 = NDArray[np.float32]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class StoredUser:
    """One user as stored: the record's bytes (None = unknown) and the raw seen set (SEEN_ENTRY rows).

    `uncertain`: there is no record, or one of a user who was forgotten, and that says nothing: not all that Kafka
    retains is in the table (yet, or again).
    """

    record: bytes | None
    seen: bytes
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class UserChange:
    """A compare-and-set of one user: applied only while the stored token is `expected_token` (b"" = no record yet).

    `seen` is appended to the stored seen set; with `replace_seen` it takes its place (compaction, forgetting).
    """

    user_id: str
    expected_token: bytes
    record: bytes
    seen: bytes = b""
    replace_seen: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of one UserChange: whether it was written, and the length of the seen set after it, in bytes.

    `refused`: what the backend holds in this user's place is no user's data; it was left as it is, and always will be.
    """

    written: bool
    seen_bytes: int = 0
    refused: bool = False


class UserTable(Protocol):
    """Facts about users. Record and seen set of one user change together, atomically."""

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The records alone."""
        ...

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        """Records and seen sets."""
        ...

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        """Apply each change whose token still matches; idempotent only through the token. No user twice in a batch."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


@dataclass(frozen=True, slots=True)
class PopularChange:
    """What the events of one partition in [first_offset, end_offset) add to its counts. Offsets may be left out.

    `additions`: (epoch, segment) -> item hash -> amount, a positive integer; segment "" = everybody.
    """

    partition: int
    first_offset: int
    end_offset: int
    additions: Mapping[tuple[int, str], Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class PopularItems:
    """Items, most popular first, equal ones by hash: uint64[N] and float64[N].

    A score counts events, each as much as it weighs against one at the start of the newest epoch: only ratios tell.
    """

    hashes: UInt64
    scores: NDArray[np.float64]


class PopularTable(Protocol):
    """Counts of target events by item: one record per partition of `user-activity`, merged when they are read."""

    async def add(self, changes: Sequence[PopularChange]) -> list[int]:
        """Add each change, whole or not at all, and expect its `end_offset` next. No partition twice in a batch.

        Returns the offset that each partition expected before (0 = none). Only a change that begins there is added:
        where it lies beyond `first_offset`, some of these events were counted already; where it lies before, some are
        missing. So a change that is repeated changes nothing. Only the two newest epochs of a partition are kept; what
        is added to an older one is dropped.
        """
        ...

    async def expected(self, partitions: Sequence[int]) -> list[int]:
        """The offset that each partition expects next; 0 = none."""
        ...

    async def expect(self, offsets: Mapping[int, int]) -> None:
        """Let partitions expect these offsets next, whatever they expected. What was counted stays."""
        ...

    async def top(self, segments: Sequence[str], n: int) -> list[PopularItems]:
        """The n most popular items of each segment, over all partitions; of each partition its n most popular count."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


@dataclass(frozen=True, slots=True)
class ItemChanges:
    """Recent changes of the item table, oldest first. `complete` False = some were missed: drop every cached row."""

    cursor: str
    hashes: UInt64  # uint64[N]
    deleted: NDArray[np.bool_]  # bool[N]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ItemHeads:
    """Where item records come from and whether they are deleted: arrays [N] in parallel, in no order.

    `readable` False = a record that this version cannot read; nothing else of it is known.
    """

    hashes: UInt64
    partitions: NDArray[np.int64]
    offsets: UInt64
    deleted: NDArray[np.bool_]
    readable: NDArray[np.bool_]

    def take(self, chosen: NDArray[np.bool_]) -> "ItemHeads":
        """Some of them."""
        where = (self.hashes[chosen], self.partitions[chosen], self.offsets[chosen])
        return ItemHeads(*where, self.deleted[chosen], self.readable[chosen])


@dataclass(frozen=True, slots=True)
class Intent:
    """Items that somebody said they would write, and has not said that they did: arrays [N] in parallel.

    Of items that he writes he may have written the vectors and not the records; whether he lives is not known.
    """

    since_ms: int  # by his clock
    hashes: UInt64
    partitions: NDArray[np.uint32]


class ItemTable(Protocol):
    """One view's knowledge of its items, and the feed of its recent changes."""

    async def read(self, hashes: UInt64) -> list[ItemRecord | None]:
        """Records by item hash: of two ids with one hash, that of the one which is stored.

        Raises RowRefused, with the positions, for records that this version cannot read.
        """
        ...

    async def read_to_write(self, hashes: UInt64, partitions: Sequence[int], intent: str) -> list[ItemRecord | None]:
        """As `read`; and everybody can see, under that name, that these items are about to be written."""
        ...

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[ItemRecord | None], intent: str | None = None
    ) -> list[bool]:
        """Write each record and tell the feed, no item twice in a batch.

        `expected` are the records that were read before (None = there was none). False where another record stands by
        now, of another partition or offset. Idempotent: the record's own place is no conflict. When all were written,
        the intent of that name is taken back. Raises RowRefused, with the positions, where it is no record that stands.
        """
        ...

    async def intents(self) -> dict[str, Intent]:
        """Those that nobody has taken back, by name."""
        ...

    async def drop_intents(self, names: Sequence[str]) -> None:
        """Take intents back, in the place of who left them. Idempotent."""
        ...

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_], NDArray[np.bool_]]:
        """History vectors by item hash: float32[N, D], zeros where bool[N] is False (unknown or deleted).

        The second bool[N] is True where there is no record, and that says nothing: not all that Kafka retains is in the
        table (yet, or again).
        """
        ...

    async def changes(self, cursor: str | None) -> ItemChanges:
        """Changes after `cursor`; None = nothing but the present end of the feed. Does not wait for new ones."""
        ...

    def heads(self) -> AsyncIterator[ItemHeads]:
        """All records, deleted ones too, some thousand at a time; not for serving: it walks everything that is stored.

        A record that stands from beginning to end is there once or more, one that comes or goes meanwhile maybe.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


@dataclass(frozen=True, slots=True)
class IndexRows:
    """Rows to upsert, columns in parallel, no item twice: ids, float32[N, D], and the filterable attributes of each."""

    item_ids: Sequence[str]
    vectors: Float32
    attributes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Hits:
    """Search results per query, best first. A score is higher for a better item under every metric."""

    item_ids: list[list[str]]
    scores: list[Float32]


class HistoryVectors(Protocol):
    """The items' history vectors, near at hand, and which items were deleted a moment ago."""

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_]]:
        """float32[B, H, D] of uint64[B, H]; zeros for 0 and for unknown items.

        bool[B, H]: True where there are zeros because not all items are back yet.
        """
        ...

    def at_hand(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_]]:
        """float32[B, H, D], a copy, without waiting. bool[B, H]: True where there are zeros and `vectors` would ask."""
        ...

    def deleted(self, hashes: UInt64) -> NDArray[np.bool_]:
        """bool[N]: True where the item of that hash was deleted recently."""
        ...


class ItemIndex(Protocol):
    """One collection of item vectors: dimension and metric are fixed when the adapter is opened."""

    async def search(self, vectors: Float32, k: int, where: Filter = ()) -> Hits:
        """The k best items of each of float32[B, D] for which the filter holds; fewer when fewer exist.

        At most MAX_SEARCH_DEPTH.
        """
        ...

    async def exact(self, vector: Float32, k: int) -> Hits:
        """The k best items of float32[1, D], all scores computed whatever the index does else; not for serving."""
        ...

    async def upsert(self, rows: IndexRows) -> None:
        """Write rows; raises RowRefused when the backend refuses rows. Idempotent."""
        ...

    async def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items; unknown ids are no error. Idempotent."""
        ...

    async def count(self) -> int:
        """Items that a search may find."""
        ...

    async def ids(self, part: int, parts: int) -> list[str]:
        """The ids of one of `parts` even parts of the items, by their hashes, in no order; not for serving.

        Part n holds the hashes from n * 2^64 / parts on, each taken as a signed number and 2^63 added.
        """
        ...

    async def rows(self, hashes: UInt64) -> IndexRows:
        """The rows of these item hashes, those that are there, in no order; `attributes` as they are stored."""
        ...

    async def visible(self, item_ids: Sequence[str]) -> list[bool]:
        """Whether each of these items is there now."""
        ...

    async def ping(self) -> None:
        """One short question. Raises DependencyError when it cannot be asked, or is not well."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """What a candidate source may go by of one request."""

    embedding: Float32 | None  # float32[D], the user tower's; None = not asked for, or not to be had
    session: Float32  # float32[n, D], history vectors of the newest items of the user's session, newest last
    anchors: Float32  # float32[n, D], history vectors of the items that more are wanted like; zeros for unknown ones
    segment: str | None  # the user's segment of popularity, None = unknown


class CandidateSource(Protocol):
    """Where candidates come from."""

    @property
    def dependency(self) -> str | None:
        """The backend that a call which takes too long is held against; None: it waits for none, and needs no limit."""
        ...

    def answers(self, query: Query) -> bool:
        """Whether the query has what the source goes by; it is not asked for others, which find nothing."""
        ...

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """At most `depth` items of each query for which the filter holds, best first. Hits in the order of queries."""
        ...


class FeatureSource(Protocol):
    """Where values about users come from that neither their events nor their requests carry. Opened with a timeout."""

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """The values of each user, by name; a user or a value that is not there is simply absent.

        Values are what JSON has, and come as they are stored: who asks decides whether one is of use. Answers within
        its timeout. Raises DependencyTimeout, DependencyUnavailable.
        """
        ...

    async def check(self, names: Sequence[str], /) -> str | None:
        """One line on what of these names it can never answer; None when it can, or does not know.

        Raises DependencyError when it does not answer.
        """
        ...

    async def ping(self) -> None:
        """One short question. Raises DependencyError when it is not answered."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


class Tower(Protocol):
    """A model: named arrays in, named arrays out, the batch on the first axis."""

    async def embed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """Run the model off the event loop, under its own deadline.

        Raises DependencyTimeout, DependencyUnavailable, and RowRefused when these rows make it fail, and others do not.
        """
        ...

    async def ping(self) -> None:
        """See that it can be asked now. Raises DependencyError."""
        ...

    async def close(self) -> None:
        """Free the model."""
        ...


class Clock(Protocol):
    """The time, injected so that tests may set it."""

    def now_ms(self) -> int:
        """Epoch milliseconds UTC."""
        ...
