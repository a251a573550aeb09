"""A tower behind a model server: batches in parts under one deadline, and whether rows or the server are to blame."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import probes, verify
from models.bundle import Bundle
from models.verify import Declared, Side, Unfit
from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.ports import Float32
from workers.settings import Settings
from workers.towers import bundled
from workers.towers.server import DEPENDENCY, Model, ModelServer, NotTheBundles, Refused, asked_model, is_grpc

Connect = Callable[[Settings, Model], ModelServer]
"""One model of a server by one protocol; nothing is asked yet."""


async def open_remote(bundle: Bundle, side: Side, settings: Settings, rest: Connect, rpc: Connect) -> "RemoteTower":
    """The tower, by the protocol of its address, held to the bundle; it closes the server, as does a failure of this.

    Raises DependencyError while the server does not answer, or not yet with the model; ConfigurationError when names,
    types, shapes or vectors are not the bundle's.
    """
    model = asked_model(bundle, side, settings, bundled.arrays(bundle, side))
    server = rpc(settings, model) if is_grpc(settings) else rest(settings, model)
    tower = RemoteTower(server, model, settings)
    try:
        async with asyncio.timeout(settings.tower_timeout_ms / 1000):
            said = await server.describe()
        if said is not None:
            verify.check_declared("input", said.inputs, model.inputs)
            verify.check_declared("output", said.outputs, model.outputs)
        tower.known = await bundled.hold(tower.ask, bundle, side, settings.tower_timeout_ms)
    except (Unfit, Refused, NotTheBundles) as error:
        await tower.close()
        line = str(error).removeprefix(f"{DEPENDENCY}: ").removeprefix(f"{server.where}: ")
        raise ConfigurationError(f"tower: {server.where}: {line}") from error
    except TimeoutError as error:
        await tower.close()
        raise DependencyTimeout(DEPENDENCY, f"{server.where}: no answer in {settings.tower_timeout_ms} ms") from error
    except BaseException:
        await tower.close()
        raise
    return tower


class RemoteTower:
    """Tower on a model server.

    Outputs hold NaN where inputs do; rows are the caller's to judge. A server whose outputs are not finite for
    anybody has failed, and so has one whose vectors are no longer the bundle's: `ping` looks.
    """

    running = None  # nothing of it runs in this process

    def __init__(self, server: ModelServer, model: Model, settings: Settings) -> None:
        self.known: bundled.Known | None = None
        self._server = server
        self._inputs = model.inputs
        self._outputs = model.outputs
        self._nothing = probes.nothing(model.inputs)
        self._max_batch = settings.tower_max_batch
        self._timeout_s = settings.tower_timeout_ms / 1000
        self._foreign: str | None = None  # why its vectors are not the bundle's
        self._closed = False

    async def embed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """Ask the server for all rows within the deadline. Raises DependencyTimeout after it.

        Raises RowRefused when the server fails for these rows, again, and not for others, else DependencyUnavailable.
        Rows with NaN or infinity are asked for as zeros, as JSON has neither and not every server takes them; theirs
        is NaN.
        """
        self._check(inputs)
        if self._foreign is not None:
            raise NotTheBundles(DEPENDENCY, self._foreign)
        unfit = _not_finite(inputs)
        if unfit.any():
            inputs = {
                name: np.where(unfit.reshape(-1, *[1] * (array.ndim - 1)), 0, array) for name, array in inputs.items()
            }
        try:
            outputs = await self._judged(inputs)
        except Refused as error:  # of whatever is asked
            raise NotTheBundles(DEPENDENCY, f"{self._server.where}: {error}") from error
        if not unfit.any():
            return outputs
        return {name: np.where(unfit[:, None], np.float32(np.nan), array) for name, array in outputs.items()}

    async def ask(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """The same without a judgement. Raises Refused, NotTheBundles, DependencyUnavailable, DependencyTimeout."""
        return await self._all(inputs, asyncio.get_running_loop().time() + self._timeout_s)

    async def _judged(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """Ask; where the server refuses, or gives no finite vector, see whether the rows are to blame."""
        end_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            outputs = await self._all(inputs, end_s)
        except Refused:
            if not _finite(await self._all(self._nothing, end_s)):
                raise
            try:  # once more: it may have failed for the rows of somebody else, with which it had put these together
                return await self._all(inputs, end_s)
            except Refused as error:
                raise RowRefused(DEPENDENCY, f"{self._server.where}: {error}") from error
        if not _finite(outputs) and not _finite(await self._all(self._nothing, end_s)):
            raise DependencyUnavailable(DEPENDENCY, f"{self._server.where}: it gives no finite vector for anybody")
        return outputs

    async def _all(self, inputs: Mapping[str, NDArray[Any]], end_s: float) -> dict[str, Float32]:
        """Vectors of all rows, asked for in parts, by a time of the loop's clock."""
        rows = len(next(iter(inputs.values())))
        if rows == 0:
            return {name: np.zeros((0, *array.shape), dtype=np.float32) for name, array in self._outputs.items()}
        if rows <= self._max_batch:
            return await self._part(inputs, rows, end_s)
        parts = []
        for start in range(0, rows, self._max_batch):
            part = {name: inputs[name][start : start + self._max_batch] for name in self._inputs}
            parts.append(await self._part(part, min(self._max_batch, rows - start), end_s))
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    async def _part(self, inputs: Mapping[str, NDArray[Any]], rows: int, end_s: float) -> dict[str, Float32]:
        if self._closed:
            raise DependencyUnavailable(DEPENDENCY, "the connection is closed")
        left_s = end_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left_s):
                asked = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
                outputs = await self._server.infer(asked, max(0.001, left_s))
        except (TimeoutError, DependencyTimeout) as error:
            line = f"{self._server.where}: no answer in {self._timeout_s * 1000:.0f} ms"
            raise DependencyTimeout(DEPENDENCY, line) from error
        for name, array in self._outputs.items():
            found = outputs.get(name)
            wanted = (rows, *array.shape)
            if found is None or found.shape != wanted or found.dtype != np.float32:
                there = "missing" if found is None else Declared(str(found.dtype), found.shape)
                line = f"output {name!r} is {there}, the bundle says {Declared('float32', wanted)}"
                raise NotTheBundles(DEPENDENCY, f"{self._server.where}: {line}")
        return {name: outputs[name] for name in self._outputs}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """The server is asked nothing that is not the model's. Raises DependencyUnavailable."""
        rows = {len(column) for column in inputs.values()}
        for name, array in self._nothing.items():
            found = inputs.get(name)
            if found is None or (found.dtype, found.shape[1:]) != (array.dtype, array.shape[1:]) or len(rows) != 1:
                there = "missing" if found is None else Declared(str(found.dtype), found.shape)
                wanted = Declared(str(array.dtype), (None, *array.shape[1:]))
                raise DependencyUnavailable(DEPENDENCY, f"input {name!r} is {there}, the model takes {wanted}")

    async def ping(self) -> None:
        """See that it is ready, and still the bundle's tower: until it is again, nothing is asked of it otherwise.

        Raises DependencyError.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._server.ready()
        except (TimeoutError, DependencyTimeout) as error:
            line = f"{self._server.where}: not ready in {self._timeout_s * 1000:.0f} ms"
            raise DependencyTimeout(DEPENDENCY, line) from error
        except Refused as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self._server.where}: {error}") from error
        if self.known is None:
            return
        try:
            verify.check_same(await self.ask(self.known.inputs), self.known.outputs)
        except Unfit as error:
            self._foreign = f"{self._server.where}: {error}"
            raise NotTheBundles(DEPENDENCY, self._foreign) from error
        except Refused as error:
            raise NotTheBundles(DEPENDENCY, f"{self._server.where}: {error}") from error
        self._foreign = None

    async def close(self) -> None:
        """Close connections."""
        self._closed = True
        await self._server.close()


def _not_finite(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """bool[B]: rows of which some input is NaN or infinite."""
    floats = [array for array in inputs.values() if array.dtype == np.float32]
    well = np.ones(len(next(iter(inputs.values()))), dtype=np.bool_)
    for array in floats:
        if not np.isfinite(array).all():
            well &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return ~well


def _finite(outputs: Mapping[str, Float32]) -> bool:
    return all(bool(np.isfinite(output).all()) for output in outputs.values())
