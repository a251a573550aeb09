"""`recall watch` on a real broker: what it shows, what it leaves out, and how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from schemas import codec
from schemas.recall import CandidateList, Status
from workers import topics
from workers.kafka_client import Message, produce
from workers.local.workers import environment
from workers.settings import Settings

WITHIN_S = 60


@pytest.fixture
def settings(settings: Settings) -> Settings:
    asyncio.run(topics.apply(settings))
    return settings


def answer(user: str, status: Status = Status.OK, items: Sequence[str] = ("i1", "i2"), **fields: object) -> Message:
    value = CandidateList(
        request_id=f"r-{user}",
        user_id=user,
        scene="default",
        status=status,
        timestamp_ms=1,
        item_ids=list(items),
        scores=[1.0] * len(items),
        **fields,  # type: ignore[arg-type]
    )
    return user.encode(), codec.encode_candidates(value), ()


def publish(settings: Settings, *messages: Message) -> None:
    asyncio.run(produce(settings, settings.topic("recall-candidates"), messages))


def command(settings: Settings, *options: str) -> list[str]:
    return [sys.executable, "-m", "workers.cli.main", "watch", *options]


def watch(settings: Settings, *options: str) -> "subprocess.CompletedProcess[bytes]":
    """To its end, over everything that the topic holds."""
    argv = command(settings, "--from-beginning", *options)
    return subprocess.run(argv, env=os.environ | environment(settings), capture_output=True, timeout=WITHIN_S)


class Live:
    """`recall watch` while it runs."""

    def __init__(self, settings: Settings, *options: str) -> None:
        self.process = subprocess.Popen(
            command(settings, *options),
            env=os.environ | environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr
        self.listening = self.err.readline()

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Exit code, and what it said since."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, out, err


@pytest.fixture
def live(settings: Settings) -> Iterator[Live]:
    publish(settings, answer("before"))
    live = Live(settings)
    yield live
    live.process.kill()
    live.process.communicate()


def test_lists_are_shown_as_they_come_and_those_before_are_not(settings: Settings, live: Live) -> None:
    topic = settings.topic("recall-candidates")
    assert live.listening == f"listening to {topic} at {settings.kafka_bootstrap}; Ctrl-C ends it\n"
    for number in range(3):
        publish(settings, answer(f"u{number}", items=[f"i{n}" for n in range(5)], model_version="m-1"))
        line = live.out.readline().rstrip("\n").split("  ")
        assert line[1:4] == [f"u{number}", "ok", "5 candidates"]
        assert line[5:] == ["m-1", "i0, i1, i2, ..."]
    assert live.end() == (0, "", "")


def test_sigterm_ends_it_as_well(live: Live) -> None:
    assert live.end(signal.SIGTERM) == (0, "", "")


def test_users_and_statuses_are_chosen(settings: Settings) -> None:
    degraded = answer("u1", Status.DEGRADED, (), reasons=["index_unavailable"])
    messages = [answer("u1"), answer("u2"), degraded, answer("u3", Status.REJECTED, (), error_field="k"), answer("u1")]
    publish(settings, *messages)
    shown = watch(
        settings, "--user", "u1", "--user", "u3", "--status", "degraded", "--status", "rejected", "--limit", "2"
    )
    lines = sorted(line.split("  ")[1:4] for line in shown.stdout.decode().splitlines())
    assert lines == [["u1", "degraded (index_unavailable)", "0 candidates"], ["u3", "rejected field k", "0 candidates"]]
    assert shown.returncode == 0
    mine = watch(settings, "--user", "u1", "--limit", "3")
    assert mine.stdout.count(b"  u1  ") == 3


def test_json_is_the_answer_as_it_stands_in_the_topic(settings: Settings) -> None:
    first, spread = (
        answer("u\u00e9")[1],
        b'{\n"request_id":"r","user_id":"u","scene":"s","status":"ok","timestamp_ms":1}',
    )
    publish(settings, (b"u", first, ()), (b"u", spread, ()))
    shown = watch(settings, "--json", "--limit", "2")
    assert shown.stdout.splitlines() == [first, spread.replace(b"\n", b" ")]
    assert [json.loads(line)["status"] for line in shown.stdout.splitlines()] == ["ok", "ok"]


def test_what_is_no_answer_is_counted_and_hostile_ids_steer_nothing(settings: Settings) -> None:
    hostile = "[bold]\x1b[2J\n\u202e:smile:"
    values = [b"rubbish", None, b"\xff{}", b"[" * 100_000, answer(hostile, items=[hostile])[1], answer("last")[1]]
    publish(settings, *((b"one partition", value, ()) for value in values))
    shown = watch(settings, "--limit", "2")
    assert shown.returncode == 0
    text = shown.stdout.decode()
    assert text.count("\n") == 2
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]\N{REPLACEMENT CHARACTER}[2J" in text
    assert shown.stderr.decode().splitlines()[1:] == ["4 records were no candidate lists"]


def test_a_reader_that_goes_ends_it_without_a_word(settings: Settings) -> None:
    publish(settings, *(answer(f"u{n}") for n in range(2000)))
    argv = command(settings, "--from-beginning", "--json")
    process = subprocess.Popen(
        argv, env=os.environ | environment(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["user_id"].startswith("u")
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(WITHIN_S) == 0
    assert said.count("\n") == 1
    assert said.startswith("listening to ")


def test_a_reader_that_goes_is_noticed_while_nothing_comes(settings: Settings, live: Live) -> None:
    live.out.close()
    assert live.process.wait(WITHIN_S) == 0
