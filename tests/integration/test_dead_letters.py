"""Dead letters on a real broker: what goes there comes back as it was, and `recall dead-letters list` shows it."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from workers import topics
from workers.cli.main import main
from workers.dead_letter_topic import read_dead_letters
from workers.dead_letters import dead_letter
from workers.engine import serve
from workers.inflight import Batch, BatchPolicy
from workers.publisher import Outgoing, Publisher
from workers.settings import Settings
from workers.transport import MAX_REQUEST_BYTES, batch_topic, create_app

NOW_MS = 1_795_518_423_628
HEADERS = (("trace", b"\xff\x00"), ("none", None))


def record(
    settings: Settings, offset: int, key: bytes | None, value: bytes | None, headers: Sequence[Any] = ()
) -> ConsumerRecord:
    topic = settings.topic("user-activity")
    return ConsumerRecord(topic, 3, offset, NOW_MS, 1, key, value, None, 1, 1, headers)


def letter(source: ConsumerRecord, code: str = "not_json", message: str = "broken") -> Outgoing:
    return dead_letter(source, stage="activity", code=code, message=message, now_ms=NOW_MS + source.offset)


def store(settings: Settings, letters: Sequence[Outgoing], folder: Path) -> None:
    """Publish as a worker does."""

    async def handle(batch: Batch) -> None:
        batch.done()

    async def run() -> None:
        await topics.apply(settings)
        app = create_app(settings.group("letters"), settings.model_copy(update={"data_dir": folder}), BatchPolicy())

        @app.agent(batch_topic(app, settings.topic("recall-requests")))
        async def agent(stream: Any) -> None:
            await serve(stream, handle)

        await app.start()
        try:
            refused = await Publisher(app, 30_000).send(settings.topic("recall-dead-letters"), letters)
        finally:
            await app.stop()
        assert refused == []

    asyncio.run(run())


def recall(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    """Run a command in this process; its exit code."""
    monkeypatch.setenv("RECALL_KAFKA_BOOTSTRAP", settings.kafka_bootstrap)
    monkeypatch.setenv("RECALL_NAMESPACE", settings.namespace)
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        main(["dead-letters", "list", *arguments])
    return int(ended.value.code or 0)


def test_bytes_come_back_untouched(settings: Settings, tmp_path: Path) -> None:
    sources = [
        record(settings, 0, b"\xff\x00", b"\xfe[" * 1000, HEADERS),
        record(settings, 1, None, None),
        record(settings, 2, b"", b""),
    ]
    store(settings, [letter(source) for source in sources], tmp_path)
    found = {each.offset: each for each in asyncio.run(read_dead_letters(settings))}
    for source in sources:
        read = found[source.offset]
        assert (read.topic, read.partition, read.stage, read.code, read.message) == (
            source.topic,
            3,
            "activity",
            "not_json",
            "broken",
        )
        assert (read.key, read.value, list(read.headers)) == (source.key, source.value, list(source.headers))
        assert (read.timestamp_ms, read.value_omitted) == (NOW_MS + source.offset, False)


def test_what_does_not_fit_is_left_out_and_said(settings: Settings, tmp_path: Path) -> None:
    large = b"x" * MAX_REQUEST_BYTES
    store(
        settings,
        [
            letter(record(settings, 0, b"u", large)),
            letter(record(settings, 1, large, b"v")),
            letter(record(settings, 2, b"u", b"v", [("h", large)])),
            letter(record(settings, 3, b"u", b"x" * 1_000_000)),
        ],
        tmp_path,
    )
    found = {each.offset: each for each in asyncio.run(read_dead_letters(settings))}
    assert {offset: each.value_omitted for offset, each in found.items()} == {0: True, 1: True, 2: True, 3: False}
    assert [found[n].key for n in range(4)] == [b"u", None, b"u", b"u"]
    assert len(found[3].value or b"") == 1_000_000


def test_a_dead_letter_that_dies_again_tells_of_its_last_death(settings: Settings, tmp_path: Path) -> None:
    first = letter(record(settings, 7, b"u", b"v", [("trace", b"1")]), code="too_deep")
    again = letter(record(settings, 9, b"u", b"v", first.headers), code="wrong_type", message="a\nb" * 2000)
    store(settings, [again], tmp_path)
    (found,) = asyncio.run(read_dead_letters(settings))
    assert (found.offset, found.code, found.headers) == (9, "wrong_type", (("trace", b"1"),))
    assert "\n" not in found.message
    assert len(found.message.encode()) <= 1024


def test_list_survives_hostile_content(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = b"[/red]\x1b[2J[bold]"
    foreign = Outgoing(b"k", b"not a dead letter", (("dlq.topic", b"t"), ("dlq.offset", b"x")))
    store(settings, [letter(record(settings, 0, hostile, hostile), message="[/x] \x1b[2J"), foreign], tmp_path)
    assert recall(monkeypatch, settings) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[/red]" in shown
    assert "[/x]" in shown
    assert "1 of 1 dead letters" in shown


def test_list_selects_and_prints_one_json_object(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = ["not_json", "too_deep", "not_json", "not_json"]
    value = b'{"a":"\xc3\xa9"'
    store(settings, [letter(record(settings, n, b"\xff", value), code=c) for n, c in enumerate(codes)], tmp_path)
    chosen = ("--code", "not_json", "--topic", "user-activity", "--limit", "2", "--json")
    assert recall(monkeypatch, settings, *chosen) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["count"] == 3
    assert [each["offset"] for each in printed["dead_letters"]] == [2, 3], "the newest, oldest first"
    assert printed["dead_letters"][0]["value"] == '{"a":"é"'
    assert printed["dead_letters"][0]["key_base64"] == "/w=="
    assert recall(monkeypatch, settings, "--topic", "item-updates") == 0
    assert capsys.readouterr().out == "no dead letters\n"


def test_without_its_topic_or_broker_one_line_says_so_soon(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert recall(monkeypatch, settings) == 2
    assert "recall topics apply" in capsys.readouterr().err
    unreachable = settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
    assert recall(monkeypatch, unreachable) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "kafka" in lines[0]
    assert time.monotonic() - started < 35, "the client's own waiting for a topic takes 40 s"
