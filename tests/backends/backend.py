"""What a backend is to a suite: something that starts, and the settings that reach it."""

from pathlib import Path
from typing import Protocol


class Backend(Protocol):
    """One server, or several that belong together, and the ways to reach it: an adapter and a protocol each.

    A suite is a test file that takes its parameters from `ways` of the backend that `registry.chosen` names, and starts
    it with the fixture `started_backend`. To add one: a class like this, a line in `registry.py`, the locked
    requirements of what it runs, and a suite if its port has none yet.
    """

    name: str
    suites: tuple[str, ...]  # test files, from the root of the project
    ways: tuple[str, ...]
    versions: str  # of what runs, for reports

    def install(self) -> Path:
        """The folder of the environment that it runs in, with all that it needs; ours is in that of the tests."""
        ...

    def start(self, folder: Path) -> None:
        """Make what is missing, start, and return when it answers. All of it lies in `folder` or in the cache."""
        ...

    def settings(self, way: str) -> dict[str, object]:
        """What a worker is configured with to reach it."""
        ...

    def stop(self) -> None:
        """End what was started; may be called twice."""
        ...
