"""Live popularity, pure: what an event adds to the counts of its partition, and the counts of all partitions as one.

Forward decay (Cormode, Shkapenyuk, Srivastava and Xu 2009, "Forward decay: a practical time decay model for streaming
systems") in integers: time is cut into epochs of 16 half-lives, and an event adds 2^10 at the start of one, twice as
much a half-life later. Sums of integers do not depend on order, and nothing that is stored ever needs to be decayed:
older events weigh less because newer ones weigh more. An epoch behind the newest one counts 2^-16.

An event adds at most 2^26, so that the sorted sets of Redis, which hold 64-bit floats, add up 2^27 of them exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.tensors import Encoding, category_name
from schemas.activity import UserActivity
from schemas.records import ProfileField, hash64
from workers.ports import PopularItems, UInt64

EPOCH_HALF_LIVES = 16
EPOCHS_KEPT = 2
UNIT = 1 << 10
EVERYBODY = ""  # the segment of all events; no category has this name

Addition = tuple[int, str, int, int]
"""(epoch, segment or EVERYBODY, item hash, amount): what one event adds, to its segment and to everybody's counts."""


@dataclass(frozen=True, slots=True)
class EpochCounts:
    """Some items of one epoch, segment and partition: uint64[N] hashes and float64[N] amounts, which are integers."""

    epoch: int
    hashes: UInt64
    amounts: NDArray[np.float64]


class Popularity:
    """How a bundle counts: its spec's target, half-life and segment."""

    def __init__(self, encoding: Encoding) -> None:
        target, popular = encoding.spec.target, encoding.spec.popular
        self._action = target.action
        self._at_least = None if target.at_least is None else _least(target.at_least)
        self._half_life_ms = popular.half_life_ms
        self._field = popular.segment
        self._segments = encoding.vocabularies.codes.get(f"profile.{popular.segment}", {})

    @property
    def segments(self) -> list[str]:
        """The values of the segment's field that are counted apart: the bundle's vocabulary of it."""
        return list(self._segments)

    @property
    def definition(self) -> str:
        """Names the rule, in sixteen hexadecimal digits: counts under another one are other counts."""
        rule = [self._action, self._at_least, self._half_life_ms, self._field, EPOCH_HALF_LIVES, UNIT]
        return f"{hash64(msgspec.json.encode(rule).decode()):016x}"

    def addition(self, activity: UserActivity, profile: Sequence[ProfileField]) -> Addition | None:
        """What an event adds; None unless it is a target event that names an item.

        `profile` is the user's just after it. A value is compared as the 32-bit float that the history keeps.
        """
        if activity.action != self._action or activity.item_id is None:
            return None
        if self._at_least is not None and (activity.value is None or activity.value < self._at_least):
            return None
        epoch, amount = forward_weight(activity.timestamp_ms, self._half_life_ms)
        return epoch, self._segment(profile), hash64(activity.item_id), amount

    def _segment(self, profile: Sequence[ProfileField]) -> str:
        """The user's segment, EVERYBODY where there is none: bounded, because the vocabulary is."""
        for name, value, _ in profile:
            if name == self._field:
                segment = category_name(value)
                return segment if segment in self._segments else EVERYBODY
        return EVERYBODY


def forward_weight(timestamp_ms: int, half_life_ms: int) -> tuple[int, int]:
    """(epoch, amount) of an event at this time: UNIT at the start of an epoch, doubled every half-life after it."""
    epoch, since_ms = divmod(timestamp_ms, EPOCH_HALF_LIVES * half_life_ms)
    return epoch, round(UNIT * 2.0 ** (since_ms / half_life_ms))


def _least(at_least: float) -> float:
    """The least value that is at least this one when both are 32-bit floats: an event is not rounded to be compared."""
    rounded = np.float32(at_least)
    middle = (float(np.nextafter(rounded, np.float32(-np.inf))) + float(rounded)) / 2
    return middle if np.float32(middle) >= rounded else math.nextafter(middle, math.inf)


def merged(parts: Sequence[EpochCounts], n: int) -> PopularItems:
    """The n most popular items of parts of several partitions and epochs, in whatever order these come.

    Weights are those of the newest epoch of which there is an item: the newest of all may be so far ahead that nothing
    would be left of them.
    """
    parts = [part for part in parts if len(part.hashes)]
    if not parts:
        return PopularItems(np.zeros(0, dtype=np.uint64), np.zeros(0))
    newest = max(part.epoch for part in parts)
    scales = [2.0 ** (-EPOCH_HALF_LIVES * (newest - part.epoch)) / UNIT for part in parts]
    hashes = np.concatenate([part.hashes for part in parts])
    scores = np.concatenate([part.amounts * scale for part, scale in zip(parts, scales, strict=True)])
    order = np.lexsort((scores, hashes))  # by score too: a sum of floats is always taken in the same order
    hashes, scores = hashes[order], scores[order]
    first = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]) != 0)
    hashes, scores = hashes[first], np.add.reduceat(scores, first) if len(first) else scores
    best = np.lexsort((hashes, -scores))[:n]
    return PopularItems(hashes[best], scores[best])
