"""The settings: what they are, without secrets, where each comes from, and what looks like one and is none."""

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

from workers.doctor.findings import Finding, Level
from workers.settings import PREFIX, TOML, Settings

CHECK = "configuration"
OTHER_VARIABLES = frozenset({"RECALL_CACHE_DIR", "RECALL_RESTARTS"})  # read from the environment, and no settings
TEST_PREFIX = "RECALL_TEST_"
# What Kubernetes tells a container of every service whose name begins with recall-
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting as anybody may read it."""

    name: str
    value: str
    source: str


def shown(settings: Settings, sources: Mapping[str, str]) -> list[Shown]:
    """Every setting, in the order of its declaration; secrets are hidden."""
    return [Shown(name, settings.shown(name), sources[name]) for name in Settings.model_fields]


def judge(settings: Settings, environ: Mapping[str, str], toml: Mapping[str, object]) -> list[Finding]:
    """What is suspicious in settings that can be read. Pure."""
    found = [
        Finding(CHECK, Level.WARNING, line, "correct or remove it, it changes nothing")
        for line in unknown(environ, toml)
    ]
    if settings.allow_unsafe:
        line = "allow_unsafe is set: workers start although data may be lost"
        found.append(Finding(CHECK, Level.WARNING, line, "remove it once nothing here is unsafe"))
    if settings.web_port and not _is_local(settings.web_bind):
        line = f"health pages and metrics are served on {settings.web_bind}, to anybody who can reach it"
        found.append(Finding(CHECK, Level.NOTE, line))
    for name, address in _in_the_clear(settings):
        line = f"{name}: a password or token travels to {address} unencrypted"
        found.append(Finding(CHECK, Level.NOTE, line, "use rediss:// or https://, unless the network is trusted"))
    return found or [Finding(CHECK, Level.OK, f"{len(Settings.model_fields)} settings, none unknown")]


def unknown(environ: Mapping[str, str], toml: Mapping[str, object]) -> list[str]:
    """Names that look like settings and are none, and what may have been meant. Pure."""
    variables = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    variables |= {f"{variable}_FILE" for variable in variables} | OTHER_VARIABLES
    strange = [name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in variables]
    strange = [name for name in strange if not name.startswith(TEST_PREFIX)]
    if "KUBERNETES_SERVICE_HOST" in environ:
        strange = [name for name in strange if not SERVICE_LINK.search(name)]
    keys = [name for name in toml if name not in Settings.model_fields]
    in_file = [f"{TOML}: {_meant(name, Settings.model_fields.keys())}" for name in keys]
    return [_meant(name, variables) for name in sorted(strange)] + in_file


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{name} is no setting" + (f", did you mean {near[0]}?" if near else "")


def _in_the_clear(settings: Settings) -> list[tuple[str, str]]:
    """Settings whose secrets are sent without encryption to another machine, and where."""
    found = []
    redis = settings.redis_url.get_secret_value()
    if settings.shown("redis_url") != redis and redis.startswith("redis://"):
        found.append(("redis_url", _host(settings.shown("redis_url"))))
    login = next((name for name in ("milvus_token", "milvus_password") if settings.text(name)), None)
    if login is not None and not settings.milvus_uri.startswith("https://"):
        uri = settings.milvus_uri if "://" in settings.milvus_uri else f"http://{settings.milvus_uri}"
        found.append((login, _host(uri)))
    for name, source in settings.sources.items():
        url = source.url.get_secret_value()
        if (source.headers or "@" in url) and url.startswith(("http://", "redis://")):
            found.append((f"sources.{name}", _host(url)))
    if settings.tower_token.get_secret_value() and settings.tower_url.startswith(("http://", "grpc://")):
        found.append(("tower_token", _host(settings.tower_url)))
    return [(name, host) for name, host in found if not _is_local(host)]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""  # another check tells that it is no address


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"", "localhost"}
