"""Inputs made from a spec and a seed, to try towers on that have no data at hand.

The first row is somebody, or something, of whom nothing is known; the second has the last code of every category; the
others are drawn. `numbers` says whether fields of kind number are drawn too (positive, over some orders of magnitude):
a tower may refuse numbers that nobody sends, and other fields only hold what the vocabularies have.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.signature import Arrays
from models.spec import Field
from models.tensors import Encoding, Inputs

YEARS_10_S = 315_360_000.0
MINUTE_S = 60.0


def nothing(inputs: Arrays, rows: int = 1) -> Inputs:
    """Zeros: what is known of nobody."""
    return {name: np.zeros((rows, *array.shape), dtype=array.type) for name, array in inputs.items()}


def items(encoding: Encoding, rows: int, *, numbers: bool, seed: int = 0) -> Inputs:
    """N items: of the vocabulary, each once while there are enough, else ones that it does not have."""
    rng = np.random.default_rng(seed)
    known = len(encoding.vocabularies.item_ids)
    codes = np.zeros(rows, dtype=np.int64)
    drawn = [known, *rng.permutation(max(0, known - 1)) + 1][: rows - 1]
    codes[1 : 1 + len(drawn)] = drawn
    return {"item_code": codes} | _fields("item", encoding.spec.item, encoding, rows, rng, numbers=numbers)


def different(inputs: Inputs) -> Inputs:
    """The rows that no earlier one is equal to."""
    columns = [column.reshape(len(column), -1).astype(np.float64) for column in inputs.values()]
    rows = np.sort(np.unique(np.hstack(columns), axis=0, return_index=True)[1])
    return {name: column[rows] for name, column in inputs.items()}


def users(encoding: Encoding, vectors: NDArray[np.float32], rows: int, *, numbers: bool, seed: int = 0) -> Inputs:
    """B users with histories of 1 to H events, of items whose history vectors are float32[M, D].

    The third row is an extreme: a full history of ten years ago, of a user with a million events.
    """
    rng = np.random.default_rng(seed)
    spec = encoding.spec
    length = spec.history.length
    lengths = rng.integers(1, length + 1, rows)
    lengths[:1] = 0
    lengths[2:3] = length
    there = np.arange(length) >= length - lengths[:, None]
    codes = rng.integers(0, len(spec.history.codes) + 1, (rows, length))
    codes[1:2] = len(spec.history.codes)
    ages = -np.sort(-np.exp(rng.uniform(0, np.log(1e7), (rows, length))), axis=1)
    ages[2:3] = YEARS_10_S
    counts = lengths + rng.integers(0, 50, rows) * (lengths == length)
    counts[2:3] = 1_000_000
    drawn = vectors[rng.integers(0, len(vectors), (rows, length))]
    return (
        {
            "history_vectors": np.where(there[:, :, None], drawn, 0).astype(np.float32),
            "history_codes": np.where(there, codes, 0),
            "history_age_s": np.where(there, np.round(ages), 0).astype(np.float32),
            "event_count": counts.astype(np.float32),
            "gap_s": np.where(lengths > 0, np.round(ages[:, -1]), 0).astype(np.float32),
        }
        | _fields("profile", spec.profile, encoding, rows, rng, numbers=numbers)
        | _fields("context", spec.context, encoding, rows, rng, numbers=numbers)
        | {
            name.replace(".", "_", 1): rng.standard_normal((rows, vector.size)).astype(np.float32) * np.float32(numbers)
            for name, vector in spec.vectors.items()
        }
    )


def a_minute_later(inputs: Inputs) -> Inputs:
    """The same users a minute older, without their oldest event where they have others."""
    there = inputs["history_age_s"] > 0
    oldest = (np.cumsum(there, axis=1) == 1) & there & (there.sum(axis=1) > 1)[:, None]
    left = there & ~oldest
    return inputs | {
        "history_vectors": np.where(left[:, :, None], inputs["history_vectors"], 0).astype(np.float32),
        "history_codes": np.where(left, inputs["history_codes"], 0),
        "history_age_s": np.where(left, inputs["history_age_s"] + MINUTE_S, 0).astype(np.float32),
        "gap_s": np.where(there.any(axis=1), inputs["gap_s"] + MINUTE_S, 0).astype(np.float32),
    }


def just_seen(encoding: Encoding, declared: Arrays, vectors: NDArray[np.float32]) -> Inputs:
    """M users of whom one event is known, a minute ago, of the heaviest code: each of another item."""
    inputs = nothing(declared, len(vectors))
    heaviest = max(range(len(encoding.spec.history.codes)), key=lambda n: encoding.spec.history.codes[n].weight)
    inputs["history_vectors"][:, -1] = vectors
    inputs["history_codes"][:, -1] = heaviest + 1
    inputs["history_age_s"][:, -1] = MINUTE_S
    inputs["event_count"][:] = 1
    inputs["gap_s"][:] = MINUTE_S
    return inputs


def _fields(
    section: str,
    fields: Mapping[str, Field],
    encoding: Encoding,
    rows: int,
    rng: np.random.Generator,
    *,
    numbers: bool,
) -> Inputs:
    drawn: Inputs = {}
    for name, field in fields.items():
        known = len(encoding.vocabularies.values.get(f"{section}.{name}", ()))
        if field.kind == "multi":
            column: NDArray[Any] = np.zeros((rows, known), dtype=np.float32)
            if known:
                column[np.arange(rows), rng.integers(0, known, rows)] = 1
            column[:1] = 0
        elif field.kind == "number":
            column = rng.lognormal(1.0, 2.0, rows).astype(np.float32) * np.float32(numbers)
            column[:1] = 0
            column = np.log1p(column) if field.log else column
        else:
            last = known if field.kind == "category" else len(field.edges) + 1
            column = rng.integers(0, last + 1, rows)
            column[:1] = 0
            column[1:2] = last
        drawn[f"{section}_{name}"] = column
    return drawn
