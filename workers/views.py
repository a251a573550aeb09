"""Which bundle is active: one key in Redis, or a local pointer while no Redis runs.

A view is one bundle's reading of `item-updates`: a consumer group, a Milvus collection and an item table of its own,
all named after the bundle's version. The key in Redis holds the active view as JSON. While no Redis can be reached,
`activate` leaves the same JSON in `<data_dir>/active*.json`, and `recall up` carries it over. Workers keep the view
that they started with in `<data_dir>/last-active*.json`, and put it back into a Redis that has none: an emptied one.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from models.bundle import Bundle, BundleError, load_bundle
from workers.errors import ConfigurationError, DependencyError
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import close, connect, translated

log = structlog.get_logger()


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
        await close(client)
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


def _warn(line: str) -> None:
    log.warning(line)


async def activate(settings: Settings, bundle: Path, version: str, say: Callable[[str], None] = _warn) -> ActiveView:
    """Make a bundle the active one. Running workers keep the one they started with until they are restarted.

    Raises ConfigurationError where Redis does not answer and `data_dir` cannot be written.
    """
    view = ActiveView(version=version, bundle=bundle.absolute(), collection=settings.collection(version))
    try:
        await _store(settings, view)
    except DependencyError:
        pointer = _pointer(settings)
        try:
            _write(pointer, view)
        except OSError as error:
            raise ConfigurationError(f"{pointer}: {error.strerror}") from error
    else:
        if _pointer(settings).exists():  # a read-only disk refuses to delete what is not there
            _pointer(settings).unlink()
        remember(settings, view, say)
    return view


def remember(settings: Settings, view: ActiveView, say: Callable[[str], None] = _warn) -> None:
    """Keep the view that works, for a Redis that loses it. It works without that too: who cannot write only says so.

    Then none is kept, rather than an older one.
    """
    last = _last(settings)
    try:
        if not last.exists() or last.read_bytes() != _encode(view):
            _write(last, view)
    except OSError as error:
        with suppress(OSError):
            last.unlink()
        say(f"{last}: {error.strerror}: a Redis that loses which bundle is active will not get it back")


async def read_or_put_back(settings: Settings) -> ActiveView | None:
    """The active view; where Redis has none, the one that was remembered is active again. Raises DependencyError."""
    last = _last(settings)
    view = await read_active(settings)
    if view is None and last.exists():
        view = _decode(last.read_bytes(), str(last))
        log.warning("redis has no active view: putting the last one back", version=view.version)
        await _store(settings, view, unless_there=True)
        view = await read_active(settings)
    return view


async def carry_over(settings: Settings) -> ActiveView | None:
    """Move a local pointer into Redis, where there is one; returns the active view, as put back. Idempotent."""
    pointer = _pointer(settings)
    if pointer.exists():
        await _store(settings, _decode(pointer.read_bytes(), str(pointer)))
        pointer.unlink()
    return await read_or_put_back(settings)


def local_pointer(settings: Settings) -> ActiveView | None:
    """The view that waits to be carried over, when there is one. Touches no server."""
    pointer = _pointer(settings)
    return _decode(pointer.read_bytes(), str(pointer)) if pointer.exists() else None


async def _store(settings: Settings, view: ActiveView, *, unless_there: bool = False) -> None:
    client = connect(settings)
    try:
        with translated():
            await client.set(keys.active_view(settings), _encode(view), nx=unless_there)
    finally:
        await close(client)


def _pointer(settings: Settings) -> Path:
    suffix = f".{settings.namespace}" if settings.namespace else ""
    return settings.data_dir / f"active{suffix}.json"


def _last(settings: Settings) -> Path:
    return _pointer(settings).with_name(f"last-{_pointer(settings).name}")


def _write(path: Path, view: ActiveView) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_bytes(_encode(view))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _encode(view: ActiveView) -> bytes:
    return msgspec.json.encode(view, enc_hook=str)


def _decode(data: bytes, where: str) -> ActiveView:
    try:
        return msgspec.json.decode(data, type=ActiveView, dec_hook=lambda _, path: Path(path))
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{where} is not an active view: {error}") from error
