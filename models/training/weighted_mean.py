"""History encoder: weighted means, with weights learned by place, kind of event and age, and a network on top."""

import torch
from torch import Tensor, nn

from models.training.encoders import Past

MASKED = -1e4


class WeightedMean(nn.Module):
    """Several means of the history, each with weights of its own; cheap: one product over the history."""

    def __init__(self, dim: int, width: int, length: int, codes: int, means: int = 4) -> None:
        """`codes` counts code 0. `means` is how many weightings there are."""
        super().__init__()
        self.dim = dim
        self.by_place = nn.Parameter(torch.zeros(means, length + 1))
        self.by_code = nn.Parameter(torch.zeros(means, codes))
        self.by_age = nn.Parameter(torch.linspace(-2.0, 0.0, means)[:, None, None] / 4)
        self.nothing = nn.Parameter(torch.zeros(means, 1, 1))
        self.network = nn.Sequential(nn.Linear(means * dim + width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, past: Past, request: Tensor) -> Tensor:
        """See HistoryEncoder."""
        hidden = (past.place == 0) | (past.codes == 0)[:, None]
        age = torch.log1p(past.age_s / 60)[:, None] * self.by_age
        by_code = self.by_code[:, past.codes].transpose(0, 1)[:, :, None]
        score = self.by_place[:, past.place].transpose(0, 1) + by_code + age
        score = score.masked_fill(hidden[:, None], MASKED)
        nothing = self.nothing.expand(score.shape[0], -1, score.shape[2], 1)
        weight = torch.cat([score, nothing], dim=3).softmax(3)[..., :-1]  # float32[B, means, K, L]
        means = (weight @ past.vectors[:, None]).transpose(1, 2).flatten(2)
        out: Tensor = request + self.network(torch.cat([means, request], dim=2))
        return out
