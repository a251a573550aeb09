"""Files beside what a command prints."""

from pathlib import Path

import pytest

from workers.cli.output_file import expect_writable, writing
from workers.errors import ConfigurationError, RecallError


def test_a_file_in_a_folder_can_be_made(tmp_path: Path) -> None:
    expect_writable("--to", tmp_path / "new")
    expect_writable("--to", Path("new"))


@pytest.mark.parametrize(("file", "line"), [("nowhere/new", "nowhere is not a folder"), (".", "is a folder")])
def test_what_cannot_be_made_is_refused_before_the_work(tmp_path: Path, file: str, line: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^--to: .*{line}$"):
        expect_writable("--to", tmp_path / file)


def test_what_cannot_be_written_is_one_line() -> None:
    full = Path("/dev/full")
    with pytest.raises(RecallError, match=r"^/dev/full cannot be written: No space left on device$"), writing(full):
        full.write_text("much")
