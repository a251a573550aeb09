"""Step 3: the user tower's inputs of a batch. A row that an extractor fails on does not spoil the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from models import tensors
from models.columns import UserFeatures
from models.extractors import Extract, ExtractorError
from models.tensors import Encoding, Inputs
from workers.ports import Float32

log = structlog.get_logger()

Contexts = Sequence[Mapping[str, Any] | None]


def user_inputs(
    features: UserFeatures, vectors: Float32, as_of_ms: NDArray[np.int64], contexts: Contexts, encoding: Encoding
) -> tuple[Inputs, Sequence[int]]:
    """The inputs of B rows, and the rows that an extractor fails on: theirs are zeros where it should have been."""
    try:
        return tensors.user_inputs(features, vectors, as_of_ms, contexts, encoding), ()
    except ExtractorError as error:
        log.warning("extractor failed", error=str(error), rows=len(as_of_ms))
    parts, failed = [], []
    for n in range(len(as_of_ms)):
        one = slice(n, n + 1)
        row = (features.rows(one), vectors[one], as_of_ms[one], contexts[one])
        try:
            parts.append(tensors.user_inputs(*row, encoding))
        except ExtractorError:
            failed.append(n)
            parts.append(tensors.user_inputs(*row, _without_code(encoding)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, failed


def _without_code(encoding: Encoding) -> Encoding:
    """One whose extractors give zeros."""
    spec = encoding.spec
    zeros = {name: _zeros(extractor.outputs) for name, extractor in spec.extractors.items()}
    return Encoding(spec, encoding.vocabularies, zeros)


def _zeros(outputs: Mapping[str, int]) -> Extract:
    return lambda _, requests: {
        column: np.zeros((len(requests.as_of_ms), width), dtype=np.float32) for column, width in outputs.items()
    }
