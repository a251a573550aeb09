"""What may be replayed, and what `--since` takes."""

import pytest

from schemas.dead_letter import DeadLetter
from workers.cli.since import since_ms
from workers.errors import ConfigurationError
from workers.replay import Verdict, judge
from workers.settings import Settings
from workers.topics import DELETE_RETENTION_MS

NOW_MS = 1_795_518_423_628
SETTINGS = Settings(namespace="n")
REQUEST = b'{"request_id":"r","user_id":"u","timeout_ms":500}'


def letter(name: str, **fields: object) -> DeadLetter:
    values = {
        "topic": f"n.{name}",
        "partition": 0,
        "offset": 0,
        "stage": "s",
        "code": "not_json",
        "message": "m",
        "timestamp_ms": NOW_MS,
        "key": b"k",
        "value": b"v",
        "record_timestamp_ms": NOW_MS,
    }
    return DeadLetter(**(values | fields))  # type: ignore[arg-type]


def judged(topic: str, *, expired: bool = False, **fields: object) -> Verdict:
    return judge(SETTINGS, letter(topic, **fields), NOW_MS, expired=expired)


def test_activity_goes_back_whatever_its_age() -> None:
    assert judged("user-activity", record_timestamp_ms=0) is Verdict.REPLAY
    assert judged("user-activity", value=None) is Verdict.REPLAY
    assert judged("user-activity", code="future_timestamp") is Verdict.AHEAD, "its user may have been forgotten since"
    assert judged("user-activity", value=None, key=None) is Verdict.NO_KEY
    assert judged("user-activity", value=None, value_omitted=True) is Verdict.OMITTED


def test_nothing_goes_where_no_worker_reads() -> None:
    for topic in ("recall-candidates", "recall-dead-letters", "other"):
        assert judged(topic) is Verdict.OTHER_TOPIC
    of_another_namespace = letter("user-activity", topic="user-activity")
    assert judge(SETTINGS, of_another_namespace, NOW_MS, expired=True) is Verdict.OTHER_TOPIC


def test_items_go_back_while_a_later_tombstone_would_still_be_there() -> None:
    assert judged("item-updates") is Verdict.REPLAY
    assert judged("item-updates", record_timestamp_ms=NOW_MS - DELETE_RETENTION_MS) is Verdict.REPLAY
    assert judged("item-updates", record_timestamp_ms=NOW_MS - DELETE_RETENTION_MS - 1) is Verdict.TOO_OLD
    assert judged("item-updates", record_timestamp_ms=0) is Verdict.TOO_OLD
    assert judged("item-updates", key=None) is Verdict.NO_KEY


def test_requests_go_back_while_their_asker_waits() -> None:
    def at(ago_ms: int, value: bytes = REQUEST, *, expired: bool = False) -> Verdict:
        return judged("recall-requests", value=value, record_timestamp_ms=NOW_MS - ago_ms, expired=expired)

    assert (at(500), at(501), at(501, expired=True)) == (Verdict.REPLAY, Verdict.EXPIRED, Verdict.REPLAY)
    assert (at(60_000, b"{"), at(60_001, b"{")) == (Verdict.REPLAY, Verdict.EXPIRED)
    assert judged("recall-requests", code="answer_too_large", expired=True) is Verdict.ANSWERED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW_MS - 90_000),
        ("10m", NOW_MS - 600_000),
        ("2h", NOW_MS - 7_200_000),
        ("7d", NOW_MS - 7 * 86_400_000),
        ("999999999d", 0),
        ("2026-11-25", 1_795_564_800_000),
        ("2026-11-25T18:00", 1_795_629_600_000),
        ("2026-11-25T18:00Z", 1_795_629_600_000),
        ("2026-11-25T20:00+02:00", 1_795_629_600_000),
        ("0001-01-01", 0),
    ],
)
def test_since_is_a_duration_or_a_time(text: str, expected: int) -> None:
    assert since_ms(text, NOW_MS) == expected


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "10 m", "1.5h", "yesterday", "25:00", "2026-13-01", "10M", "१m"]
)
def test_since_is_nothing_else(text: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a duration"):
        since_ms(text, NOW_MS)
    assert since_ms(None, NOW_MS) is None
