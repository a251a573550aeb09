"""Feature sources in the settings: read, checked, shown without secrets, and held against the spec."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.spec import parse_spec
from workers.doctor import configuration
from workers.errors import ConfigurationError, DependencyError, DependencyUnavailable
from workers.feature_sources import FeatureSourceSettings
from workers.features.guarded import GuardedSource
from workers.features.memory import MemoryFeatureSource
from workers.features.opening import configured, open_source
from workers.settings import load_settings
from workers.settings import sources as origins

SHOP = {"kind": "http", "url": "http://me:hush-hush@shop:8200", "headers": {"authorization": "Bearer top-secret"}}
SPEC = """
name = "shop"
[history]
length = 10
[[history.codes]]
action = "buy"
[target]
action = "buy"
[context]
tier = { kind = "category", source = "shop" }
"""


def test_sources_reach_another_process_through_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(sources={"shop": SHOP})
    monkeypatch.setenv("RECALL_SOURCES", settings.text("sources"))
    assert load_settings().sources == settings.sources
    assert load_settings().sources["shop"].headers["authorization"].get_secret_value() == "Bearer top-secret"


def test_sources_from_recall_toml_and_from_the_file_that_a_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recall.toml").write_text('[sources.shop]\nkind = "redis"\nprefix = "shop:"\n')
    assert load_settings().sources["shop"].prefix == "shop:"
    (tmp_path / "secret.json").write_text(orjson.dumps({"shop": SHOP}).decode())
    monkeypatch.setenv("RECALL_SOURCES_FILE", "secret.json")
    assert load_settings().sources["shop"].kind == "http"


def test_what_is_secret_is_shown_nowhere() -> None:
    settings = load_settings(sources={"shop": SHOP, "own": {"kind": "ours", "options": {"api_token": "very-secret"}}})
    shown = settings.shown("sources")
    for secret in ("hush-hush", "top-secret", "very-secret"):
        assert secret not in shown
        assert secret not in settings.hide(f"refused: {secret}")
    assert "http://me:***@shop:8200" in shown
    assert "hush" not in str(configuration.shown(settings, origins({}, {})))
    (line,) = [found.line for found in configuration.judge(settings, {}, {}) if found.line.startswith("sources")]
    assert line == "sources.shop: a password or token travels to shop unencrypted"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({}, "setting sources shop kind: Field required"),
        ({"kind": "http"}, "needs a url that begins with http:// or https://"),
        ({"kind": "http", "url": "http://x", "prefix": "p"}, "prefix does not belong to kind 'http'"),
        ({"kind": "feast", "url": "http://x"}, "needs either feature_service or feature_view"),
        ({"kind": "http", "url": "http://x", "headers": {"token": "a\nb"}}, "'token': a header is printable ASCII"),
        ({"kind": "http", "url": "http://x", "headers": {"token": "pässword"}}, "'token': a header is printable"),
        ({"kind": "redis", "timeout_ms": 0}, "setting sources shop timeout_ms"),
        ({"kind": "redis", "cache_ttl_ms": -1}, "setting sources shop cache_ttl_ms"),
        ({"kind": "redis", "colour": "red"}, "setting sources shop colour"),
    ],
)
def test_a_source_that_cannot_be_is_one_line(source: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(sources={"shop": source})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_spec_that_names_an_unknown_source_is_one_line() -> None:
    spec = parse_spec(SPEC)
    configured(load_settings(sources={"shop": {"kind": "memory"}}), spec)
    with pytest.raises(ConfigurationError) as raised:
        configured(load_settings(sources={"store": {"kind": "memory"}}), spec)
    line = (
        "context.tier of spec shop comes from source 'shop', which the setting `sources` does not have (it has store)"
    )
    assert str(raised.value) == line


async def test_an_adapter_is_found_by_the_name_of_its_kind() -> None:
    settings = load_settings(sources={"shop": {"kind": "memory", "values": {"u": {"tier": "gold"}}}})
    source = open_source(settings, "shop")
    assert isinstance(source.source, MemoryFeatureSource)
    assert await source.values(["u", "v"], ["tier"]) == [{"tier": "gold"}, {}]
    with pytest.raises(ConfigurationError, match=r"sources\.shop\.kind = 'magic': there is no such adapter, only"):
        open_source(load_settings(sources={"shop": {"kind": "magic"}}), "shop")
    with pytest.raises(ConfigurationError, match=r"sources\.shop\.url: not redis://"):
        open_source(load_settings(sources={"shop": {"kind": "redis", "url": "rubbish"}}), "shop")


def test_every_setting_has_its_line_in_the_document() -> None:
    table = (
        (Path(__file__).parents[2] / "docs/features.md")
        .read_text()
        .partition("### Settings")[2]
        .partition("### Kinds")[0]
    )
    for name, field in FeatureSourceSettings.model_fields.items():
        (row,) = [line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        if isinstance(field.default, int):
            assert f"| {field.default} |" in row


def test_a_kind_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[recall.feature_sources]\ntheirs = their_sources:open_source\n")
    (tmp_path / "their_sources.py").write_text(
        "from workers.features.memory import MemoryFeatureSource\n"
        "def open_source(given):\n"
        "    return MemoryFeatureSource({'u': {'tier': given.source.options['tier']}})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = load_settings(sources={"shop": {"kind": "theirs", "options": {"tier": "gold"}}})
    assert isinstance(open_source(settings, "shop").source, MemoryFeatureSource)


class Strange(MemoryFeatureSource):
    """An adapter of somebody else's, with a mistake."""

    def __init__(self, result: object) -> None:
        super().__init__({})
        self.result = result

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def ping(self) -> None:
        await self.values([], [])


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (KeyError("tier"), "features.shop: KeyError: 'tier'"),
        (ValueError("two\nlines"), "features.shop: ValueError: two lines"),
        (RecursionError("too deep"), "features.shop: RecursionError: too deep"),
        (DependencyUnavailable("theirs", "gone"), "features.shop: theirs: gone"),
        (TimeoutError(), "features.shop: no answer in time"),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_whatever_an_adapter_raises_is_an_error_of_its_dependency(result: Exception, line: str) -> None:
    source = GuardedSource("features.shop", Strange(result))
    for call in (source.values(["u"], ["tier"]), source.ping()):
        with pytest.raises(DependencyError) as raised:
            await call
        assert (str(raised.value), raised.value.dependency) == (line, "features.shop")


@pytest.mark.parametrize("result", [None, [], [{}, {}], [None], {"u": {}}, ({},)], ids=repr)
async def test_an_adapter_gives_one_mapping_for_each_user(result: object) -> None:
    source = GuardedSource("features.shop", Strange(result))
    with pytest.raises(DependencyUnavailable, match="does not give a list of 1 mappings, one for each user"):
        await source.values(["u"], ["tier"])
