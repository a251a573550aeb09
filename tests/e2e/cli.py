"""Commands as a user runs them: in a folder and an environment of their own, with what they said and left behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

WITHIN_S = 100.0
CASES: dict[tuple[str, str], Callable[..., "list[Done]"]] = {}


def case(command: str, situation: str) -> Callable[[Callable[..., "list[Done]"]], Callable[..., "list[Done]"]]:
    """Register what makes one row of the table of situations true."""

    def register(function: Callable[..., "list[Done]"]) -> Callable[..., "list[Done]"]:
        assert (command, situation) not in CASES, (command, situation)
        CASES[command, situation] = function
        return function

    return register


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    arguments: Sequence[str]
    code: int
    out: str
    err: str
    seconds: float

    def quiet(self) -> bool:
        """Whether nothing but one line stands on standard error; commands that tell what they start are let off."""
        return self.arguments[0] in {"up", "demo", "worker"} or self.err.count("\n") == 1

    def errors(self) -> list[str]:
        """What is printed for an error, without what every one begins with."""
        return [line.removeprefix("recall: ") for line in self.err.splitlines() if line.startswith("recall: ")]


@dataclass
class Running:
    """One command that runs."""

    arguments: Sequence[str]
    process: "subprocess.Popen[str]"
    said: str = ""
    started_s: float = field(default_factory=time.monotonic)

    def until(self, what: str, stream: str = "stderr", within_s: float = WITHIN_S) -> str:
        """Read until a line holds `what`; that line."""
        lines: IO[str] = getattr(self.process, stream)
        for line in lines:
            self.said += line
            if what in line:
                return line
            assert time.monotonic() < self.started_s + within_s, self.said
        raise AssertionError(f"{self.arguments} ended without saying {what!r}: {self.said}")

    def signal(self, number: int = signal.SIGINT) -> "Running":
        """Ctrl-C, unless another signal is named."""
        self.process.send_signal(number)
        return self

    def done(self) -> Done:
        """Wait until it ends."""
        try:
            out, err = self.process.communicate(timeout=WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"{self.arguments} did not end: {out}{err}") from None
        seconds = time.monotonic() - self.started_s
        return Done(self.arguments, self.process.returncode, out, self.said + err, seconds)


@dataclass(frozen=True)
class Place:
    """A working directory with `data` as data folder, and settings as environment variables."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def with_(self, **environment: str) -> "Place":
        """The same folder with other settings."""
        return Place(self.folder, self.environment | environment)

    def start(self, *arguments: str, limit_bytes: int | None = None, stdout: IO[bytes] | None = None) -> Running:
        """Start a command; standard input is a pipe that stays open. `limit_bytes` bounds every file it writes."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECALL_")}
        if limit_bytes is not None:  # half a compiled module would break whoever imports it next
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment |= {"RECALL_CACHE_DIR": os.environ["RECALL_CACHE_DIR"]} if "RECALL_CACHE_DIR" in os.environ else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli.main", *arguments],
            cwd=self.folder,
            env=environment | {"RECALL_DATA_DIR": str(self.data)} | self.environment,
            stdin=subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=None if limit_bytes is None else _limit(limit_bytes),  # noqa: PLW1509  # one thread
        )
        return Running(arguments, process)

    def recall(self, *arguments: str, limit_bytes: int | None = None) -> Done:
        """Run a command to its end."""
        return self.start(*arguments, limit_bytes=limit_bytes).done()

    def each(self, *commands: Sequence[str]) -> list[Done]:
        """Run commands at the same time."""
        return [running.done() for running in [self.start(*command) for command in commands]]


def _limit(limit_bytes: int) -> Callable[[], None]:
    """What a full disk is to a process: a write fails. (With another reason, and without filling a disk.)"""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes whose data folder lies in a folder."""
    wanted = f"RECALL_DATA_DIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(entry.startswith(wanted) for entry in (process / "environ").read_bytes().split(b"\0")):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if line]
