"""Settings: where values come from, and one line for what cannot be."""

import os
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from workers.cli import main
from workers.doctor import configuration
from workers.errors import ConfigurationError
from workers.settings import PREFIX, Settings, load_settings, read_toml, sources


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
        ({"tower_url": "towers:8000"}, "setting tower_url: it is http://host, https://host, grpc://host:port"),
        ({"tower_url": "grpc://towers"}, "setting tower_url: it is"),
        ({"tower_url": "grpc://towers:1/path"}, "setting tower_url: it is"),
        ({"tower_url": "http://towers:port"}, "setting tower_url: it is"),
        ({"tower_url": "http://me:hunter2@towers"}, "setting tower_url: no user and no password"),
        ({"tower_max_batch": 0}, "setting tower_max_batch"),
        ({"user_ttl_ms": 5}, "setting: user_ttl_ms must be longer than activity_retention_ms"),
    ],
)
def test_a_wrong_value_is_one_line(fields: dict, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(**fields)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["scenes", "sources", "extractors"])
def test_a_variable_that_is_to_be_json_is_named(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recall.toml").write_text("partitions = 2\n")
    monkeypatch.setenv(f"RECALL_{name.upper()}", "{secret")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"setting {name}: RECALL_{name.upper()} is not JSON: ")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scenes", '{"home":{"k":60}}'),
        ("sources", '{"shop":{"kind":"memory"}}'),
        ("extractors", '{"clock":"shop:clock"}'),
    ],
)
def test_a_table_is_json_in_its_file_too(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "table.json"
    file.write_text(f"{text}\n")
    monkeypatch.setenv(f"RECALL_{name.upper()}_FILE", str(file))
    assert load_settings().text(name) == text
    file.write_text("{secret")
    with pytest.raises(ConfigurationError, match=f"^setting {name}: ") as raised:
        load_settings()
    assert "secret" not in str(raised.value)


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recall.toml").write_text("namespace = ")
    with pytest.raises(ConfigurationError, match=r"recall\.toml"):
        load_settings()
    (folder / "recall.toml").unlink()
    monkeypatch.setenv("RECALL_REDIS_URL_FILE", str(folder / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"RECALL_REDIS_URL_FILE: .*No such file"):
        load_settings()


def test_a_secret_that_is_no_text_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "secret").write_bytes(b"hunter2\xff")
    monkeypatch.setenv("RECALL_REDIS_URL_FILE", str(folder / "secret"))
    with pytest.raises(SystemExit) as ended:
        main.main(["status"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"recall: RECALL_REDIS_URL_FILE: {folder}/secret: not UTF-8 text\n"


def test_an_error_is_told_whatever_the_settings_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Settings:
        raise ValueError

    monkeypatch.setattr("workers.settings.load_settings", broken)
    main._print_error("what is wrong")
    assert capsys.readouterr().err == "what is wrong\n"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rediss://worker:hunt%2Fer2@cache/0?db=1", "rediss://worker:***@cache/0?db=1"),
        ("redis://cache/0?password=hunter2&db=1", "redis://cache/0?password=***&db=1"),
        ("redis://:hunter2@h@cache/0", "redis://:***@cache/0"),
        ("redis://:hunter2:x@cache/0", "redis://:***@cache/0"),
        ("redis://cache/0?password=hunter2@home", "redis://***"),
        ("user:hunter2@cache:6379", "user:***@cache:6379"),
        ("http://milvus:19530", "http://milvus:19530"),
    ],
)
def test_an_address_is_shown_without_its_password(given: str, shown: str) -> None:
    settings = Settings(redis_url=given, milvus_uri=given, milvus_token=SecretStr("hunter2"))
    assert settings.shown("redis_url") == settings.shown("milvus_uri") == shown
    assert settings.shown("milvus_token") == "***"
    assert settings.hide(f"ConnectionError: {given}!") == f"ConnectionError: {shown}!"


def test_secrets_are_found_wherever_they_stand() -> None:
    settings = Settings(
        redis_url="redis://cache/0?password=hunter2",
        milvus_token=SecretStr("root:Milvus99"),
        tower_token=SecretStr("Tower77"),
    )
    assert {"hunter2", "Milvus99", "root:Milvus99", "Tower77"} <= set(settings.secrets())
    assert settings.hide("AUTH hunter2 Milvus99 Tower77") == "AUTH *** *** ***"


@pytest.mark.parametrize("given", ["secret\n", " secret", "secret"])
def test_a_token_is_taken_without_what_an_editor_leaves_behind_it(given: str) -> None:
    assert Settings(tower_token=SecretStr(given)).tower_token.get_secret_value() == "secret"


@pytest.mark.parametrize("given", ["sec\nret", "sécret", "sec\tret"])
def test_a_token_that_fits_into_no_header_is_refused_and_not_shown(
    given: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALL_TOWER_TOKEN", given)
    with pytest.raises(ConfigurationError, match=r"setting tower_token: .*printable ASCII") as raised:
        load_settings()
    assert given not in str(raised.value)
    assert "ret" not in str(raised.value)


def test_every_setting_knows_where_it_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recall.toml").write_text('namespace = "file"\npartitions = 7\nindex_ef = 99\n')
    (folder / "secret").write_text("root:hunter2")
    monkeypatch.setenv("RECALL_NAMESPACE", "env")
    monkeypatch.setenv("recall_index_ef", "77")
    monkeypatch.setenv("RECALL_MILVUS_TOKEN_FILE", str(folder / "secret"))
    found, settings = sources(os.environ, read_toml()), load_settings()
    assert (found["namespace"], settings.namespace) == ("environment RECALL_NAMESPACE", "env")
    assert (found["partitions"], settings.partitions) == ("recall.toml", 7)
    assert (found["index_ef"], settings.index_ef) == ("environment RECALL_INDEX_EF", 77)
    where, token = found["milvus_token"], settings.milvus_token.get_secret_value()
    assert (where, token) == ("file RECALL_MILVUS_TOKEN_FILE", "root:hunter2")
    assert found["user_ttl_ms"] == "default"
    assert set(found) == set(Settings.model_fields)
    monkeypatch.setenv("RECALL_MILVUS_TOKEN", "other")
    where = sources(os.environ, {})["milvus_token"]
    assert where == "environment RECALL_MILVUS_TOKEN"


def test_every_variable_that_the_source_reads_is_known() -> None:
    """A variable that is read but not declared would be called a mistake by `recall doctor`."""
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "workers").rglob("*.py"))
    named = set(re.findall(r'"(RECALL_[A-Z_]+)"', source)) - {PREFIX}
    assert "RECALL_CACHE_DIR" in named
    assert configuration.unknown(dict.fromkeys(named, ""), {}) == []


def test_no_setting_is_named_like_the_file_of_another() -> None:
    """RECALL_NAME_FILE names a file that holds the value of RECALL_NAME."""
    assert [name for name in Settings.model_fields if name.endswith("_file")] == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"kafka_security_protocol": "SASL_SSL"},
            "kafka_security_protocol SASL_SSL needs kafka_user and kafka_password",
        ),
        ({"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_user": "a"}, "needs kafka_user and kafka_password"),
        ({"kafka_user": "a", "kafka_password": "b"}, "of use only with kafka_security_protocol SASL_..."),
        ({"kafka_security_protocol": "SSL", "kafka_cert_path": "a"}, "kafka_cert_path and kafka_key_path go together"),
        ({"kafka_ca_path": "a"}, "kafka_ca_path is of use only with kafka_security_protocol SSL or SASL_SSL"),
        ({"kafka_security_protocol": "TLS"}, "kafka_security_protocol"),
        ({"kafka_sasl_mechanism": "GSSAPI"}, "kafka_sasl_mechanism"),
    ],
)
def test_what_lets_us_into_kafka_fits_together(given: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(line)) as raised:
        load_settings(**given)
    assert "\n" not in str(raised.value)


def test_the_password_of_kafka_is_a_secret() -> None:
    login = {"kafka_security_protocol": "SASL_SSL", "kafka_user": "recall", "kafka_password": "hunter2"}
    settings = load_settings(**login)
    assert "hunter2" in settings.secrets()
    assert "hunter2" not in repr(settings) + settings.shown("kafka_password")
