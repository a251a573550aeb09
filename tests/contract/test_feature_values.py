"""Feature sources that hold anything for a value: what is none of its kind is handed on, and taken for missing."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from models.spec import ContextField, is_value
from tests.contract.feature_backends import KINDS, serving
from workers.feature_sources import FeatureSourceSettings
from workers.features.opening import open_source
from workers.settings import Settings
from workers.stores.connect import close, connect

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


async def test_redis_takes_what_is_no_json_for_text_and_another_type_of_key_for_nothing(settings: Settings) -> None:
    client = connect(settings)
    declared = FeatureSourceSettings(kind="redis", prefix=f"{settings.namespace}:shop:", timeout_ms=5000)
    source = open_source(settings.model_copy(update={"sources": {"shop": declared}}), "shop")
    stored = {
        "tier": "gold",
        "age": "30",
        "tags": '["a"]',
        "ratio": "NaN",
        "vip": "true",
        "code": '"007"',
        "zero": "007",
    }
    try:
        await client.hset(f"{declared.prefix}u", mapping=stored)
        await client.set(f"{declared.prefix}text", "x")
        found = await source.values(["text", "u", "nobody"], list(stored))
    finally:
        await source.close()
        await close(client)
    expected = {"tier": "gold", "age": 30, "tags": ["a"], "ratio": "NaN", "vip": True, "code": "007", "zero": "007"}
    assert found == [{}, expected, {}]


async def test_redis_as_a_cluster(settings: Settings, redis_cluster_url: str) -> None:
    """The workers' own, where the source names no other."""
    clustered = settings.model_copy(update={"redis_url": SecretStr(redis_cluster_url), "redis_cluster": True})
    declared = FeatureSourceSettings(kind="redis", prefix=f"{settings.namespace}:shop:", timeout_ms=5000)
    source = open_source(clustered.model_copy(update={"sources": {"shop": declared}}), "shop")
    client = connect(clustered)
    users = [f"u{n}" for n in range(40)]
    try:
        for n, user_id in enumerate(users):
            await client.hset(f"{declared.prefix}{user_id}", "age", n)
        assert await source.values([*users, "nobody"], ["age"]) == [*({"age": n} for n in range(40)), {}]
        await source.ping()
    finally:
        await source.close()
        await close(client)
