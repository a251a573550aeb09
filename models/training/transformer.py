"""History encoder: a causal transformer whose attention knows how much time lies between two events.

Self-attention (Vaswani et al. 2017; as a recommender: Kang and McAuley 2018, "Self-attentive sequential recommendation")
with a bias by time between events in place of positions (Li et al. 2020, "Time interval aware self-attention"). What is
known of the request stands behind the newest event, as one more element; the last layer computes that element alone.
"""

import math

import torch
from torch import Tensor, nn

MINUTE_S = 60.0
MASKED = -1e4


class Transformer(nn.Module):
    """Layers of self-attention over history and request."""

    def __init__(
        self,
        dim: int,
        width: int,
        length: int,
        codes: int,
        session_s: float,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.1,
    ) -> None:
        """`codes` counts code 0; `width` is that of the layers, a multiple of `heads`."""
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.by_code = nn.Parameter(torch.randn(codes, width) * 0.02)
        self.by_place = nn.Parameter(torch.randn(length + 1, width) * 0.02)
        self.time = TimeBias(session_s, heads, length + 1, layers)
        drops = [0.0] * (layers - 1) + [dropout]  # where one element is left, it costs nothing
        self.layers = nn.ModuleList(Layer(width, heads, drop) for drop in drops)
        self.leave = nn.LayerNorm(width)

    def forward(self, vectors: Tensor, codes: Tensor, age_s: Tensor, request: Tensor) -> Tensor:
        """See HistoryEncoder."""
        x = torch.cat([self.enter(vectors) + self.by_code[codes], request[:, None]], dim=1) + self.by_place
        now = torch.zeros_like(age_s[:, :1])
        ages = torch.cat([age_s, now], dim=1)
        hidden = torch.cat([codes == 0, now > 0], dim=1)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            rows = ages.shape[1] if number < last else 1
            x = layer(x, self.time(ages, hidden, rows, number))
        out: Tensor = self.leave(x[:, -1])
        return out


class TimeBias(nn.Module):
    """What attention adds for the time between two elements and for their distance in places; continuous in time.

    Causal: an element sees itself and earlier ones, and none that is hidden but itself.
    """

    def __init__(self, session_s: float, heads: int, length: int, layers: int) -> None:
        super().__init__()
        self._scales_s = (MINUTE_S, session_s)
        self.by_time = nn.Parameter(torch.zeros(layers, len(self._scales_s) + 1, heads, 1, 1))
        self.by_distance = nn.Parameter(torch.zeros(layers, heads, 2 * length - 1))
        place = torch.arange(length)
        self.register_buffer("distance", place[:, None] - place[None, :] + length - 1, persistent=False)
        self.register_buffer("later", place[:, None] < place[None, :], persistent=False)
        self.register_buffer("itself", place[:, None] == place[None, :], persistent=False)

    def forward(self, ages_s: Tensor, hidden: Tensor, rows: int, layer: int) -> Tensor:
        """float32[B, heads, rows, L] for the last `rows` elements, ages float32[B, L], hidden bool[B, L]."""
        apart = (ages_s[:, None, :] - ages_s[:, -rows:, None]).clamp(min=0)
        known = [torch.log1p(apart) * (1 / 16), *(apart.clamp(max=scale) * (1 / scale) for scale in self._scales_s)]
        bias = self.by_distance[layer][:, self.distance[-rows:]]
        for feature, weight in zip(known, self.by_time[layer].unbind(0), strict=True):
            bias = bias + feature[:, None] * weight
        unseen = (hidden[:, None, :] & ~self.itself[-rows:]) | self.later[-rows:]
        return bias.masked_fill(unseen[:, None], MASKED)


class Layer(nn.Module):
    """Attention and a network, each with normalisation before and a skip around it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.join = nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """float32[B, rows, W] for the last rows of x float32[B, L, W], with bias float32[B, heads, rows, L]."""
        rows = bias.shape[2]
        normal = self.before_attention(x)
        query = self._split(self.query(normal[:, -rows:]))
        key, value = self.key_value(normal).chunk(2, dim=-1)
        score = query @ self._split(key).transpose(2, 3) * (1 / math.sqrt(query.shape[-1])) + bias
        mixed = (score.softmax(-1) @ self._split(value)).transpose(1, 2).flatten(2)
        x = x[:, -rows:] + self.drop(self.join(mixed))
        out: Tensor = x + self.drop(self.network(self.before_network(x)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self._heads, -1)).transpose(1, 2)
