"""The two towers in PyTorch. They start as the closed form and its linear path stays beside the network.

Vectors are cosines times the root of a learned temperature, so that their inner product is the softmax' logit and the
metric stays IP. An item is a row of its own plus its content; an item that the fit has not seen is its content alone,
shortened, so that it loses to an equally similar known one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.graphs import EPSILON
from models.samples import user_fields
from models.tensors import Encoding
from models.training.fields import FieldSum, Tensors, fields_of
from models.training.transformer import Transformer
from models.training.weighted_mean import WeightedMean

Encoder = Literal["transformer", "mean"]


@dataclass(frozen=True)
class Architecture:
    """What the towers are made of."""

    dim: int = 64
    encoder: Encoder = "transformer"
    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1


class ItemTower(nn.Module):
    """`item_embedding` and `history_embedding` of items, float32[N, D] each."""

    def __init__(self, encoding: Encoding, items: int, shape: Architecture, content_scale: float) -> None:
        """`items` is the number of items of the fit; `known` says which have a row of their own."""
        super().__init__()
        fields = fields_of("item", encoding.spec.item)
        self.indexed = nn.Parameter(torch.zeros(items + 1, shape.dim))
        self.history = nn.Parameter(torch.zeros(items + 1, shape.dim))
        self.indexed_content = FieldSum(fields, encoding, shape.dim, share=True)
        self.history_content = FieldSum(fields, encoding, shape.dim, share=True)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("target", torch.zeros(items + 1, dtype=torch.float32))  # 1 = it has a row of its own
        self.register_buffer("seen", torch.zeros(items + 1, dtype=torch.float32))
        self._content_scale = content_scale

    def forward(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """Both vectors, from the item tower's inputs."""
        code = inputs["item_code"]
        target, seen = self.target[code][:, None], self.seen[code][:, None]
        indexed = self.indexed[code] * target
        indexed = unit(indexed + self.indexed_content(inputs, indexed)) * torch.exp(self.log_temperature / 2)
        history = self.history[code] * seen
        history = history + self.history_content(inputs, history)
        return indexed * (target + (1 - target) * self._content_scale), history


class UserTower(nn.Module):
    """`user_embedding` float32[B, D]: linear path plus history encoder, scaled to one length."""

    def __init__(self, encoding: Encoding, shape: Architecture) -> None:
        super().__init__()
        spec = encoding.spec
        self._session_s = spec.history.session_ms / 1000
        length, codes = spec.history.length, len(spec.history.codes) + 1
        fields = user_fields(encoding)
        self.code_weight = nn.Parameter(torch.zeros(codes))
        self.position_weight = nn.Parameter(torch.zeros(length))
        self.older_weight = nn.Parameter(torch.tensor(0.5))
        self.linear = FieldSum(fields, encoding, shape.dim, share=False)
        self.aggregates = nn.Parameter(torch.zeros(6, shape.dim))
        self.request = FieldSum(fields, encoding, shape.width, share=False)
        self.request_network = nn.Sequential(
            nn.Linear(6 + shape.width + shape.dim, 2 * shape.width), nn.GELU(), nn.Linear(2 * shape.width, shape.width)
        )
        common: dict[str, Any] = {"dim": shape.dim, "width": shape.width, "length": length, "codes": codes}
        if shape.encoder == "transformer":
            self.encoder: nn.Module = Transformer(
                **common, session_s=self._session_s, layers=shape.layers, heads=shape.heads, dropout=shape.dropout
            )
        else:
            self.encoder = WeightedMean(**common, session_s=self._session_s)
        self.leave = nn.Linear(shape.width, shape.dim)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("vector_scale", torch.ones(()))  # of what networks see: history vectors and their sum
        self.register_buffer("pooled_scale", torch.ones(()))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, inputs: Tensors) -> Tensor:
        """From the user tower's inputs."""
        vectors, codes, age_s = inputs["history_vectors"], inputs["history_codes"], inputs["history_age_s"]
        known = self.aggregate(inputs)
        recent = torch.where(age_s < self._session_s, torch.ones_like(age_s), self.older_weight)
        weight = self.code_weight[codes] * self.position_weight * recent
        pooled = (weight[:, None] @ vectors)[:, 0]
        linear = pooled + known @ self.aggregates + self.linear(inputs, known)
        facts = torch.cat([known, self.request(inputs, known), pooled * self.pooled_scale], dim=1)
        encoded = self.encoder(vectors * self.vector_scale, codes, age_s, self.request_network(facts))
        return unit(linear + self.leave(encoded)) * torch.exp(self.log_temperature / 2)

    def aggregate(self, inputs: Tensors) -> Tensor:
        """float32[B, 6] as `samples.dense_columns` has them: 1/(1+n), n == 0, log1p(n)/5, log1p(gap)/10, two flags."""
        count, gap = inputs["event_count"], inputs["gap_s"]
        columns = [
            1 / (1 + count),
            (count == 0).float(),
            torch.log(1 + count) / 5,
            torch.log(1 + gap) / 10,
            (gap > self._session_s).float(),
            (gap > 60).float(),
        ]
        return torch.stack(columns, dim=1)


def unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    scaled: Tensor = rows / (torch.sqrt((rows * rows).sum(1, keepdim=True) + 1e-20) + EPSILON)
    return scaled
