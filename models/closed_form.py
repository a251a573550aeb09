"""Two linear towers in closed form: reduced-rank ridge regression of the next target item on the weighted history.

With X the histories, Y the target items and D = (count + 10)^-1/2, the best rank-d map from X to Y D under a ridge
penalty has as item factors the top eigenvectors v of C' A^-1 C, where A = X'X + lambda I and C = X'Y D, and as history
factors A^-1 C v (reduced-rank regression: Izenman 1975; as a recommender: Steck 2019, "Embarrassingly shallow
autoencoders", of which it is the factorised form).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from models.samples import Samples

Float32 = NDArray[np.float32]
DENSE_UP_TO = 60_000_000  # elements of X'Y: above it stays sparse
OVERSAMPLING = 32
ITERATIONS = 3
LARGEST_CONTENT = 1e15  # the sum of its squares over a hundred million items is a float32


@dataclass(frozen=True)
class Penalty:
    """Ridge penalties of history items and dense columns, and how fast old samples fade."""

    items: float = 300.0
    dense: float = 30.0
    half_weight_days: float = 200.0  # weight exp(-age / this)


def solve(
    samples: Samples, columns: NDArray[np.int64], rank: int, penalty: Penalty, seed: int
) -> tuple[Float32, Float32, Float32]:
    """History factors float32[M, rank], dense factors float32[m, rank], item factors float32[M, rank].

    `columns` int64[c] are the catalogue indices of the items that get a history factor; others' rows are zero.
    """
    items = samples.history.shape[1]
    weight = np.exp(-samples.age_days / penalty.half_weight_days)
    x, z = samples.history[:, columns], samples.dense
    root = np.sqrt(np.bincount(samples.request, weight, minlength=len(z))).astype(np.float32)
    xs, zs = sp.diags(root).astype(np.float32) @ x, z * root[:, None]
    xz = xs.T @ zs
    a = np.block([[(xs.T @ xs).toarray(), xz], [xz.T, zs.T @ zs]]).astype(np.float64)
    a[np.diag_indices(len(a))] += np.r_[np.full(len(columns), penalty.items), np.full(z.shape[1], penalty.dense)]
    factor = cho_factor(a, lower=True, overwrite_a=True, check_finite=False)

    y = sp.csr_matrix((weight.astype(np.float32), (samples.request, samples.item)), shape=(len(z), items))
    scale = ((np.bincount(samples.item, weight, minlength=items) + 10.0) ** -0.5).astype(np.float32)
    xy = x.T @ y
    top = xy.toarray() if xy.shape[0] * xy.shape[1] <= DENSE_UP_TO else xy.tocsr()
    bottom = (y.T @ z).T

    def forward(q: Float32) -> Float32:
        scaled = scale[:, None] * q
        return np.vstack([top @ scaled, bottom @ scaled])

    def backward(b: Float32) -> Float32:
        scaled: Float32 = scale[:, None] * (top.T @ b[: len(columns)] + bottom.T @ b[len(columns) :])
        return scaled

    rank_possible = min(rank, items, len(a))
    start = np.random.default_rng(seed).standard_normal((items, min(rank + OVERSAMPLING, items))).astype(np.float32)
    q = np.linalg.qr(backward(forward(start)))[0]
    for _ in range(ITERATIONS):  # subspace iteration on C' A^-1 C
        q = np.linalg.qr(backward(cho_solve(factor, forward(q), check_finite=False).astype(np.float32)))[0]
    cq = forward(q)
    b = cho_solve(factor, cq, check_finite=False)
    m = cq.T @ b
    vectors = np.linalg.eigh((m + m.T) / 2)[1][:, ::-1][:, :rank_possible]
    history = np.zeros((items, rank), dtype=np.float32)
    dense = np.zeros((z.shape[1], rank), dtype=np.float32)
    item = np.zeros((items, rank), dtype=np.float32)
    history[columns, :rank_possible] = (b @ vectors)[: len(columns)]
    dense[:, :rank_possible] = (b @ vectors)[len(columns) :]
    item[:, :rank_possible] = (q @ vectors) / scale[:, None]
    return history, dense, item


def content_ridge(design: Float32, rows: Float32, weight: Float32, penalty: float = 5.0) -> Float32:
    """float32[width, D]: weighted ridge regression of vectors `rows` float32[n, D] on content float32[n, width]."""
    largest = np.maximum(design.max(axis=0, initial=0), -design.min(axis=0, initial=0))
    huge = largest > LARGEST_CONTENT
    if huge.any():  # in a unit of its own; to others the penalty is what it was
        unit = np.where(huge, largest, 1).astype(np.float32)
        return content_ridge(design / unit, rows, weight, penalty) / unit[:, None]
    weighted = design * weight[:, None]
    gram = design.T @ weighted + penalty * np.eye(design.shape[1], dtype=np.float32)
    solved: Float32 = np.linalg.solve(gram, weighted.T @ rows).astype(np.float32)
    return solved
