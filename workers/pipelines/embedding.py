"""A tower asked for a whole batch: rows that it refuses are found by halving, and have no vector."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.errors import DependencyUnavailable, RowRefused
from workers.ports import Float32, Tower

DEPENDENCY = "tower"
AT_ONCE = 64  # rows


async def embed_in_parts(
    tower: Tower, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], dim: int
) -> dict[str, Float32]:
    """`embed` where nobody waits for the whole: 64 rows after the other, each with the tower's deadline to itself."""
    rows = len(next(iter(inputs.values())))
    parts = [
        await embed(tower, {name: array[n : n + AT_ONCE] for name, array in inputs.items()}, names, dim)
        for n in range(0, rows, AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


async def embed(tower: Tower, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], dim: int) -> dict[str, Float32]:
    """float32[B, dim] of each name; NaN in rows that the tower refuses by themselves. B is at least 1.

    Raises DependencyError when it fails, and when its vectors have another shape.
    """
    rows = len(next(iter(inputs.values())))
    try:
        outputs = await tower.embed(inputs)
    except RowRefused:
        if rows == 1:
            return {name: np.full((1, dim), np.nan, dtype=np.float32) for name in names}
        halves = [
            await embed(tower, {name: array[part] for name, array in inputs.items()}, names, dim)
            for part in (slice(0, rows // 2), slice(rows // 2, rows))
        ]
        return {name: np.concatenate([half[name] for half in halves]) for name in names}
    for name in names:
        shape = outputs[name].shape if name in outputs else None
        if shape != (rows, dim):
            raise DependencyUnavailable(DEPENDENCY, f"{name} is of shape {shape}, the view needs ({rows}, {dim})")
    return outputs
