"""Vectors as real items have them: in groups of a kind. Isotropic ones are the worst that a graph can be given."""

from dataclasses import dataclass

import numpy as np

from workers.index.schema import Metric
from workers.ports import Float32, Hits


@dataclass(frozen=True)
class Clusters:
    """`items` float32[N, D] and `queries` float32[Q, D] about the same centres, one for every hundred items."""

    items: Float32
    queries: Float32

    @staticmethod
    def of(items: int, queries: int, dim: int = 64, seed: int = 0) -> "Clusters":
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((items // 100, dim))
        vectors = (rng.choice(centres, n) + 0.5 * rng.standard_normal((n, dim)) for n in (items, queries))
        return Clusters(*(each.astype(np.float32) for each in vectors))

    @property
    def ids(self) -> list[str]:
        return [f"item {n}" for n in range(len(self.items))]

    def best(self, metric: Metric, k: int) -> np.ndarray:
        """int64[Q, k]: positions of the nearest, all scores computed in 64 bits."""
        wide, rows = self.queries.astype(np.float64), self.items.astype(np.float64)
        scores = wide @ rows.T
        if metric == "COSINE":
            scores /= np.linalg.norm(rows, axis=1)[None, :]
        if metric == "L2":
            scores = 2 * scores - (rows**2).sum(axis=1)[None, :]
        return np.argsort(-scores, axis=1)[:, :k]


def recall(best: np.ndarray, hits: Hits) -> float:
    """Which part of the nearest was found."""
    found = [len({f"item {n}" for n in row} & set(got)) for row, got in zip(best.tolist(), hits.item_ids, strict=True)]
    return sum(found) / best.size
