"""Adapters by name: our own, those of other packages, and what is said when there is none."""

import sys
from pathlib import Path

import pytest

from workers import adapters, blend
from workers.adapters import Builtin
from workers.errors import ConfigurationError

GROUP = "recall.things"
BUILTINS = {
    "ours": Builtin("workers.blend:__doc__"),
    "extra": Builtin("workers_of_nobody.thing:Thing", extra="things"),
}


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that somebody installed beside ours: one adapter works, the other cannot be imported."""
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[{GROUP}]\ntheirs = other_things:Theirs\nbroken = other_things:Missing\n"
    )
    (tmp_path / "other_things.py").write_text("class Theirs: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "other_things", raising=False)


def test_our_own_and_those_of_other_packages(registered: None) -> None:
    assert adapters.find("thing", "ours", BUILTINS, GROUP) == blend.__doc__
    assert adapters.find("thing", "theirs", BUILTINS, GROUP).__name__ == "Theirs"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none", "thing = 'none': there is no such adapter, only broken, extra, ours, theirs"),
        ("extra", "thing = 'extra' needs the extra `things`: pip install '.[things]' in the checkout"),
        ("broken", "thing = 'broken': other_things:Missing cannot be loaded: AttributeError"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(registered: None, name: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        adapters.find("thing", name, BUILTINS, GROUP)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
