"""Settings: where values come from, and one line for what cannot be."""

from pathlib import Path

import pytest

from workers.errors import ConfigurationError
from workers.settings import load_settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RECALL_DATA_DIR", "RECALL_NAMESPACE", "RECALL_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_environment_wins_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recall.toml").write_text('namespace = "file"\npartitions = 7\n')
    monkeypatch.setenv("RECALL_NAMESPACE", "env")
    settings = load_settings()
    assert (settings.namespace, settings.partitions) == ("env", 7)
    assert settings.topic("user-activity") == "env.user-activity"
    assert settings.key("user") == "env:user"
    assert settings.collection("m-1.2") == "env_items_m_1_2"


def test_a_secret_may_stand_in_a_file_and_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("redis://:hunter2@127.0.0.1:1/0\n")
    monkeypatch.setenv("RECALL_REDIS_URL_FILE", str(folder / "secret"))
    settings = load_settings()
    assert settings.redis_url.get_secret_value() == "redis://:hunter2@127.0.0.1:1/0"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"partitions": 0}, "setting partitions: Input should be greater than or equal to 1"),
        ({"namespace": "Not Good"}, "setting namespace"),
        ({"user_ttl_ms": 5}, "setting: user_ttl_ms must be longer than activity_retention_ms"),
    ],
)
def test_a_wrong_value_is_one_line(fields: dict, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(**fields)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recall.toml").write_text("namespace = ")
    with pytest.raises(ConfigurationError, match=r"recall\.toml"):
        load_settings()
    (folder / "recall.toml").unlink()
    monkeypatch.setenv("RECALL_REDIS_URL_FILE", str(folder / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"RECALL_REDIS_URL_FILE: .*No such file"):
        load_settings()
