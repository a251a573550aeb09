"""Trained towers as files: ONNX for a bundle, TorchScript, and archives for TorchServe.

Every format has inputs and outputs by the names of `models/signature.py` and any batch. ONNX is compared with PyTorch
before it is handed out.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import signature
from models.graphs import IR_VERSION
from models.signature import Array, Arrays
from models.tensors import Encoding
from models.training.towers import ItemTower, UserTower

OPSET = 18  # the lowest that torch.onnx writes
EXAMPLE_ROWS = 3


class Named(nn.Module):
    """A tower that takes its inputs one by one, in the signature's order, and gives its outputs likewise."""

    def __init__(self, tower: nn.Module, inputs: Arrays) -> None:
        super().__init__()
        self._tower = tower
        self._names = list(inputs)

    def forward(self, *values: Tensor) -> Any:
        """The tower's outputs."""
        return self._tower(dict(zip(self._names, values, strict=True)))


def user_tower_onnx(tower: UserTower, encoding: Encoding, dim: int) -> bytes:
    """The user tower's ONNX bytes."""
    return _onnx(tower, signature.user_inputs(encoding, dim), signature.user_outputs(dim))


def item_tower_onnx(tower: ItemTower, encoding: Encoding, dim: int) -> bytes:
    """The item tower's ONNX bytes."""
    return _onnx(tower, signature.item_inputs(encoding), signature.item_outputs(dim))


def _onnx(tower: nn.Module, inputs: Arrays, outputs: Arrays) -> bytes:
    examples = tuple(torch.from_numpy(values) for values in example(inputs).values())
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.onnx.export(
        Named(tower, inputs).eval(),
        examples,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=(tuple({0: batch} for _ in examples),),
        verbose=False,
    )
    assert program is not None  # noqa: S101  # for the types: it is None only where a file is named
    return _plain(program.model_proto, inputs, outputs)


def _plain(model: Any, inputs: Arrays, outputs: Arrays) -> bytes:
    """The same graph without traces of where it was made: equal weights give equal bytes."""
    model.ir_version = IR_VERSION
    model.producer_name = model.producer_version = model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for side, arrays in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for value, (name, array) in zip(side, arrays.items(), strict=True):
            kind = onnx.TensorProto.FLOAT if array.type == "float32" else onnx.TensorProto.INT64
            value.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, ["batch", *array.shape]))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def example(inputs: Arrays, rows: int = EXAMPLE_ROWS, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of the right types and shapes that no field's codes exceed."""
    rng = np.random.default_rng(seed)
    return {name: _values(array, rows, rng) for name, array in inputs.items()}


def _values(array: Array, rows: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (rows, *array.shape)
    return rng.random(shape, dtype=np.float32) if array.type == "float32" else np.ones(shape, dtype=np.int64)
