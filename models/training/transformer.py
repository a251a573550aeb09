"""History encoder: a causal transformer whose attention knows how much time lies between two events.

Self-attention (Vaswani et al. 2017; as a recommender: Kang and McAuley 2018, "Self-attentive sequential
recommendation") with a bias by distance and by time in place of positions (Li et al. 2020, "Time interval aware
self-attention").

Events look back on the REACH events before them, layer by layer; what is known of a request then looks back on the
events. Of the H events that a request sees it looks at the newest ones, those whose own look back stays within the H:
so an event's vector does not depend on the request, and all requests of a stretch of history share it.
"""

import torch
from torch import Tensor, nn

from models.training.encoders import Past

REACH = 12
MASKED = -1e4
MOMENT_S = 10.0  # times between events count in these: ages in float32 are no finer after some weeks


class Transformer(nn.Module):
    """`layers` - 1 layers over events, and one in which the request looks at them."""

    def __init__(
        self, dim: int, width: int, length: int, codes: int, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        """`codes` counts code 0; `width` is that of the layers, a multiple of `heads`."""
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.by_code = nn.Parameter(torch.randn(codes, width) * 0.02)
        reach = min(REACH, max(1, (length - 1) // max(1, layers)))
        self.events = nn.ModuleList(EventLayer(width, heads, reach, dropout) for _ in range(layers - 1))
        self.request = RequestLayer(width, heads, length, dropout)
        self.leave = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.farthest = length - reach * (layers - 1)

    def forward(self, past: Past, request: Tensor) -> Tensor:
        """See HistoryEncoder."""
        x = self.enter(self.drop(past.vectors)) + self.by_code[past.codes]
        nothing = past.codes == 0
        for layer in self.events:
            x = layer(x, past.ago_s, nothing)
        hidden = (past.place == 0) | (past.place > self.farthest) | nothing[:, None]
        out: Tensor = self.drop(self.leave(self.request(request, x, past, hidden)))
        return out


class TimeBias(nn.Module):
    """What attention adds for the time between two elements; continuous, so that rounding does not matter."""

    def __init__(self, heads: int, scales_s: tuple[float, ...]) -> None:
        super().__init__()
        self.scales_s = scales_s
        self.weight = nn.Parameter(torch.zeros(len(scales_s) + 1, heads, 1, 1))

    def forward(self, apart_s: Tensor, bias: Tensor) -> Tensor:
        """Add to float32[B, heads, M, L], from float32[B, M, L]."""
        bias = bias + torch.log1p(apart_s)[:, None] * (self.weight[0] / 16)
        for number, scale in enumerate(self.scales_s, 1):
            bias = bias + (apart_s.clamp(max=scale) / scale)[:, None] * self.weight[number]
        return bias


class EventLayer(nn.Module):
    """Each event looks back on the `reach` events before it and on itself; then a network of its own."""

    def __init__(self, width: int, heads: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.by_distance = nn.Parameter(torch.zeros(heads, reach + 1))
        self.by_time = nn.Parameter(torch.zeros(heads, 1, 1))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, ago_s: Tensor, nothing: Tensor) -> Tensor:
        """float32[B, L, W] from the same, with ages float32[B, L] and bool[B, L]."""
        query, key, value = (split(part, self.heads) for part in self.query_key_value(self.before(x)).chunk(3, 2))
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[:, None] - place[None, :]
        apart_s = (ago_s[:, None, :] - ago_s[:, :, None]).clamp(min=0)
        bias = (
            self.by_distance[:, distance.clamp(0, self.reach)] + torch.log1p(apart_s / MOMENT_S)[:, None] * self.by_time
        )
        unseen = (distance < 0) | (distance > self.reach) | (nothing[:, None] & (distance != 0))
        x = x + self.drop(self.join(attention(query, key, value, bias.masked_fill(unseen[:, None], MASKED))))
        out: Tensor = x + self.drop(self.network(self.between(x)))
        return out


class RequestLayer(nn.Module):
    """Each request looks at events, or at nothing; then a network."""

    def __init__(self, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.of_events, self.between = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.join = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.by_place = nn.Parameter(torch.zeros(heads, length + 1))
        self.by_time = TimeBias(heads, (30.0, 600.0, 86_400.0))
        self.by_lead = TimeBias(heads, (2.0, 30.0, 600.0, 86_400.0))  # before the newest event that is seen
        self.drop = nn.Dropout(dropout)

    def forward(self, request: Tensor, events: Tensor, past: Past, hidden: Tensor) -> Tensor:
        """float32[B, K, W] from requests float32[B, K, W] and events float32[B, L, W]; hidden bool[B, K, L]."""
        query = split(self.query(self.before(request)), self.heads)
        key, value = (split(part, self.heads) for part in self.key_value(self.of_events(events)).chunk(2, 2))
        bias = self.by_time(past.age_s, self.by_place[:, past.place].transpose(0, 1))
        newest = past.age_s.masked_fill(past.place != 1, 0).sum(2, keepdim=True)
        bias = self.by_lead((past.age_s - newest).clamp(min=0), bias).masked_fill(hidden[:, None], MASKED)
        nothing = torch.zeros_like(key[:, :, :1])
        key, value = torch.cat([nothing, key], dim=2), torch.cat([nothing, value], dim=2)
        bias = torch.cat([torch.zeros_like(bias[..., :1]), bias], dim=3)
        x = request + self.drop(self.join(attention(query, key, value, bias)))
        out: Tensor = x + self.drop(self.network(self.between(x)))
        return out


def split(x: Tensor, heads: int) -> Tensor:
    """float32[B, heads, M, W / heads] from float32[B, M, W]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """float32[B, M, W] from heads of M queries and L keys and values, with bias float32[B, heads, M, L]."""
    score = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias
    return (score.softmax(3) @ value).transpose(1, 2).flatten(2)
