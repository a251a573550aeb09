"""Which bundle is active, on a disk that takes nothing: only where Redis does not have it is that an end."""

import errno
import json
from pathlib import Path

import pytest

from workers import views
from workers.cli import model
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.settings import Settings, load_settings

VIEW = views.ActiveView(version="1", bundle=Path("/bundles/1"), collection="items_1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", namespace="")


@pytest.fixture
def unwritable(settings: Settings) -> Settings:
    settings.data_dir.write_text("a file")
    return settings.model_copy(update={"data_dir": settings.data_dir / "below"})


def store(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """In place of a Redis."""

    async def store(*_: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(views, "_store", store)


def test_the_same_view_is_not_written_again(settings: Settings) -> None:
    views.remember(settings, VIEW)
    [file] = settings.data_dir.iterdir()
    before = file.stat().st_ino
    views.remember(settings, VIEW)
    assert file.stat().st_ino == before
    views.remember(settings, views.ActiveView(version="2", bundle=VIEW.bundle, collection="items_2"))
    assert json.loads(file.read_bytes())["version"] == "2"


def test_a_view_that_cannot_be_kept_is_told_and_no_more(unwritable: Settings) -> None:
    said: list[str] = []
    views.remember(unwritable, VIEW, said.append)
    last = unwritable.data_dir / "last-active.json"
    assert said == [f"{last}: Not a directory: a Redis that loses which bundle is active will not get it back"]


def test_a_write_that_fails_leaves_nothing_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the view before, which a Redis that lost the active one would get."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    views.remember(settings, VIEW)
    monkeypatch.setattr(Path, "replace", full)
    said: list[str] = []
    views.remember(settings, VIEW, said.append)
    assert said == []
    views.remember(settings, views.ActiveView(version="2", bundle=VIEW.bundle, collection="items_2"), said.append)
    assert len(said) == 1
    assert list(settings.data_dir.iterdir()) == []


def test_what_redis_has_is_active(
    unwritable: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(monkeypatch)
    model.activate(unwritable, {"path": "/bundles/1", "version": "1"})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{unwritable.data_dir}/last-active.json: Not a directory")


def test_what_neither_redis_nor_the_disk_has_is_not(unwritable: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store(monkeypatch, DependencyUnavailable("redis", "away"))
    line = r"the bundle 1 is written but not active: .*/active\.json: Not a directory"
    with pytest.raises(ConfigurationError, match=line):
        model.activate(unwritable, {"path": "/bundles/1", "version": "1"})
