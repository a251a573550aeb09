"""`recall dead-letters replay` and what `list` says afterwards, on a real broker."""

import asyncio
import json
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from schemas.dead_letter import DeadLetter, to_headers
from tests.integration.test_dead_letters import recall
from workers import replay as replaying
from workers import topics
from workers.clock import SystemClock
from workers.dead_letter_topic import Wanted
from workers.kafka_client import connected, produce
from workers.newer_items import NewerItems
from workers.partitioner import partition_of
from workers.replay import ReplayOptions, Verdict, replay
from workers.settings import Settings
from workers.topic_standing import read_until

HEADERS = (("trace", b"\xff\x00"), ("none", None), ("trace", b""))
ALL = Wanted()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    asyncio.run(topics.apply(settings))
    return settings


def letter(settings: Settings, name: str, offset: int, **fields: Any) -> DeadLetter:
    now_ms = SystemClock().now_ms()
    values = {
        "topic": settings.topic(name),
        "partition": 0,
        "offset": offset,
        "stage": "s",
        "code": "not_json",
        "message": "m",
        "timestamp_ms": now_ms,
        "record_timestamp_ms": now_ms,
        "key": b"k",
        "value": b"v%d" % offset,
    }
    return DeadLetter(**(values | fields))


async def write(settings: Settings, *letters: DeadLetter) -> None:
    messages = [(each.key, each.value, to_headers(each)) for each in letters]
    await produce(settings, settings.topic("recall-dead-letters"), messages)


async def read(settings: Settings, name: str) -> list[ConsumerRecord]:
    """All that stands in a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest")
    async with connected(settings, consumer):
        places = [TopicPartition(settings.topic(name), n) for n in range(settings.partitions)]
        consumer.assign(places)
        return [record async for record in read_until(consumer, await consumer.end_offsets(places))]


async def run(settings: Settings, *, do: bool = True, wanted: Wanted = ALL, **options: Any) -> dict[Verdict, int]:
    """Replay; letters by verdict."""
    report = await replay(settings, ReplayOptions(wanted, do=do, **options), SystemClock())
    return {verdict: count for verdict in Verdict if (count := report.total(verdict))}


def listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Settings, *options: str
) -> Any:
    assert recall(monkeypatch, settings, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def test_events_go_back_byte_for_byte_and_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[tuple[Any, Any, Any]] = [
        (b"u1", b"\xfe[" * 1000, HEADERS),
        (b"\xff\x00", None, ()),
        (None, b"", ()),
        (b"u1", b"x" * 1_000_000, HEADERS),
    ]
    letters = [
        letter(settings, "user-activity", n, key=key, value=value, headers=headers)
        for n, (key, value, headers) in enumerate(events)
    ]
    asyncio.run(write(settings, *letters))
    before = listed(monkeypatch, capsys, settings)
    assert asyncio.run(run(settings, do=False)) == {Verdict.REPLAY: 4}
    assert asyncio.run(read(settings, "user-activity")) == []
    assert listed(monkeypatch, capsys, settings) == before, "a dry run leaves no mark"

    assert asyncio.run(run(settings)) == {Verdict.REPLAY: 4}
    found = [(r.key, r.value, tuple(r.headers)) for r in asyncio.run(read(settings, "user-activity"))]
    assert Counter(found) == Counter(events)
    assert [value for key, value, _ in found if key == b"u1"] == [events[0][1], events[3][1]], "by key, in order"

    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 4}
    assert len(asyncio.run(read(settings, "user-activity"))) == 4
    assert (after := listed(monkeypatch, capsys, settings))["dead_letters"] == []
    assert (after["count"], after["replayed"]) == (0, 4)
    shown = listed(monkeypatch, capsys, settings, "--replayed")
    assert [each["replayed"] for each in shown["dead_letters"]] == [True] * 4
    assert len(before["dead_letters"]) == shown["count"] == 4


def test_one_that_dies_again_is_seen_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(write(settings, letter(settings, "user-activity", 7), letter(settings, "user-activity", 8)))
    place = None
    for times in (1, 2, 3):
        assert asyncio.run(run(settings))[Verdict.REPLAY] == (2 if times == 1 else 1)
        newest = [r for r in asyncio.run(read(settings, "user-activity")) if r.value == b"v8"][-1]
        assert newest.headers == (), "nothing of ours is in it"
        again = letter(settings, "user-activity", newest.offset, partition=newest.partition, value=b"v8")
        asyncio.run(write(settings, again))
        (shown,) = listed(monkeypatch, capsys, settings)["dead_letters"]
        assert (shown["offset"], shown["replays"]) == (newest.offset, times)
        if place is not None:
            assert shown["replayed_from"] == place
        place = f"{shown['letter']['partition']}:{shown['letter']['offset']}"
    assert recall(monkeypatch, settings, "--full") == 0
    assert "replays  3, the last time from dead letter " in capsys.readouterr().out


def test_copies_of_a_letter_go_once_and_are_done_with(settings: Settings) -> None:
    one, other = letter(settings, "user-activity", 7), letter(settings, "user-activity", 7, value=b"of another topic")
    asyncio.run(write(settings, one, one, other))
    assert asyncio.run(run(settings)) == {Verdict.REPLAY: 2, Verdict.COPY: 1}
    asyncio.run(write(settings, one))
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 3, Verdict.COPY: 1}
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 4}
    assert len(asyncio.run(read(settings, "user-activity"))) == 2


def test_many_go_in_chunks_none_twice_and_the_oldest_first(settings: Settings) -> None:
    letters = [letter(settings, "user-activity", n, key=b"u%d" % (n % 50)) for n in range(1300)]
    asyncio.run(write(settings, *letters))
    assert asyncio.run(run(settings, limit=700)) == {Verdict.REPLAY: 700, Verdict.BEYOND_LIMIT: 600}
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 700, Verdict.REPLAY: 600}
    found = asyncio.run(read(settings, "user-activity"))
    assert sorted(int(r.value[1:]) for r in found) == list(range(1300))
    for key in {r.key for r in found}:
        values = [int(r.value[1:]) for r in found if r.key == key]
        assert values == sorted(values)


def test_a_run_that_ends_before_its_mark_is_repeated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(self: Any, going: Sequence[tuple[Any, Any]]) -> None:
        await asyncio.gather(*(delivery for _, delivery in going))
        raise KeyboardInterrupt

    asyncio.run(write(settings, *(letter(settings, "user-activity", n) for n in range(3))))
    with monkeypatch.context() as patched:
        patched.setattr(replaying._Run, "_mark", killed)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(run(settings))
    assert len(asyncio.run(read(settings, "user-activity"))) == 3
    assert asyncio.run(run(settings)) == {Verdict.REPLAY: 3}
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 3}
    assert Counter(r.value for r in asyncio.run(read(settings, "user-activity"))) == {b"v0": 2, b"v1": 2, b"v2": 2}


async def send_item(settings: Settings, key: bytes, value: bytes | None, partition: int) -> Any:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    async with connected(settings, producer):
        return await producer.send_and_wait(settings.topic("item-updates"), value, key, partition)


def from_record(settings: Settings, sent: Any, key: bytes, **fields: Any) -> DeadLetter:
    place = {"partition": sent.partition, "record_timestamp_ms": sent.timestamp}
    return letter(settings, "item-updates", sent.offset, **(place | {"key": key} | fields))


def test_an_item_goes_back_only_while_nothing_newer_of_it_stands(settings: Settings) -> None:
    async def prepare() -> None:
        sent = {key: await send_item(settings, key, b"old", 1) for key in (b"alone", b"later", b"gone", b"elsewhere")}
        await asyncio.sleep(0.005)  # the broker's time tells between partitions
        await send_item(settings, b"later", b"new", 1)
        await send_item(settings, b"gone", None, 1)
        await send_item(settings, b"elsewhere", b"new", 2)
        await send_item(settings, b"others", b"new", 1)
        await write(settings, *(from_record(settings, place, key, value=b"old") for key, place in sent.items()))

    asyncio.run(prepare())
    assert asyncio.run(run(settings, do=False)) == {Verdict.REPLAY: 1, Verdict.SUPERSEDED: 3}
    assert asyncio.run(run(settings)) == {Verdict.REPLAY: 1, Verdict.SUPERSEDED: 3}
    values = Counter((r.key, r.value) for r in asyncio.run(read(settings, "item-updates")))
    assert {key for key, count in values.items() if count > 1} == {(b"alone", b"old")}
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 1, Verdict.SUPERSEDED: 3}


def test_an_item_goes_back_to_its_partition_unless_that_is_wrong_or_gone(settings: Settings) -> None:
    """Its producer may hash keys as librdkafka does: an item that moved would refuse all that comes from there."""
    usual = {key: partition_of(key, settings.partitions) for key in (b"mended", b"wrong", b"gone")}
    others = {key: (partition + 1) % settings.partitions for key, partition in usual.items()}

    async def prepare() -> None:
        sent = {key: await send_item(settings, key, b"old", partition) for key, partition in others.items()}
        later_ms = sent[b"gone"].timestamp + 1
        fields: dict[bytes, dict[str, Any]] = {
            b"mended": {"code": "tower_output"},
            b"wrong": {"code": "wrong_partition"},
            b"gone": {"code": "tower_output", "partition": settings.partitions, "record_timestamp_ms": later_ms},
        }
        await write(
            settings, *(from_record(settings, sent[key], key, value=b"v", **each) for key, each in fields.items())
        )

    asyncio.run(prepare())
    assert asyncio.run(run(settings)) == {Verdict.REPLAY: 3}
    replayed = {r.key: r.partition for r in asyncio.run(read(settings, "item-updates")) if r.value == b"v"}
    assert replayed == usual | {b"mended": others[b"mended"]}
    assert asyncio.run(run(settings)) == {Verdict.REPLAYED: 3}


def test_an_update_of_a_topic_that_was_made_anew_is_newer_at_whatever_offset(settings: Settings) -> None:
    async def prepare() -> None:
        sent = await send_item(settings, b"i", b"new", 1)
        old_ms = sent.timestamp - 1000
        old = letter(settings, "item-updates", 5000, partition=1, key=b"i", value=b"old", record_timestamp_ms=old_ms)
        await write(settings, old)

    asyncio.run(prepare())
    assert asyncio.run(run(settings)) == {Verdict.SUPERSEDED: 1}
    assert [r.value for r in asyncio.run(read(settings, "item-updates"))] == [b"new"]


def test_an_item_whose_letter_was_not_marked_is_superseded_by_its_own_copy(settings: Settings) -> None:
    async def prepare() -> None:
        sent = await send_item(settings, b"i", b"old", 0)
        await write(settings, from_record(settings, sent, b"i", value=b"old"))
        await send_item(settings, b"i", b"old", 0)

    asyncio.run(prepare())
    assert asyncio.run(run(settings)) == {Verdict.SUPERSEDED: 1}


async def test_newer_records_are_looked_for_again(settings: Settings) -> None:
    sent = await send_item(settings, b"i", b"old", 1)
    one = from_record(settings, sent, b"i")
    async with NewerItems(settings) as newer:
        newer.watch(one)
        await newer.look()
        assert not newer.newer_than(one)
        await send_item(settings, b"i", b"new", 1)
        await newer.look()
        assert newer.newer_than(one)


def test_an_update_that_comes_during_the_replay_wins(settings: Settings) -> None:
    async def prepare() -> None:
        sent = await send_item(settings, b"i", b"old", 1)
        await write(settings, from_record(settings, sent, b"i", value=b"old"))

    def send_new(said: str) -> None:
        if said.startswith("replaying"):  # it was judged, and has not been sent
            other = threading.Thread(target=lambda: asyncio.run(send_item(settings, b"i", b"new", 1)))
            other.start()
            other.join()

    asyncio.run(prepare())
    report = asyncio.run(replay(settings, ReplayOptions(ALL, do=True), SystemClock(), send_new))
    assert (report.total(Verdict.REPLAY), report.total(Verdict.SUPERSEDED)) == (0, 1)
    assert [r.value for r in asyncio.run(read(settings, "item-updates"))] == [b"old", b"new"]


def test_filters_choose_what_is_listed_and_what_goes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [letter(settings, "user-activity", n, code=code) for n, code in enumerate(("not_json", "too_deep"))]
    asyncio.run(write(settings, *old))
    time.sleep(0.005)
    shown = listed(monkeypatch, capsys, settings)["dead_letters"]
    after_ms = max(each["letter"]["written_ms"] for each in shown) + 1
    time.sleep(max(0.0, after_ms / 1000 - time.time()))
    new = letter(settings, "recall-requests", 2, code="too_deep", value=b"{")
    asyncio.run(write(settings, new))
    since = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(after_ms // 1000))}.{after_ms % 1000:03}Z"

    def offsets(*options: str) -> list[int]:
        return sorted(each["offset"] for each in listed(monkeypatch, capsys, settings, *options)["dead_letters"])

    assert offsets("--reason", "too_deep") == offsets("--code", "too_deep") == [1, 2]
    assert offsets("--since", since) == [2]
    assert offsets("--since", "1h") == [0, 1, 2]
    assert offsets("--since", "2999-01-01") == []
    assert asyncio.run(run(settings, wanted=Wanted(since_ms=after_ms), do=False)) == {Verdict.REPLAY: 1}
    assert asyncio.run(run(settings, wanted=Wanted("recall-requests", "too_deep"), do=False)) == {Verdict.REPLAY: 1}
    assert asyncio.run(run(settings, wanted=Wanted("user-activity", "too_deep"))) == {Verdict.REPLAY: 1}
    assert [r.value for r in asyncio.run(read(settings, "user-activity"))] == [b"v1"]


def test_full_cuts_nothing_and_cannot_steer_a_terminal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value, key = b"\x1b[2J" + b"v" * 5000, b"k" * 300
    one = letter(settings, "user-activity", 0, key=key, value=value, headers=(("h", b"w" * 500), ("b", b"\xff")))
    asyncio.run(write(settings, one))
    assert recall(monkeypatch, settings, "--full") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "v" * 5000 in said
    assert f"key      {key.decode()}\n" in said
    assert f"header   h: {'w' * 500}\n" in said
    assert "header   b: base64 /w==\n" in said
    (shown,) = listed(monkeypatch, capsys, settings)["dead_letters"]
    assert shown["headers_base64"][1] == ["b", "/w=="]
    assert shown["value"] == value.decode()


def test_a_large_topic_is_listed_in_little_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = (letter(settings, "user-activity", n, key=b"%d" % n, value=b"x" * 8192) for n in range(8000))
    messages = ((each.key, each.value, to_headers(each)) for each in letters)
    asyncio.run(produce(settings, settings.topic("recall-dead-letters"), messages))
    tracemalloc.start()
    try:
        found = listed(monkeypatch, capsys, settings, "--limit", "3")
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert (found["count"], len(found["dead_letters"])) == (8000, 3)
    assert peak_mb < 30, "64 MB stand in the topic"
