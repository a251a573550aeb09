"""Files of JSON lines are read as a worker reads the stream: up to 5 minutes ahead of the time, and no further."""

from pathlib import Path

import pytest

from models.jsonl import JsonLinesError, read_activities
from models.spec import builtin_spec
from schemas.activity import UserActivity
from schemas.codec import MAX_FUTURE_MS, encode_event
from workers.errors import RecallError
from workers.fitting import read_source

NOW_MS = 1_700_000_000_000
YEAR_2099_MS = 4_070_908_800_000


def file_of(path: Path, *times_ms: int) -> Path:
    events = [
        UserActivity(event_id=f"e{n}", user_id="u", action="rate", timestamp_ms=time_ms, item_id="x", value=5)
        for n, time_ms in enumerate(times_ms)
    ]
    path.write_bytes(b"".join(encode_event(event) + b"\n" for event in events))
    return path


def test_an_activity_of_the_future_is_named_by_its_line(tmp_path: Path) -> None:
    path = file_of(tmp_path / "activity.jsonl", 0, NOW_MS + MAX_FUTURE_MS, NOW_MS + MAX_FUTURE_MS + 1, 1)
    found = read_activities(path, lambda: NOW_MS)
    assert [next(found).timestamp_ms for _ in range(2)] == [0, NOW_MS + MAX_FUTURE_MS]
    line = r"activity\.jsonl:3: future_timestamp: timestamp_ms is 300001 ms in the future$"
    with pytest.raises(JsonLinesError, match=line):
        next(found)


def test_nothing_is_fitted_on_it(tmp_path: Path) -> None:
    """The age of every positive counts from the newest one: a single one of 2099 would leave the others no weight."""
    activity = file_of(tmp_path / "activity.jsonl", NOW_MS, YEAR_2099_MS)
    (tmp_path / "items.jsonl").write_bytes(b'{"item_id":"x","op":"upsert","timestamp_ms":1}\n')
    with pytest.raises(RecallError, match=r"activity\.jsonl:2: future_timestamp: "):
        read_source(None, tmp_path / "items.jsonl", activity, builtin_spec("movielens"), lambda _: None)
