"""The merge under random events, held against a slow one. The million: `python -m tests.fuzz merge`."""

from dataclasses import replace

import pytest

from schemas.records import UserRecord
from tests.fuzz import merges
from workers import merge


def test_random_merges_agree_with_a_slow_one() -> None:
    assert merges.run(seed=1, events=50_000)["events"] >= 50_000


def test_a_merge_that_forgets_its_floor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def floorless(record: UserRecord, *rest: object) -> merge.Merged:
        return merge.merge(replace(record, floor=bytes(16)), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(merges, "merge", floorless)
    with pytest.raises(AssertionError, match="must be"):
        merges.run(seed=1, events=50_000)
