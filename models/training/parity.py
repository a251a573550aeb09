"""Whether exported towers give what PyTorch gives, on real samples, whatever the batch."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models import signature
from models.fit import FitError
from models.signature import Arrays
from models.tensors import Encoding, Inputs
from models.training.members import Pair
from models.training.samples import HISTORY_VECTORS, TrainingSet

TOLERANCE = 1e-5
ROWS = 64
Float32 = NDArray[np.float32]
Run = Callable[[Inputs], Mapping[str, Float32]]
OpenOnnx = Callable[[bytes, Arrays, Arrays], Run]
"""Opens an ONNX graph with these inputs and outputs as the worker does."""


class ParityError(FitError):
    """An exported tower that is not the trained one; one line."""


def check_parity(
    pair: Pair,
    exported: tuple[bytes, bytes],
    samples: TrainingSet,
    rows: Inputs,
    encoding: Encoding,
    open_onnx: OpenOnnx,
) -> float:
    """The greatest difference between PyTorch and ONNX, and between batches of 1 and 64. Raises ParityError."""
    user, item = pair
    dim = item.dim
    onnx_user = open_onnx(exported[0], signature.user_inputs(encoding, dim), signature.user_outputs(dim))
    onnx_item = open_onnx(exported[1], signature.item_inputs(encoding), signature.item_outputs(dim))
    with torch.no_grad():
        indexed, history = (array.numpy() for array in item(_tensors(rows)))
        some = np.linspace(0, len(samples) - 1, ROWS).astype(np.int64)
        inputs = samples.batch(some)
        inputs[HISTORY_VECTORS] = np.vstack([history, np.zeros_like(history[:1])])[samples.history[some]]
        users = user(_tensors(inputs)).numpy()
    found = onnx_item(rows)
    got = {"user": onnx_user(inputs)[signature.USER_EMBEDDING], "item": found[signature.ITEM_EMBEDDING]}
    got["history"] = found[signature.HISTORY_EMBEDDING]
    wanted = {"user": users, "item": indexed, "history": history}
    alone = _one_by_one(onnx_user, inputs)[signature.USER_EMBEDDING]
    pairs = {f"{name} vectors in ONNX": (got[name], wanted[name]) for name in wanted}
    pairs["user vectors one by one"] = (alone, got["user"])
    differences = {name: float(np.abs(one - other).max()) for name, (one, other) in pairs.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ParityError(f"{name} differ by {difference:.1e}, {TOLERANCE:.0e} is allowed: the export is wrong")
    return max(differences.values())


def _one_by_one(run: Run, inputs: Inputs) -> Mapping[str, Float32]:
    rows = len(inputs[HISTORY_VECTORS])
    parts = [run({name: values[n : n + 1] for name, values in inputs.items()}) for n in range(rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}
