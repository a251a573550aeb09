"""Several pairs of towers as one: vectors side by side, so that the inner product is the sum of the pairs' logits.

Each is trained from a seed of its own; their mistakes differ, and what they agree on is right more often (Hansen and
Salamon 1990, "Neural network ensembles").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.training.fields import Tensors
from models.training.samples import HISTORY_VECTORS
from models.training.towers import ItemTower, UserTower


class UserMembers(nn.Module):
    """`user_embedding` float32[B, D] of all members, D / members each."""

    def __init__(self, towers: Sequence[UserTower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, inputs: Tensors) -> Tensor:
        """From the user tower's inputs; each member is given its own part of the history vectors."""
        parts = inputs[HISTORY_VECTORS].chunk(len(self.towers), dim=2)
        vectors = [tower({**inputs, HISTORY_VECTORS: part}) for tower, part in zip(self.towers, parts, strict=True)]
        return torch.cat(vectors, dim=1)


class ItemMembers(nn.Module):
    """`item_embedding` and `history_embedding` of all members, float32[N, D] each."""

    def __init__(self, towers: Sequence[ItemTower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    @property
    def dim(self) -> int:
        """D."""
        return sum(int(tower.indexed.shape[1]) for tower in self.towers if isinstance(tower, ItemTower))

    def forward(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """Both vectors, from the item tower's inputs."""
        indexed, history = zip(*(tower(inputs) for tower in self.towers), strict=True)
        return torch.cat(indexed, dim=1), torch.cat(history, dim=1)


Pair = tuple[UserMembers, ItemMembers]
