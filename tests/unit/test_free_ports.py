"""Ports that are handed out once, though nobody listens at them yet."""

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from workers.local import process
from workers.local.process import free_ports

TAKES_IT = """
import sys
from workers.local import process
print(process._claim(int(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What chance brings, in this order."""
    ports: list[int] = []
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: ports.pop(0))
    yield ports
    assert not ports


def test_a_port_is_given_once(drawn: list[int]) -> None:
    first, second = 9_871, 9_872
    drawn += [first, first, second]
    assert free_ports(1) + free_ports(1) == [first, second]


def test_another_process_is_not_given_what_this_one_was(drawn: list[int]) -> None:
    first, second = 9_873, 9_874
    with subprocess.Popen(
        [sys.executable, "-c", TAKES_IT, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        drawn += [first, second]
        assert free_ports(1) == [second]
        other.communicate("")
    drawn += [first]
    assert free_ports(1) == [first], "it has ended"


def test_only_the_last_claims_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_CLAIMS", 3)
    free_ports(5)
    assert len(process._claims) == 3
