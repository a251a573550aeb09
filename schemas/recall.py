"""The request of topic `recall-requests` and the answer of topic `recall-candidates`."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from schemas.activity import Id, TimestampMs

MAX_K = 1000
DEFAULT_K = 100
DEFAULT_SCENE = "default"
DEFAULT_TIMEOUT_MS = 2000
MAX_TIMEOUT_MS = 60_000
MAX_EXCLUDE_ITEMS = 1000
MAX_ANCHOR_ITEMS = 10
MAX_CLAUSES = 16
REPLY_PARTITION = "reply_partition"
"""The header that chooses the partition of the answer, in decimal digits."""

FilterOp = Literal["eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "contains", "contains_any"]


class FilterClause(Struct, frozen=True, kw_only=True):
    """One clause over a field that features.toml declares filterable; all clauses of a request must hold."""

    field: Id
    op: FilterOp
    value: Any


class RecallRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for the `k` best candidates of one user, before the record's Kafka timestamp + `timeout_ms`.

    What is left out of `k` and `exclude_seen` the scene decides: 100 and true where it says nothing either.
    """

    request_id: Id
    user_id: Id
    timestamp_ms: TimestampMs | None = None  # as-of time: only events before it are seen; None = everything known now
    k: Annotated[int, Meta(ge=1, le=MAX_K)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] = DEFAULT_TIMEOUT_MS
    scene: Id = DEFAULT_SCENE
    after_event_id: Id | None = None  # answer only from a record that contains this activity
    filter: Annotated[list[FilterClause], Meta(max_length=MAX_CLAUSES)] = []
    exclude_items: Annotated[list[Id], Meta(max_length=MAX_EXCLUDE_ITEMS)] = []
    anchor_items: Annotated[list[Id], Meta(max_length=MAX_ANCHOR_ITEMS)] = []
    exclude_seen: bool | None = None
    context: dict[str, Any] | None = None


class Status(StrEnum):
    """What an answer is worth; a closed list."""

    OK = "ok"
    DEGRADED = "degraded"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why an answer is what it is; an open list, readers must accept new ones."""

    COLD_START = "cold_start"
    FEATURE_DEFAULTED = "feature_defaulted"
    SHORT_LIST = "short_list"
    FEATURES_UNAVAILABLE = "features_unavailable"
    FEATURES_STALE = "features_stale"
    MODEL_UNAVAILABLE = "model_unavailable"
    INDEX_UNAVAILABLE = "index_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INVALID_REQUEST = "invalid_request"
    INVALID_FILTER = "invalid_filter"
    ANSWER_TOO_LARGE = "answer_too_large"
    OVERLOADED = "overloaded"


class Removed(Struct, frozen=True, kw_only=True):
    """How many candidates were taken out of the search result, by cause."""

    seen: int = 0
    excluded: int = 0
    deleted: int = 0
    duplicate: int = 0


class Timings(Struct, frozen=True, kw_only=True):
    """Milliseconds spent per step; `total` runs from the record's Kafka timestamp; `queue` is what steps leave of it.

    `reused` is None, or the age of the search results when they were reused: those of an equal request just before.
    """

    queue: float = 0.0
    features: float = 0.0
    tower: float = 0.0
    search: float = 0.0
    total: float = 0.0
    reused: float | None = None


Scores = Annotated[Any, Meta(extra_json_schema={"type": "array", "items": {"type": "number"}})]
"""float32[k] (numpy, encoded straight from the array) or list[float]."""


class CandidateList(Struct, frozen=True, kw_only=True):
    """The answer. Parallel arrays in descending score, equal scores by item id, no item twice."""

    request_id: str
    user_id: str
    scene: str
    status: Status
    timestamp_ms: int
    reasons: list[str] = []
    error_field: str | None = None
    item_ids: list[str] = []
    scores: Scores = []
    sources: list[str] = []
    model_version: str | None = None
    collection: str | None = None
    feature_age_ms: int | None = None  # age of the newest event with an item in the user's record; None: there is none
    removed: Removed = Removed()
    timings_ms: Timings = Timings()
