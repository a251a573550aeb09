"""Trained towers as TorchScript, for servers that run PyTorch."""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.signature import Arrays

ROWS = 3


class Named(nn.Module):
    """A tower that takes its inputs one by one, in the signature's order."""

    def __init__(self, tower: nn.Module, inputs: Arrays) -> None:
        super().__init__()
        self.tower = tower
        self._names = list(inputs)

    def forward(self, *values: Tensor) -> Any:
        """The tower's outputs."""
        return self.tower(dict(zip(self._names, values, strict=True)))


def torchscript(tower: nn.Module, inputs: Arrays) -> bytes:
    """The tower's TorchScript bytes: arguments in the signature's order, any batch."""
    example = tuple(_example(inputs).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export is to follow it; servers still read TorchScript
        traced = torch.jit.trace(Named(tower, inputs), example, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


def _example(inputs: Arrays) -> Mapping[str, Tensor]:
    kinds = {"float32": torch.float32, "int64": torch.int64}
    return {name: torch.ones((ROWS, *array.shape), dtype=kinds[array.type]) for name, array in inputs.items()}
