"""What a sample of training is, wherever its events come from: which events are positives, and the inputs of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import UserFeatures
from models.spec import Spec
from models.tensors import Encoding, Inputs, user_inputs
from schemas.records import hash64


def target_events(actions: NDArray[np.uint64], values: NDArray[np.float32], spec: Spec) -> NDArray[np.bool_]:
    """bool[N]: the events that are what a good recommendation leads to. `actions` are hashes, a value may be NaN."""
    target = spec.target
    rows: NDArray[np.bool_] = actions == np.uint64(hash64(target.action))
    return rows if target.at_least is None else np.logical_and(rows, values >= np.float32(target.at_least))


def sample_inputs(
    features: UserFeatures,
    as_of_ms: NDArray[np.int64],
    contexts: Sequence[Mapping[str, Any] | None],
    encoding: Encoding,
) -> Inputs:
    """The user tower's inputs but `history_vectors`, from what was visible of B users at the times int64[B].

    Vectors of a history belong to an item tower; a sample says in `UserFeatures.item_hashes` whose they are.
    """
    none = np.zeros((len(as_of_ms), encoding.spec.history.length, 0), dtype=np.float32)
    inputs = user_inputs(features, none, as_of_ms, contexts, encoding)
    del inputs["history_vectors"]
    return inputs
