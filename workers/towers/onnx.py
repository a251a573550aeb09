"""A tower in ONNX Runtime, in this process: one thread of its own, so that the event loop never waits for it."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models import signature
from models.bundle import Bundle
from models.signature import Array, Arrays
from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.ports import Float32

DEPENDENCY = "tower"
MAX_ROWS = 4096  # of one run; larger batches are split, which bounds the memory
TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def open_tower(bundle: Bundle, side: Literal["user", "item"], timeout_ms: int) -> "OnnxTower":
    """One of a bundle's towers. Raises ConfigurationError when its names, types or shapes are not the bundle's."""
    encoding, dim = bundle.encoding, bundle.dim
    if side == "user":
        inputs, outputs = signature.user_inputs(encoding, dim), signature.user_outputs(dim)
        return OnnxTower(bundle.user_tower, inputs, outputs, timeout_ms)
    return OnnxTower(bundle.item_tower, signature.item_inputs(encoding), signature.item_outputs(dim), timeout_ms)


class OnnxTower:
    """Tower on an ONNX file. Outputs may hold NaN where inputs do; rows are the caller's to judge.

    One whose outputs are not finite for anybody has failed.
    """

    def __init__(self, path: Path, inputs: Arrays, outputs: Arrays, timeout_ms: int) -> None:
        """Open and verify the model. Raises ConfigurationError when names, types or shapes are not the bundle's."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            raise ConfigurationError(f"{path} cannot be opened: {' '.join(str(error).split())}") from error
        _verify(path, "input", self._session.get_inputs(), inputs)
        _verify(path, "output", self._session.get_outputs(), outputs)
        self._inputs = list(inputs)
        self._nothing = {name: np.zeros((1, *array.shape), dtype=array.type) for name, array in inputs.items()}
        self._outputs = {name: array.shape for name, array in outputs.items()}
        self._timeout_s = timeout_ms / 1000
        self.running: object | None = None  # the run that the thread is in
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=path.stem)

    async def embed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """Run the model. Raises DependencyTimeout after its deadline.

        Raises RowRefused when it fails for these rows and not for others, else DependencyUnavailable.
        """
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._executor, self._judged, inputs), self._timeout_s)
        except TimeoutError as error:
            raise DependencyTimeout(DEPENDENCY, f"no answer in {self._timeout_s * 1000:.0f} ms") from error
        except RuntimeError as error:  # the executor's, when it was closed
            raise DependencyUnavailable(DEPENDENCY, str(error)) from error

    def _judged(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """Run it; where it fails, or gives no finite vector, see whether the rows are to blame."""
        self.running = object()
        try:
            outputs = self.run(inputs)
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            line = " ".join(str(error).split())
            if self._fit(inputs) and self._works():
                raise RowRefused(DEPENDENCY, line) from error
            raise DependencyUnavailable(DEPENDENCY, line) from error
        else:
            if not _finite(outputs) and not self._works():
                raise DependencyUnavailable(DEPENDENCY, "it gives no finite vector for anybody")
            return outputs
        finally:
            self.running = None

    def _fit(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether these are the model's inputs, whatever their rows hold."""
        return all(
            name in inputs and (inputs[name].dtype, inputs[name].shape[1:]) == (array.dtype, array.shape[1:])
            for name, array in self._nothing.items()
        )

    def _works(self) -> bool:
        """Whether it gives a finite vector for somebody of whom nothing is known."""
        try:
            return _finite(self.run(self._nothing))
        except Exception:  # noqa: BLE001  # as above
            return False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        """The same in this thread, for evaluation."""
        feed = {name: inputs[name] for name in self._inputs}
        rows = len(next(iter(feed.values())))
        if rows == 0:
            return {name: np.zeros((0, *shape), dtype=np.float32) for name, shape in self._outputs.items()}
        parts = [
            self._session.run(list(self._outputs), {k: v[start : start + MAX_ROWS] for k, v in feed.items()})
            for start in range(0, rows, MAX_ROWS)
        ]
        return {
            name: np.concatenate(arrays) for name, arrays in zip(self._outputs, zip(*parts, strict=True), strict=True)
        }

    async def ping(self) -> None:
        """Run it for somebody of whom nothing is known. Raises DependencyError when it fails."""
        await self.embed(self._nothing)

    async def close(self) -> None:
        """Let the thread end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _finite(outputs: Mapping[str, Float32]) -> bool:
    return all(bool(np.isfinite(output).all()) for output in outputs.values())


def _verify(path: Path, side: str, found: list[Any], expected: Arrays) -> None:
    actual = {node.name: Array(TYPES.get(node.type, node.type), tuple(node.shape[1:])) for node in found}
    for name in sorted(expected.keys() | actual.keys()):
        if actual.get(name) != expected.get(name):
            what = f"{side} {name!r} is {_describe(actual.get(name))}, the bundle says {_describe(expected.get(name))}"
            raise ConfigurationError(f"{path}: {what}")


def _describe(array: Array | None) -> str:
    return "missing" if array is None else f"{array.type}{['batch', *array.shape]}".replace("'", "")
