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
        if len(cells) == 4 and cells[0] not in {"input", "---"} and cells[1] != "-":
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


ACTIVITY = b'{"event_id":"e","user_id":"u","action":"a","timestamp_ms":1,%b}'
ITEM = b'{"item_id":"i","op":"upsert","timestamp_ms":1,%b}'
OF_ACTIVITY = {
    "not JSON": b'{"event_id":',
    "NaN or Infinity": ACTIVITY % b'"value":NaN',
    "not UTF-8": ACTIVITY % b'"item_id":"\xff"',
    "nested too deeply": ACTIVITY % b'"attributes":{"a":[[[[[[[[1]]]]]]]]}',
    "not an object": b"[1]",
    "wrong type": ACTIVITY % b'"value":"five"',
    "missing field": b'{"event_id":"e"}',
    "null for a required field": ACTIVITY % b'"user_id":null',
    "empty id": ACTIVITY % b'"item_id":""',
    "id of more than 256 bytes": ACTIVITY % (b'"item_id":"%b"' % (b"x" * 257)),
    "number out of range": ACTIVITY % b'"value":1e39',
    "integer of more than 64 bits": ACTIVITY % b'"context":{"a":99999999999999999999}',
    "value over 1,000,000 bytes": b"x" * 1_000_001,
    "time more than 5 minutes after its record's": ACTIVITY % b'"timestamp_ms":300002',
}
OF_ITEM = {
    "not JSON": b'{"item_id":',
    "NaN or Infinity": ITEM % b'"embedding":[-Infinity]',
    "not UTF-8": ITEM % b'"attributes":{"a":"\xff"}',
    "nested too deeply": ITEM % b'"attributes":{"a":[[[[[[[[1]]]]]]]]}',
    "not an object": b'"i"',
    "wrong type": ITEM % b'"attributes":[]',
    "missing field": b'{"item_id":"i","op":"upsert"}',
    "null for a required field": ITEM % b'"op":null',
    "empty id": ITEM % b'"item_id":""',
    "id of more than 256 bytes": ITEM % ('"item_id":"%s"' % ("é" * 129)).encode(),
    "number out of range": ITEM % b'"version":-1',
    "integer of more than 64 bits": ITEM % b'"attributes":{"a":-99999999999999999999}',
    "unknown op": ITEM % b'"op":"patch"',
    "value over 1,000,000 bytes": b" " * 1_000_001,
    "key that differs from the id": ITEM % b'"item_id":"other"',
}


def documented(name: str) -> str:
    """The code in the column of activities and items."""
    (row,) = [line for line in DOC.read_text().splitlines() if line.startswith(f"| {name} |")]
    return str(re.findall("`(.*)`", row.rsplit("|", 3)[1])[0])


@pytest.mark.parametrize("name", OF_ACTIVITY)
def test_what_happens_to_an_activity(name: str) -> None:
    with pytest.raises(DecodeError) as raised:
        codec.decode_activity(OF_ACTIVITY[name], record_timestamp_ms=1)
    assert raised.value.code == documented(name)


@pytest.mark.parametrize("name", OF_ITEM)
def test_what_happens_to_an_item_update(name: str) -> None:
    with pytest.raises(DecodeError) as raised:
        codec.decode_item(OF_ITEM[name], b"i")
    assert raised.value.code == documented(name)


def test_what_happens_to_a_null_under_no_id() -> None:
    with pytest.raises(DecodeError) as raised:
        codec.decode_key(b"\xff")
    assert raised.value.code == documented("null value under a key that is no id")


def test_the_document_names_every_code_and_no_other() -> None:
    table = DOC.read_text().partition("## Bad inputs")[2]
    known = {code.value for code in ErrorCode}
    assert known <= set(re.findall(r"`([a-z_0-9]+)`", table))


def test_there_is_a_row_for_each_kind_of_bad_input() -> None:
    assert len(rows()) == 16
