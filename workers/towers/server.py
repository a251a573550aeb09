"""What a model server is to a tower: one model of one version, reached by one protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from numpy.typing import NDArray

from models.bundle import Bundle
from models.signature import Arrays
from models.verify import Declared, Side
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.settings import Settings

DEPENDENCY = "tower"


Meaning = Literal["refused", "missing", "busy"]
Words = Mapping[str, Meaning]
"""What a text in an error of a server means, where its status says less: the rows are refused, the model is missing, it
has too much to do. The first that is found counts."""


class Refused(Exception):
    """The server answers that it cannot run these rows, or its model on them; one line."""


class Missing(DependencyUnavailable):
    """It answers, and does not have the model, or not in this version: until it is loaded."""


class NotTheBundles(DependencyUnavailable):
    """It answers, and not as the bundle's tower would: until somebody puts the right model there."""


@dataclass(frozen=True, slots=True)
class Model:
    """Which model is asked for. `version` None = the bundle's own, where the server has it."""

    name: str
    version: str | None
    bundle_version: str
    inputs: Arrays
    outputs: Arrays

    def choose(self, versions: list[str]) -> str:
        """The version that is asked for, of those that a server has. Raises ConfigurationError when none is meant."""
        if self.version is not None:
            return self.version
        if self.bundle_version in versions:
            return self.bundle_version
        if len(versions) == 1:
            return versions[0]
        there = ", ".join(sorted(versions)) or "none"
        line = f"of {self.name} there is no version {self.bundle_version}, only {there}: name one with tower_version"
        raise ConfigurationError(f"tower: {line}")


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says of a model: its inputs and outputs by name."""

    inputs: Mapping[str, Declared]
    outputs: Mapping[str, Declared]


class ModelServer(Protocol):
    """One model of a server. Any call may be cancelled, and raises DependencyUnavailable when it cannot be answered."""

    @property
    def where(self) -> str:
        """Address, model and version, for messages."""
        ...

    async def describe(self) -> Description | None:
        """Settle the version that is asked for from now on, and what the server says of it; None: nothing.

        Raises ConfigurationError when it has several and none is meant.
        """
        ...

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """Run the model on at least one row; the caller bounds the time. Raises Refused, NotTheBundles."""
        ...

    async def ready(self) -> None:
        """Return when the server says that it can answer for the model."""
        ...

    async def close(self) -> None:
        """Close connections; calls in flight fail."""
        ...


def asked_model(bundle: Bundle, side: Side, settings: Settings, arrays: tuple[Arrays, Arrays]) -> Model:
    """The model that the settings name for a side."""
    name = settings.tower_user_model if side == "user" else settings.tower_item_model
    return Model(name.replace("{version}", bundle.version), settings.tower_version or None, bundle.version, *arrays)


def meaning(words: Words, text: str) -> Meaning | None:
    """What one of the words in a server's error means."""
    return next((found for word, found in words.items() if word in text), None)


def is_grpc(settings: Settings) -> bool:
    """Whether the address speaks gRPC. Raises ConfigurationError when there is none."""
    if not settings.tower_url:
        line = "needs tower_url: http://, https://, grpc:// or grpcs:// and where the model server listens"
        raise ConfigurationError(f"tower = {settings.tower!r} {line}")
    return urlsplit(settings.tower_url).scheme in {"grpc", "grpcs"}
