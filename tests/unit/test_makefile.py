"""`make setup` goes on after it has failed."""

import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


@pytest.mark.parametrize(("pip", "made"), [(1, True), (0, False)])
def test_an_environment_without_pip_is_made_again(tmp_path: Path, pip: int, made: bool) -> None:
    """As it stands there where python3-venv was missing at first."""
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/dev.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    script(tmp_path / "python", f'[ "$1" = -c ] || echo "$@" >> {tmp_path}/asked')
    script(tmp_path / ".venv/bin/python", f'[ "$3" = --version ] && exit {pip}')
    script(tmp_path / ".venv/bin/uv")
    argv = ["make", "--file", str(MAKEFILE), "setup", f"PYTHON={tmp_path}/python"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    asked = tmp_path / "asked"
    assert asked.exists() == made, done
    assert not made or asked.read_text() == "-m venv .venv\n"
