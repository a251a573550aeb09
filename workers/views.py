"""Which bundle is active: one key in Redis, or a local pointer while no Redis runs.

A view is one bundle's reading of `item-updates`: a consumer group, a Milvus collection and an item table of its own,
all named after the bundle's version. The key in Redis holds the active view as JSON. While no Redis can be reached,
`activate` leaves the same JSON in `<data_dir>/active*.json`, and `recall up` carries it over.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models.bundle import Bundle, BundleError, load_bundle
from workers.errors import ConfigurationError, DependencyError
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect, translated


@dataclass(frozen=True, slots=True)
class ActiveView:
    """The active bundle and the collection that holds its item vectors."""

    version: str
    bundle: Path
    collection: str


async def read_active(settings: Settings) -> ActiveView | None:
    """The active view, or None when there is none yet. Raises DependencyError when Redis does not answer."""
    client = connect(settings)
    try:
        with translated():
            stored = await client.get(keys.active_view(settings))
    finally:
        await client.aclose()
    return None if stored is None else _decode(stored, keys.active_view(settings).decode())


def load(view: ActiveView) -> Bundle:
    """The bundle of a view, every file of it verified. Raises ConfigurationError."""
    try:
        bundle = load_bundle(view.bundle)
    except BundleError as error:
        raise ConfigurationError(str(error)) from error
    if bundle.version != view.version:
        raise ConfigurationError(f"{view.bundle} holds version {bundle.version}, the active one is {view.version}")
    return bundle


async def activate(settings: Settings, bundle: Path, version: str) -> ActiveView:
    """Make a bundle the active one. Running workers keep the one they started with until they are restarted."""
    view = ActiveView(version=version, bundle=bundle.absolute(), collection=settings.collection(version))
    try:
        await _store(settings, view)
    except DependencyError:
        _write_pointer(settings, view)
    else:
        _pointer(settings).unlink(missing_ok=True)
    return view


async def carry_over(settings: Settings) -> ActiveView | None:
    """Move a local pointer into Redis, where there is one; returns the active view. Idempotent."""
    pointer = _pointer(settings)
    if pointer.exists():
        await _store(settings, _decode(pointer.read_bytes(), str(pointer)))
        pointer.unlink()
    return await read_active(settings)


def local_pointer(settings: Settings) -> ActiveView | None:
    """The view that waits to be carried over, when there is one. Touches no server."""
    pointer = _pointer(settings)
    return _decode(pointer.read_bytes(), str(pointer)) if pointer.exists() else None


async def _store(settings: Settings, view: ActiveView) -> None:
    client = connect(settings)
    try:
        with translated():
            await client.set(keys.active_view(settings), _encode(view))
    finally:
        await client.aclose()


def _pointer(settings: Settings) -> Path:
    suffix = f".{settings.namespace}" if settings.namespace else ""
    return settings.data_dir / f"active{suffix}.json"


def _write_pointer(settings: Settings, view: ActiveView) -> None:
    pointer = _pointer(settings)
    try:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = pointer.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(_encode(view))
        temporary.replace(pointer)
    except OSError as error:
        raise ConfigurationError(f"{pointer}: {error.strerror}") from error


def _encode(view: ActiveView) -> bytes:
    return msgspec.json.encode(view, enc_hook=str)


def _decode(data: bytes, where: str) -> ActiveView:
    try:
        return msgspec.json.decode(data, type=ActiveView, dec_hook=lambda _, path: Path(path))
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{where} is not an active view: {error}") from error
