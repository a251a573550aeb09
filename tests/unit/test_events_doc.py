"""The table of bad inputs in docs/events.md is what the codec does."""

import re
from pathlib import Path

import pytest

from schemas import codec
from schemas.codec import DecodeError, ErrorCode

DOC = Path(__file__).parents[2] / "docs" / "events.md"


def rows() -> list[tuple[str, bytes | None, str]]:
    table = DOC.read_text().partition("## Bad inputs")[2]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] not in {"input", "---"}:
            found.append((cells[0], example(cells[1]), cells[3]))
    return found


def example(cell: str) -> bytes | None:
    if cell == "null":
        return None
    text = re.sub(r"<(\d+) x>", lambda match: "x" * int(match[1]), cell.strip("`"))
    return text.encode().replace(rb"\xff", b"\xff")


@pytest.mark.parametrize(("name", "value", "outcome"), rows(), ids=[row[0] for row in rows()])
def test_what_the_document_says_happens(name: str, value: bytes | None, outcome: str) -> None:
    with pytest.raises(DecodeError) as raised:
        codec.decode_request(value)
    error, identity = raised.value, codec.identify_request(value)
    if outcome.startswith("rejected"):
        assert identity == ("r", "u")
        assert error.field == (re.findall("`(.*)`", outcome) or [None])[0]
    else:
        assert identity is None
        assert error.code == re.findall("`(.*)`", outcome)[0]


def test_the_document_names_every_code_and_no_other() -> None:
    table = DOC.read_text().partition("## Bad inputs")[2]
    known = {code.value for code in ErrorCode}
    assert known <= set(re.findall(r"`([a-z_0-9]+)`", table))


def test_there_is_a_row_for_each_kind_of_bad_input() -> None:
    assert len(rows()) == 16
