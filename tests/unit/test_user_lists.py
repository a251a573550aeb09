"""The file of users who are to be forgotten."""

from pathlib import Path

import pytest

from workers.cli.users import _listed
from workers.errors import InvalidInput


@pytest.mark.parametrize(
    "content",
    [
        b"alice\nbob\n",
        b"alice\r\nbob",
        b"\n\nalice\n\nbob\n",
        b"\xef\xbb\xbfalice\nbob\n",
        b"\xef\xbb\xbf\nalice\nbob\n",
    ],
)
def test_one_id_a_line_however_it_was_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids").write_bytes(content)
    assert _listed(tmp_path / "ids") == ["alice", "bob"]


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfalice\n\n\xff\n")
    with pytest.raises(InvalidInput, match=r"ids:3: not UTF-8; nothing was sent"):
        _listed(tmp_path / "ids")
