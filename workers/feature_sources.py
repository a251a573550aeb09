"""Feature sources as the settings declare them: who is asked for values that a request does not carry.

[sources.shop]
kind = "http"                   # memory, redis, http, feast, or one that another package registers
url = "http://127.0.0.1:8200"
timeout_ms = 50                 # no request waits longer for it
cache_ttl_ms = 1000             # how long at most an answer counts for the same user; 0 = every request asks
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from workers.hiding import HIDDEN

OWN = {  # what each kind of ours knows beside the settings of all
    "memory": {"values"},
    "redis": {"url", "prefix"},
    "http": {"url", "path", "headers"},
    "feast": {"url", "headers", "feature_service", "feature_view", "entity"},
}
OF_ALL = {"kind", "timeout_ms", "cache_ttl_ms", "cache_size"}


class FeatureSourceSettings(BaseModel):
    """One source as it is written in the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: Annotated[str, Field(min_length=1)]
    timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    cache_ttl_ms: Annotated[int, Field(ge=0)] = 1000
    cache_size: Annotated[int, Field(ge=1)] = 10_000  # users

    url: SecretStr = SecretStr("")  # may hold a password
    prefix: str = ""  # redis: of the key of a user's hash
    path: Annotated[str, Field(pattern="^/")] = "/features"  # http
    headers: dict[str, SecretStr] = {}
    feature_service: str = ""  # feast: one of the two
    feature_view: str = ""
    entity: str = "user_id"  # feast: the join key
    values: dict[str, dict[str, Any]] = {}  # memory: user id -> name -> value
    options: dict[str, Any] = {}  # of other packages' kinds

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            text = f"{name}{secret.get_secret_value()}"
            if not name or not (text.isascii() and text.isprintable()):
                raise ValueError(f"{name!r}: a header is printable ASCII")
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> "FeatureSourceSettings":
        own = OWN.get(self.kind)
        if own is None:
            return self
        for name in sorted(self.model_fields_set - OF_ALL - own):
            raise ValueError(f"{name} does not belong to kind {self.kind!r}")
        if self.kind in {"http", "feast"} and not self.url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError(f"kind {self.kind!r} needs a url that begins with http:// or https://")
        if self.kind == "feast" and bool(self.feature_service) == bool(self.feature_view):
            raise ValueError("kind 'feast' needs either feature_service or feature_view")
        return self

    def secrets(self) -> list[str]:
        """Values of headers, whole and behind a word such as Bearer, and of options that look like secrets."""
        headers = [header.get_secret_value() for header in self.headers.values()]
        found = headers + [header.partition(" ")[2] for header in headers]
        return found + [str(value) for name, value in self.options.items() if is_secret(name)]

    def shown(self, url: str) -> dict[str, Any]:
        """What was set, as anybody may read it; `url` is the address without its password."""
        told = self.model_dump(exclude_unset=True, exclude={"url", "headers", "options"})
        if self.url.get_secret_value():
            told["url"] = url
        if self.headers:
            told["headers"] = dict.fromkeys(self.headers, HIDDEN)
        if self.options:
            told["options"] = {name: HIDDEN if is_secret(name) else value for name, value in self.options.items()}
        return told


def is_secret(name: str) -> bool:
    """Whether a parameter of that name holds one."""
    return any(part in name.lower() for part in ("pass", "token", "secret"))
