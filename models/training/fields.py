"""Facts of a user, a request or an item as one vector: a weight for each value, summed, as in `models/graphs.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.samples import units
from models.signature import width
from models.spec import Field
from models.tensors import Encoding

Tensors = Mapping[str, Tensor]


class FieldSum(nn.Module):
    """float32[B, D] = bias + one term per field: the row of a category or bucket, or values times weights."""

    def __init__(self, fields: Mapping[str, Field], encoding: Encoding, dim: int, *, share: bool) -> None:
        """`fields`: `section.name` -> field. `share`: the values of a multi field divide one weight among them."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))
        widths = {name: width(field, name, encoding.vocabularies) for name, field in fields.items()}
        self._kinds = {name.replace(".", "_", 1): field.kind for name, field in fields.items() if widths[name]}
        self.weights = nn.ParameterDict(
            {name.replace(".", "_", 1): nn.Parameter(torch.zeros(size, dim)) for name, size in widths.items() if size}
        )
        self.share = share
        sizes = {name.replace(".", "_", 1): size for name, size in widths.items()}
        numbers = [name for name, kind in self._kinds.items() if kind in {"number", "vector"}]
        ends = np.cumsum([sizes[name] for name in numbers]).tolist()
        self._place = {name: slice(end - sizes[name], end) for name, end in zip(numbers, ends, strict=True)}
        columns = ends[-1] if ends else 0
        self.register_buffer("scale", torch.ones(columns))  # what numbers are divided by: their unit is anybody's

    def set_scales(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Divide numbers, and each number of a vector, by their root mean square in these inputs."""
        for name, place in self._place.items():
            self.scale[place] = torch.from_numpy(units(inputs[name].reshape(len(inputs[name]), -1)))

    def scale_of(self, name: str) -> Tensor:
        """What the values of a field are divided by: float32[width] for numbers and vectors, float32[1] for others."""
        scale: Tensor = self.scale[self._place[name]] if name in self._place else torch.ones(1)
        return scale

    def forward(self, inputs: Tensors, like: Tensor) -> Tensor:
        """`like` float32[B, ...] is any array with the batch's length."""
        total = torch.zeros_like(like[:, :1]) + self.bias
        for name, kind in self._kinds.items():
            weight, values = self.weights[name], inputs[name]
            if kind in {"category", "bucket"}:
                total = total + weight[values]
            elif kind == "number":
                total = total + (values / self.scale[self._place[name]])[:, None] * weight
            elif kind == "vector":
                total = total + (values / self.scale[self._place[name]]) @ weight
            else:
                if self.share:
                    values = values / values.sum(1, keepdim=True).clamp(min=1)
                total = total + values @ weight
        return total


def fields_of(section: str, fields: Mapping[str, Field]) -> dict[str, Field]:
    """`section.name` -> field."""
    return {f"{section}.{name}": field for name, field in fields.items()}
