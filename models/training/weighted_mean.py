"""History encoder: a weighted mean, with weights learned by place, kind of event and age, and a network on top."""

import torch
from torch import Tensor, nn


class WeightedMean(nn.Module):
    """Several means of the history, each with weights of its own; cheap: one product over the history."""

    def __init__(self, dim: int, width: int, length: int, codes: int, session_s: float, means: int = 4) -> None:
        """`codes` counts code 0. `means` is how many weightings there are."""
        super().__init__()
        self._session_s = session_s
        self.by_place = nn.Parameter(torch.zeros(length, means))
        self.by_code = nn.Parameter(torch.zeros(codes, means))
        self.by_age = nn.Parameter(torch.linspace(-2.0, 0.0, means))
        self.network = nn.Sequential(nn.Linear(means * dim + width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, vectors: Tensor, codes: Tensor, age_s: Tensor, request: Tensor) -> Tensor:
        """See HistoryEncoder."""
        age = torch.log1p(age_s / 60)[:, :, None] * self.by_age / 4
        score = (self.by_place + self.by_code[codes] + age).masked_fill((codes == 0)[:, :, None], -1e4)
        score = torch.cat([score, torch.zeros_like(score[:, :1])], dim=1)  # a place for "nothing"
        weight = score.softmax(1)[:, :-1]
        means = weight.transpose(1, 2) @ vectors
        out: Tensor = request + self.network(torch.cat([means.flatten(1), request], dim=1))
        return out
