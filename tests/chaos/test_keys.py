"""Which keys may stand in Redis, and which of them expire."""

import pytest

from tests.chaos.formats import Item, hash64
from tests.chaos.keys import wrong_keys

USER = f"user:{{{hash64('u:seen:{x}'):016x}}}"
LIVE, DELETED = f"item:items_v:{hash64('live'):016x}", f"item:items_v:{hash64('gone'):016x}"
ITEMS = {item_id: Item(item_id, 0, 0, deleted, None, (), b"") for item_id, deleted in (("live", False), ("gone", True))}


@pytest.mark.parametrize(
    ("name", "life_ms", "wrong"),
    [
        (f"{USER}:record:u:seen:{{x}}", 5, ""),
        (f"{USER}:record:u:seen:{{x}}", -1, "never expires"),
        (f"{USER}:seen:u\n", 5, ""),
        (f"{USER}:seen:u\n", -1, "never expires"),
        (f"{USER}:lists:u", 5, "no known kind"),
        ("user:{12}:record:u", 5, "no known kind"),
        (f"user:{{{hash64('wronged'):016x}}}:record:wronged", -1, ""),
        ("popular:{0123:3}", 5, ""),
        ("popular:{0123:3}", -1, "never expires"),
        ("popular:{0123:3}:17:", 5, ""),
        ("popular:{0123:3}:17:F", -1, "never expires"),
        ("popular:0123:partitions", -1, ""),
        ("popular:0123:all", 5, "no known kind"),
        (LIVE, -1, ""),
        (LIVE, 5, "expires in 5 ms"),
        (DELETED, 5, ""),
        (DELETED, -1, "never expires"),
        ("item-feed:items_v", -1, ""),
        ("item-ends:items_v", -1, ""),
        ("item-ends:items_v", 5, "expires in 5 ms"),
        ("filled:{recall-items.items_v}", -1, ""),
        ("filled:{recall-activity}:whole", 5, "expires in 5 ms"),
        ("active-view", 5, "expires in 5 ms"),
        ("active-views", -1, "no known kind"),
    ],
)
def test_keys(name: str, life_ms: int, wrong: str) -> None:
    lines = [*wrong_keys({name: life_ms}, ITEMS)]
    assert (len(lines), wrong in "".join(lines)) == (bool(wrong), True)
