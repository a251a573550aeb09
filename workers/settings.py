"""Settings: `recall.toml` in the working directory, or the environment with prefix `RECALL_`; the environment wins.

`RECALL_NAME_FILE=/path` reads RECALL_NAME from a file, for secrets.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import orjson
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from workers.errors import ConfigurationError
from workers.feature_sources import FeatureSourceSettings, is_secret
from workers.hiding import HIDDEN, forms, hide
from workers.scenes import SceneSettings

PREFIX = "RECALL_"
TOML = "recall.toml"
URLS = ("redis_url", "milvus_uri", "tower_url")  # may hold a password
TOWER_SCHEMES = ("http", "https", "grpc", "grpcs")
MILVUS_TLS = ("milvus_ca_path", "milvus_cert_path", "milvus_key_path", "milvus_server_name")
KAFKA_TLS = ("kafka_ca_path", "kafka_cert_path", "kafka_key_path")
KAFKA_OWN: dict[str, object] = {  # what is said of brokers beside their addresses, as it is where nothing is said
    "kafka_security_protocol": "PLAINTEXT",
    "kafka_user": "",
    "kafka_password": SecretStr(""),
    **dict.fromkeys(KAFKA_TLS, ""),
}
MILVUS_OWN: dict[str, object] = {  # likewise of a Milvus
    "milvus_token": SecretStr(""),
    "milvus_user": "",
    "milvus_password": SecretStr(""),
    "milvus_database": "",
    **dict.fromkeys(MILVUS_TLS, ""),
}

AgentKind = Literal["activity", "items", "recall"]
SceneName = Annotated[str, Field(min_length=1, max_length=64)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
LocalMilvus = Literal["auto", "server", "lite"]
IndexType = Literal["auto", "FLAT", "HNSW", "IVF_FLAT"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
AGENT_KINDS: tuple[AgentKind, ...] = ("activity", "items", "recall")


class Settings(BaseSettings):
    """All settings with their defaults; in the environment upper case with RECALL_ before."""

    model_config = SettingsConfigDict(
        env_prefix="RECALL_", toml_file="recall.toml", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    namespace: Annotated[str, Field(pattern=r"^[a-z0-9_]{0,40}$")] = ""
    data_dir: Path = Path(".recall")

    kafka_bootstrap: str = "127.0.0.1:9092"
    kafka_security_protocol: SecurityProtocol = "PLAINTEXT"
    kafka_sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"  # of SASL_..., with
    kafka_user: str = ""
    kafka_password: SecretStr = SecretStr("")
    kafka_ca_path: str = ""  # whose certificates the brokers' are checked against; empty: the usual ones
    kafka_cert_path: str = ""  # of this client, for brokers that ask for one, with
    kafka_key_path: str = ""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    redis_cluster: bool = False
    milvus_uri: str = "http://127.0.0.1:19530"  # or a file, `items.db`: Milvus Lite, for workers in one process
    milvus_token: SecretStr = SecretStr("")  # user:password, or a key of an API
    milvus_user: str = ""  # in place of a token, with
    milvus_password: SecretStr = SecretStr("")
    milvus_database: str = ""  # which must be there; empty: the server's default
    milvus_ca_path: str = ""  # whose certificates the server's is checked against; empty: the usual ones
    milvus_cert_path: str = ""  # of this client, for a server that asks for one, with
    milvus_key_path: str = ""
    milvus_server_name: str = ""  # that the server's certificate is for, where milvus_uri has another
    local_milvus: LocalMilvus = "auto"  # of the local stack; auto: the server where its package runs, else Milvus Lite

    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=7)] = 1
    min_insync_replicas: Annotated[int, Field(ge=1, le=7)] = 1
    activity_retention_ms: int = 7 * 86_400_000
    requests_retention_ms: int = 86_400_000

    user_ttl_ms: int = 90 * 86_400_000
    popular_refresh_ms: Annotated[int, Field(ge=100)] = 5000  # how often a recall worker reads popular lists anew

    index: Annotated[str, Field(min_length=1, max_length=64)] = "milvus"  # or faiss, memory, or an entry point's name
    index_type: IndexType = "auto"  # auto: FLAT for fewer than index_flat_below rows, else HNSW
    index_flat_below: int = 10_000
    index_ef: Annotated[int, Field(ge=1, le=32768)] = 200
    index_m: Annotated[int, Field(ge=2, le=2048)] = 16  # links of a node in a graph (HNSW)
    index_ef_construction: Annotated[int, Field(ge=8, le=512)] = 200  # candidates for them when it is built
    index_nlist: Annotated[int, Field(ge=1, le=65536)] = 128  # lists of IVF_FLAT
    index_nprobe: Annotated[int, Field(ge=1, le=65536)] = 16  # of them, how many a search reads
    index_snapshot_ms: Annotated[int, Field(ge=0)] = 60_000  # how often one in the process is written down; 0 = never

    tower: Annotated[str, Field(min_length=1)] = "onnx"  # or kserve, torchserve, tf_serving, or one of another package
    tower_url: str = ""  # of the model server: http://, https:// REST; grpc://, grpcs:// gRPC
    tower_user_model: Annotated[str, Field(min_length=1)] = "user_tower"  # {version}: the bundle's, in its place
    tower_item_model: Annotated[str, Field(min_length=1)] = "item_tower"
    tower_version: str = ""  # as the server names it; empty: the bundle's own, or the only one that it has
    tower_max_batch: Annotated[int, Field(ge=1, le=4096)] = 64  # rows of one call; larger batches are split
    tower_binary: bool = True  # tensors as bytes over REST, where the server takes them
    tower_token: SecretStr = SecretStr("")

    scenes: dict[SceneName, SceneSettings] = {}  # what requests get; `default` where they name none
    sources: dict[SourceName, FeatureSourceSettings] = {}  # who is asked for context values that the spec says
    extractors: dict[str, str] = {}  # code of the spec's extractors, `module:attribute`; else what a package registers
    reuse_ms: Annotated[int, Field(ge=0, le=1000)] = 1000  # how long an equal request gets the same search results
    last_lists: Annotated[int, Field(ge=0)] = 10_000  # users' lists kept in memory for when the index is unavailable
    last_list_ttl_ms: Annotated[int, Field(ge=0)] = 3_600_000

    store_timeout_ms: int = 1000
    redis_durability_ms: Annotated[int, Field(ge=0, le=5000)] = 2000  # a write that is older survives Redis' death
    index_timeout_ms: int = 1500
    tower_timeout_ms: int = 1000
    publish_timeout_ms: int = 30_000
    wait_for_event_ms: Annotated[int, Field(ge=0, le=60_000)] = 500  # a request with after_event_id, at most
    dead_letters_per_minute: Annotated[int, Field(ge=0)] = 1000  # of one worker, which pauses then; 0 = no end
    stuck_after_ms: Annotated[int, Field(ge=5000)] = 60_000  # a worker whose loop has not turned for so long is ended
    allow_unsafe: bool = False  # start although `recall doctor` says that data may be lost
    web_bind: str = "127.0.0.1"
    web_port: Annotated[int, Field(ge=0, le=65535)] = 0  # /healthz /readyz /metrics of a worker; 0 = not served

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("kafka_bootstrap")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"{address.strip()!r} is not host:port")
        return value

    @field_validator("tower_url")
    @classmethod
    def _model_server(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port, more = parts.port, f"{parts.query}{parts.fragment}"
            well = parts.scheme in TOWER_SCHEMES and bool(parts.hostname) and not more
            if value.startswith("grpc"):
                well = well and port is not None and not parts.path
        except ValueError:
            well = False
        if value and not well:
            raise ValueError("it is http://host, https://host, grpc://host:port or grpcs://host:port")
        if "@" in value:
            raise ValueError("no user and no password: what a model server wants is tower_token")
        return value

    @field_validator("tower_token")
    @classmethod
    def _in_a_header(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().strip()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("it travels in a header, which holds printable ASCII characters only")
        return SecretStr(text)

    @field_validator("scenes", "sources", "extractors", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        """Text is what stands in the file that RECALL_SCENES_FILE names, and so on."""
        return orjson.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _records_outlive_events(self) -> "Settings":
        if self.user_ttl_ms <= self.activity_retention_ms:
            raise ValueError("user_ttl_ms must be longer than activity_retention_ms: a record outlives its events")
        return self

    @model_validator(mode="after")
    def _let_in_by_kafka(self) -> "Settings":
        protocol = self.kafka_security_protocol
        named = [bool(self.kafka_user), bool(self.kafka_password.get_secret_value())]
        if protocol.startswith("SASL") and not all(named):
            raise ValueError(f"kafka_security_protocol {protocol} needs kafka_user and kafka_password")
        if any(named) and not protocol.startswith("SASL"):
            raise ValueError("kafka_user and kafka_password are of use only with kafka_security_protocol SASL_...")
        if bool(self.kafka_cert_path) is not bool(self.kafka_key_path):
            raise ValueError("kafka_cert_path and kafka_key_path go together")
        encrypting = [name for name in KAFKA_TLS if getattr(self, name)]
        if encrypting and not protocol.endswith("SSL"):
            raise ValueError(f"{encrypting[0]} is of use only with kafka_security_protocol SSL or SASL_SSL")
        return self

    @model_validator(mode="after")
    def _one_login(self) -> "Settings":
        if self.milvus_token.get_secret_value() and self.milvus_user:
            raise ValueError("milvus_token and milvus_user exclude each other")
        if bool(self.milvus_user) is not bool(self.milvus_password.get_secret_value()):
            raise ValueError("milvus_user and milvus_password go together")
        if bool(self.milvus_cert_path) is not bool(self.milvus_key_path):
            raise ValueError("milvus_cert_path and milvus_key_path go together")
        encrypting = [name for name in MILVUS_TLS if getattr(self, name)]
        if encrypting and not self.milvus_uri.startswith("https://"):
            raise ValueError(f"{encrypting[0]} is of use only with a milvus_uri that begins with https://")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def milvus_file(self) -> Path | None:
        """The file that `milvus_uri` names; None when it is an address, and when the items are elsewhere."""
        uri = self.milvus_uri
        is_file = "://" not in uri and (uri.endswith(".db") or uri.startswith(("/", "./", "../", "~")))
        return Path(uri).expanduser().absolute() if is_file and self.index == "milvus" else None

    @property
    def stack_milvus(self) -> LocalMilvus | None:
        """Which Milvus the local stack starts; None: the items are in a file, or elsewhere."""
        return self.local_milvus if self.index == "milvus" and self.milvus_file is None else None

    def topic(self, name: str) -> str:
        """The topic's name under the namespace."""
        return f"{self.namespace}.{name}" if self.namespace else name

    def group(self, name: str) -> str:
        """The consumer group's name under the namespace."""
        return f"{self.namespace}.{name}" if self.namespace else name

    def key(self, name: str) -> str:
        """A Redis key prefix under the namespace."""
        return f"{self.namespace}:{name}" if self.namespace else name

    def secrets(self) -> list[str]:
        """What must never be shown: passwords and tokens, as they were given and decoded."""
        tokens = (self.milvus_token, self.milvus_password, self.tower_token, self.kafka_password)
        found = [token.get_secret_value() for token in tokens]
        found += [secret for source in self.sources.values() for secret in source.secrets()]
        urls = [source.url.get_secret_value() for source in self.sources.values()]
        for url in (self.redis_url.get_secret_value(), self.milvus_uri, self.tower_url, *urls):
            password = url.rpartition("@")[0].partition("://")[2].partition(":")[2]
            parameters = parse_qsl(url.partition("?")[2])
            passwords = [password, *(value for name, value in parameters if is_secret(name))]
            found += [form for each in passwords for form in (each, unquote(each), quote(each, safe=""))]
        found += found[0].split(":", 1)[1:]  # a token is user:password
        return [secret for secret in found if secret]

    def shown(self, name: str) -> str:
        """The value of a setting as anybody may read it: without passwords and tokens."""
        value = getattr(self, name)
        if name in URLS:
            return without_password(value.get_secret_value() if isinstance(value, SecretStr) else value)
        if isinstance(value, SecretStr):
            return HIDDEN if value.get_secret_value() else ""
        if name == "sources":
            shown = {
                source: each.shown(without_password(each.url.get_secret_value()))
                for source, each in self.sources.items()
            }
            return orjson.dumps(shown).decode()
        return self.text(name)

    def text(self, name: str) -> str:
        """The value of a setting as an environment variable holds it."""
        value = getattr(self, name)
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if isinstance(value, dict):
            return orjson.dumps(value, default=_plain).decode()
        return str(value).lower() if isinstance(value, bool) else str(value)

    def hide(self, text: str) -> str:
        """A text without what must never be shown: messages of others may repeat an address as it was given."""
        for name in URLS:
            value = getattr(self, name)
            text = text.replace(value.get_secret_value() if isinstance(value, SecretStr) else value, self.shown(name))
        return hide(text, forms(self.secrets()))

    def collection(self, model_version: str) -> str:
        """The Milvus collection of one bundle; letters, digits and underscores only."""
        name = "items_" + "".join(c if c.isalnum() and c.isascii() else "_" for c in model_version)
        return f"{self.namespace}_{name}" if self.namespace else name


def _plain(value: BaseModel | SecretStr) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value.model_dump(exclude_unset=True)


def without_password(url: str) -> str:
    """An address without its password, wherever it stands; more is left out of one that cannot be read for sure."""
    scheme, separator, rest = url.rpartition("://") if "@" not in url else url.partition("://")
    if not separator:
        scheme, rest = "", url
    login, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        if not re.fullmatch(r"[\w.%-]*", user) or "?" in login:
            return f"{scheme}{separator}{HIDDEN}"
        login = f"{user}:{HIDDEN}" if colon else user
    place, mark, query = place.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    query = "&".join(f"{name}{equals}{HIDDEN if is_secret(name) else value}" for name, equals, value in pairs)
    return f"{scheme}{separator}{login}{at}{place}{mark}{query}"


def sources(environ: Mapping[str, str], toml: Mapping[str, object]) -> dict[str, str]:
    """Where the value of each setting comes from, by name. Pure: of an environment and the content of recall.toml."""
    found = {}
    variables = {name.upper(): name for name in environ}
    for name in Settings.model_fields:
        variable = f"{PREFIX}{name.upper()}"
        if f"{variable}_FILE" in environ and variable not in environ:
            found[name] = f"file {variable}_FILE"
        elif variable in variables:
            found[name] = f"environment {variable}"
        else:
            found[name] = TOML if name in toml else "default"
    return found


def read_toml() -> dict[str, object]:
    """The content of recall.toml in the working directory; empty without one. Raises ConfigurationError."""
    try:
        return tomllib.loads(Path(TOML).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{TOML}: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{TOML}: {error.strerror}") from error


def load_settings(**overrides: object) -> Settings:
    """Read settings; raises ConfigurationError with one line that names the setting. `overrides` win."""
    values: dict[str, object] = {}
    for name, path in os.environ.items():
        if name.startswith("RECALL_") and name.endswith("_FILE") and name.removesuffix("_FILE") not in os.environ:
            try:
                secret = Path(path).read_text().strip()
            except OSError as error:
                raise ConfigurationError(f"{name}: {path}: {error.strerror}") from error
            except UnicodeDecodeError:
                raise ConfigurationError(f"{name}: {path}: not UTF-8 text") from None  # its message has the bytes
            values[name.removeprefix("RECALL_").removesuffix("_FILE").lower()] = secret
    try:
        return Settings(**(values | overrides))  # type: ignore[arg-type]  # pydantic validates them
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f" {part}" for part in first["loc"])
        raise ConfigurationError(f"setting{name}: {first['msg'].removeprefix('Value error, ')}") from error
    except SettingsError as error:  # of a variable whose value is to be JSON; its message names the field
        name = next(each for each in Settings.model_fields if f'"{each}"' in str(error))
        raise ConfigurationError(f"setting {name}: {PREFIX}{name.upper()} is not JSON: {error.__cause__}") from error
    except ValueError as error:  # recall.toml that is not TOML
        raise ConfigurationError(f"recall.toml: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"recall.toml: {error.strerror}") from error
