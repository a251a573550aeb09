"""A finding: one line on one thing that was looked at, how grave it is, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How grave a finding is. The last three make `recall doctor` fail."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, and may hurt one day
    UNSAFE = "unsafe"  # would lose data: stops the workers unless `allow_unsafe`
    DOWN = "down"  # cannot be reached, or cannot work now
    WRONG = "wrong"  # cannot work as it is configured


FAILING = frozenset({Level.UNSAFE, Level.DOWN, Level.WRONG})


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names the subject, `line` says what was found, `todo` what to do; empty where nothing is to be done."""

    check: str
    level: Level
    line: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.line}; {self.todo}" if self.todo else self.line


def well(findings: Iterable[Finding]) -> bool:
    """Whether nothing is unsafe, down or wrong."""
    return not any(finding.level in FAILING for finding in findings)
