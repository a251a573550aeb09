"""The event of topic `item-updates`: the whole item as it is from now on, or its deletion."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from schemas.activity import Id, TimestampMs

AFTER = "recall.after"
"""Header of a winner's copy, decimal: the offset up to which its producer knew what had come of the item."""
MAX_DIGITS = 18  # fits 64 bits


class ItemUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One item update. `attributes` is the whole item, never a patch. The later offset wins, not the later time."""

    item_id: Id
    op: Literal["upsert", "delete"]
    timestamp_ms: TimestampMs
    attributes: dict[str, Any] | None = None  # the item tower's inputs and the filterable fields
    version: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = (
        None  # lower than the stored one: dead letter `stale_version`
    )
    embedding: list[float] | None = None  # used only in a collection of model version `embedding_model`
    embedding_model: Id | None = None


def copy_after(headers: Iterable[tuple[str, bytes | None]]) -> int | None:
    """What the header of a winner's copy says; None = this is no copy, or the header cannot be read."""
    for name, value in headers:
        if name == AFTER and value is not None and value.isdigit() and len(value) <= MAX_DIGITS:
            return int(value)
    return None
