"""The two towers in PyTorch. They start as the closed form and its linear path stays beside the network.

Vectors are cosines times the root of a learned temperature, so that their inner product is the softmax' logit and the
metric stays IP. An item is a row of its own plus its content; an item that the fit has not seen is its content alone,
shortened, so that it loses to an equally similar known one.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.graphs import EPSILON
from models.samples import user_fields
from models.tensors import Encoding
from models.training.encoders import Past
from models.training.fields import FieldSum, Tensors, fields_of
from models.training.transformer import Transformer
from models.training.weighted_mean import WeightedMean

Encoder = Literal["transformer", "mean"]


@dataclass(frozen=True)
class Architecture:
    """What the towers are made of."""

    dim: int = 64  # of all members together
    members: int = 1  # pairs of towers, each of dim / members
    encoder: Encoder = "transformer"
    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2

    def of_member(self) -> "Architecture":
        """That of one member."""
        return replace(self, dim=self.dim // self.members, members=1)


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
        self.content_scale = content_scale

    def forward(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """Both vectors, from the item tower's inputs."""
        code = inputs["item_code"]
        target, seen = self.target[code][:, None], self.seen[code][:, None]
        indexed = self.indexed[code] * target
        indexed = unit(indexed + self.indexed_content(inputs, indexed)) * torch.exp(self.log_temperature / 2)
        history = self.history[code] * seen
        history = history + self.history_content(inputs, history)
        return indexed * (target + (1 - target) * self.content_scale), history


class UserTower(nn.Module):
    """`user_embedding` float32[B, D]: linear path plus history encoder, scaled to one length."""

    def __init__(self, encoding: Encoding, shape: Architecture) -> None:
        super().__init__()
        spec = encoding.spec
        self._session_s = spec.history.session_ms / 1000
        self._length = spec.history.length
        codes, width = len(spec.history.codes) + 1, shape.width
        fields = user_fields(encoding)
        self.code_weight = nn.Parameter(torch.zeros(codes))
        self.place_weight = nn.Parameter(torch.zeros(self._length + 1))  # of what a request does not see first: 0
        self.older_weight = nn.Parameter(torch.tensor(0.5))
        self.linear = FieldSum(fields, encoding, shape.dim, share=False)
        self.aggregates = nn.Parameter(torch.zeros(6, shape.dim))
        self.request = FieldSum(fields, encoding, width, share=False)
        self.request_network = nn.Sequential(
            nn.Linear(6 + width + shape.dim, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        if shape.encoder == "transformer":
            self.encoder: nn.Module = Transformer(
                shape.dim, width, self._length, codes, shape.layers, shape.heads, shape.dropout
            )
        else:
            self.encoder = WeightedMean(shape.dim, width, self._length, codes)
        self.leave = nn.Linear(width, shape.dim)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("vector_scale", torch.ones(()))  # of what networks see: history vectors and their sum
        self.register_buffer("pooled_scale", torch.ones(()))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, inputs: Tensors) -> Tensor:
        """From the user tower's inputs: one request for each history."""
        age_s = inputs["history_age_s"]
        place = torch.arange(self._length, 0, -1, device=age_s.device).expand(age_s.shape[0], 1, self._length)
        past = Past(inputs["history_vectors"], inputs["history_codes"], age_s, age_s[:, None], place)
        return self.look_back(past, inputs)

    def look_back(self, past: Past, inputs: Tensors) -> Tensor:
        """float32[B * K, D] for K requests on each of B stretches; the other inputs have B * K rows."""
        known = self.aggregate(inputs)
        recent = torch.where(past.age_s < self._session_s, 1.0, self.older_weight)
        place_weight = self.place_weight[past.place] * (past.place > 0)
        weight = self.code_weight[past.codes][:, None] * place_weight * recent
        pooled = (weight @ past.vectors).flatten(0, 1)
        linear = pooled + known @ self.aggregates + self.linear(inputs, known)
        facts = torch.cat([known, self.request(inputs, known), pooled * self.pooled_scale], dim=1)
        request = self.request_network(facts).unflatten(0, past.place.shape[:2])
        encoded = self.encoder(replace(past, vectors=past.vectors * self.vector_scale), request).flatten(0, 1)
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
