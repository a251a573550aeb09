"""Code of others that makes inputs of the user tower, called alike in serving, in evaluation and in training.

An extractor is `func(users, requests)`: columns in, `COLUMN -> float32[B, WIDTH]` out for the columns that the spec
declares. It must be pure: a row's result depends on that row alone, and on nothing outside.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import RequestColumns, UserFeatures
from models.spec import Extractor

Extract = Callable[[UserFeatures, RequestColumns], Mapping[str, NDArray[Any]]]
Watch = Callable[[str], AbstractContextManager[None]]
"""By an extractor's name: what is entered for a call and the check of what it gave, and sees how that fails."""


class ExtractorError(ValueError):
    """An extractor that fails, or gives something else than it declares; one line."""


def unwatched(_: str) -> AbstractContextManager[None]:
    """Nobody is told."""
    return nullcontext()


def extracted(
    declared: Mapping[str, Extractor],
    resolved: Mapping[str, Extract],
    users: UserFeatures,
    requests: RequestColumns,
    watch: Watch = unwatched,
) -> dict[str, NDArray[np.float32]]:
    """`NAME_COLUMN` -> float32[B, WIDTH] of all declared extractors. Raises ExtractorError with one line."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, extractor in declared.items():
        if name not in resolved:
            raise ExtractorError(f"extractor {name}: no code is given for it")
        with watch(name):
            outputs = _called(name, resolved[name], users, requests)
            found |= _checked(name, extractor, outputs, len(requests.as_of_ms))
    return found


def _called(name: str, function: Extract, users: UserFeatures, requests: RequestColumns) -> Any:
    try:
        return function(users, requests)
    except Exception as error:  # whatever a foreign function raises
        line = f"extractor {name}: {type(error).__name__}: {error}"
        raise ExtractorError(" ".join(line.split())) from error


def _checked(name: str, extractor: Extractor, outputs: Any, rows: int) -> dict[str, NDArray[np.float32]]:
    """Exactly the declared columns, each float32, of its shape, and finite."""
    if not isinstance(outputs, Mapping) or set(outputs) != set(extractor.outputs):
        given = sorted(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ExtractorError(f"extractor {name}: gives {given}, the spec declares {sorted(extractor.outputs)}")
    for column, width in extractor.outputs.items():
        values = outputs[column]
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (rows, width):
            is_a = f"{values.dtype}{list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
            raise ExtractorError(f"extractor {name}: {column} is {is_a}, must be float32[{rows}, {width}]")
        if not np.isfinite(values).all():
            raise ExtractorError(f"extractor {name}: {column} is not finite")
    return {f"{name}_{column}": outputs[column] for column in extractor.outputs}
