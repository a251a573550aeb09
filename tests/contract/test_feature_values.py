"""Feature sources that hold anything for a value: what is none of its kind is handed on, and taken for missing."""

from pathlib import Path

import pytest

from models.spec import ContextField, is_value
from tests.contract.feature_backends import KINDS, serving
from workers.settings import Settings

WRONG = {"age": "old", "ratio": float("nan"), "tags": [1, [2]], "tier": {"a": 1}}
FIELDS = {"age": "bucket", "ratio": "number", "tags": "multi", "tier": "category"}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_value_of_its_kind_is_told_apart(kind: str, settings: Settings, tmp_path: Path) -> None:
    async with serving(kind, settings, tmp_path, None) as backend:
        await backend.put({"u": WRONG})
        (found,) = await backend.open().values(["u"], list(FIELDS))
    assert set(found) == set(FIELDS)
    fields = {name: ContextField(kind=kind) for name, kind in FIELDS.items()}
    assert not any(is_value(fields[name], value) for name, value in found.items())


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("number", 1, True),
        ("number", float("inf"), False),
        ("number", 10**400, False),
        ("number", True, False),
        ("number", "1", False),
        ("bucket", 2.5, True),
        ("bucket", None, False),
        ("category", "gold", True),
        ("category", 3, True),
        ("category", True, True),
        ("category", "", False),
        ("category", ["gold"], False),
        ("multi", ["a", 1], True),
        ("multi", "a", True),
        ("multi", [], True),
        ("multi", [None], False),
        ("multi", {"a": 1}, False),
    ],
)
def test_values_of_each_kind(kind: str, value: object, expected: bool) -> None:
    assert is_value(ContextField(kind=kind), value) is expected
