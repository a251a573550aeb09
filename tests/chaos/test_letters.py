"""Dead letters that are due, and the one kind that need not come while Redis is filled again."""

import pytest

from tests.chaos.compare import _letters
from tests.chaos.log import ITEMS, Entry
from tests.chaos.model import Expected

AT_MS = 1000
UPDATE = Entry(ITEMS, 2, 7, AT_MS, b"i", b"{}")


@pytest.mark.parametrize(
    ("code", "refilled", "found"),
    [
        ("wrong_partition", [], 1),
        ("wrong_partition", [(AT_MS - 9, AT_MS - 1), (AT_MS + 1, AT_MS + 9)], 1),
        ("wrong_partition", [(AT_MS - 9, AT_MS)], 0),
        ("stale_version", [(AT_MS - 9, AT_MS)], 1),
    ],
)
def test_an_update_elsewhere_may_be_passed_over_while_items_are_read_again(
    code: str, refilled: list[tuple[int, int]], found: int
) -> None:
    due = Expected(letters={UPDATE.place: (UPDATE, code)})
    assert len([*_letters(due, [], refilled)]) == found
