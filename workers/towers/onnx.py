"""A tower in ONNX Runtime, in this process: one thread of its own, so that the event loop never waits for it."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models import probes, signature, verify
from models.bundle import Bundle
from models.signature import Arrays
from models.verify import Declared, Side, Unfit
from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.ports import Float32
from workers.settings import Settings

DEPENDENCY = "tower"
MAX_ROWS = 4096  # of one run; larger batches are split, which bounds the memory
OTHER_FILES = "session.model_external_initializers_file_folder_path"
TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def open_tower(bundle: Bundle, side: Side, timeout_ms: int) -> "OnnxTower":
    """One of a bundle's towers, tried on a few rows.

    Raises ConfigurationError when its names, types or shapes are not the bundle's, when it does not run or gives no
    finite vectors, and when these depend on the batch.
    """
    encoding, dim = bundle.encoding, bundle.dim
    if side == "user":
        path, inputs, outputs = bundle.user_tower, signature.user_inputs(encoding, dim), signature.user_outputs(dim)
    else:
        path, inputs, outputs = bundle.item_tower, signature.item_inputs(encoding), signature.item_outputs(dim)
    tower = OnnxTower(path, inputs, outputs, timeout_ms)
    try:
        verify.check_start(tower.run, verify.start_inputs(side, encoding, dim), outputs)
    except Unfit as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return tower


async def open_here(bundle: Bundle, side: Side, settings: Settings) -> "OnnxTower":
    """The tower of a worker that runs it itself; opened on the loop, so that the watchdog sees one that hangs in it."""
    return open_tower(bundle, side, settings.tower_timeout_ms)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A model of one thread, its weights all in this file. Raises Unfit."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(OTHER_FILES, str(path / "nowhere"))  # what no checksum of a bundle covers
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise Unfit(f"cannot be opened: {error.strerror}") from error
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise Unfit(f"cannot be opened: {' '.join(str(error).split())}") from error


def declared(nodes: list[Any]) -> dict[str, Declared]:
    """What a session says of its inputs, or of its outputs."""
    return {node.name: Declared(TYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes}


class OnnxTower:
    """Tower on an ONNX file. Outputs may hold NaN where inputs do; rows are the caller's to judge.

    One whose outputs are not finite for anybody has failed.
    """

    def __init__(self, path: Path, inputs: Arrays, outputs: Arrays, timeout_ms: int) -> None:
        """Open and verify the model. Raises ConfigurationError when names, types or shapes are not the bundle's."""
        try:
            self._session = open_session(path)
            verify.check_declared("input", declared(self._session.get_inputs()), inputs)
            verify.check_declared("output", declared(self._session.get_outputs()), outputs)
        except Unfit as error:
            raise ConfigurationError(f"{path}: {error}") from error
        self._inputs = list(inputs)
        self._nothing = probes.nothing(inputs)
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
