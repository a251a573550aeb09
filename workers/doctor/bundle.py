"""Towers, item vectors and collection are of one bundle, or nothing works: the active view, piece by piece."""

import asyncio

from models.bundle import Bundle
from models.verify import Side
from workers import missed, views
from workers.doctor import features
from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError, DependencyError
from workers.extractors import with_code
from workers.index.milvus_inspect import inspect_collection
from workers.index.schema import Collection
from workers.plans import plans
from workers.settings import Settings
from workers.towers import onnx
from workers.towers.opening import open_tower

CHECK = "bundle"
MAKE_ONE = "make one: recall model fit --data movielens-1m"
EXPORT = "give the model server this bundle's towers: recall model export"
ANOTHER = "put its folder back as it was, or make another active: recall model activate"
TIMEOUT_S = 3.0  # of each backend


async def check(settings: Settings) -> list[Finding]:
    """The active view, its bundle, towers and collection. Raises ConfigurationError."""
    pointer = views.local_pointer(settings)
    found = []
    if pointer is not None:
        line = f"bundle {pointer.version} was made active while Redis was away, and is not yet"
        found.append(Finding(CHECK, Level.NOTE, line, "`recall up` or `recall model activate` makes it active"))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            view = await views.read_active(settings)
    except (DependencyError, TimeoutError):
        line = "not checked: which bundle is active stands in Redis, which does not answer"
        return [*found, Finding(CHECK, Level.NOTE, line)]
    if view is None:
        return [*found, Finding(CHECK, Level.WRONG, "no bundle is active, no worker starts", MAKE_ONE)]
    try:
        bundle = await asyncio.to_thread(views.load, view)
    except ConfigurationError as error:
        return [*found, Finding(CHECK, Level.WRONG, str(error), ANOTHER)]
    figures = f"{bundle.dim} dimensions, metric {bundle.metric}, spec {bundle.spec.name} {bundle.spec.hash[:12]}"
    found.append(await _towers(settings, bundle, figures))
    try:
        plans(settings.scenes, bundle.spec)
    except ConfigurationError as error:
        found.append(Finding(CHECK, Level.WRONG, str(error), "change the scene, or fit with that field filterable"))
    try:
        with_code(bundle, settings)
    except ConfigurationError as error:
        found.append(Finding(CHECK, Level.WRONG, str(error), "install its package, or name it in the setting"))
    found += await features.check(settings, bundle.spec)
    return [*found, await _collection(settings, bundle, view.collection), *await _missed(settings, view.collection)]


async def _towers(settings: Settings, bundle: Bundle, figures: str) -> Finding:
    """Both towers opened as workers open them."""
    sides: tuple[Side, ...] = ("user", "item")
    try:
        for side in sides:
            if settings.tower == "onnx":  # other checks go on meanwhile
                await asyncio.to_thread(onnx.open_tower, bundle, side, settings.tower_timeout_ms)
            else:
                await (await open_tower(bundle, side, settings)).close()
    except DependencyError as error:
        return Finding(CHECK, Level.DOWN, str(error), "start the model server, or set tower_url")
    except ConfigurationError as error:
        return Finding(CHECK, Level.WRONG, str(error), ANOTHER if settings.tower == "onnx" else EXPORT)
    return Finding(CHECK, Level.OK, f"{bundle.version} in {bundle.path}: {figures}, both towers fit it")


async def _missed(settings: Settings, collection: str) -> list[Finding]:
    """Whether items that are gone may still be listed. Raises ConfigurationError."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            missed_ms = await missed.missed_ms(settings, collection)
    except (DependencyError, TimeoutError):
        return []  # another check tells that Redis does not answer
    if missed_ms is None:
        return []
    line = f"{missed.MISSED} (noticed {missed.noticed(missed_ms)})"
    return [Finding(CHECK, Level.WARNING, line, missed.todo(settings, collection))]


async def _collection(settings: Settings, bundle: Bundle, name: str) -> Finding:
    if settings.index != "milvus":
        return Finding(CHECK, Level.NOTE, f"collection {name} is not checked: index = {settings.index!r} holds it")
    if settings.milvus_file is not None:
        return Finding(CHECK, Level.NOTE, f"collection {name} is not checked: it stands in a file")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            held = await inspect_collection(settings, Collection(name, bundle.dim, bundle.metric, bundle.version))
    except (DependencyError, TimeoutError):
        return Finding(CHECK, Level.NOTE, f"collection {name} is not checked: Milvus does not answer")
    except ConfigurationError as error:
        todo = f"drop the collection and restart the items workers, which fill it again, or {MAKE_ONE}"
        return Finding(CHECK, Level.WRONG, str(error), todo)
    if held is None:
        return Finding(CHECK, Level.NOTE, f"collection {name} does not exist yet", "the items worker makes it")
    if held.rows is None:
        return Finding(CHECK, Level.NOTE, f"collection {name} matches the bundle, and is not loaded", "workers load it")
    return Finding(CHECK, Level.OK, f"collection {name} matches the bundle: {held.index_type}, {held.rows} items")
