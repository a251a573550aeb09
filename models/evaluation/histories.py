"""Events as matrices of users or requests and items: what the baselines are fitted on and asked with."""

import math

import numpy as np
import scipy.sparse as sp

from models.evaluation.ranking import Asked
from models.evaluation.timeline import Timeline

FORGOTTEN = 1e-3  # a weight below this is taken for none


def interactions(training: Timeline) -> sp.csr_matrix:
    """float32[U, M]: 1 where a user met an item, by an action that the spec's history names."""
    rows = np.flatnonzero(training.counts)
    users = training.log.user[training.log.order[rows]]
    shape = (len(training.log.user_ids), len(training.catalogue))
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (users, training.item[rows])), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def decayed(asked: Asked, begin: int, end: int, decay: float) -> sp.csr_matrix:
    """float32[end - begin, M]: what each request sees, its newest event with weight 1, the one before `decay`, ...

    Of an item that was met more than once the newest counts.
    """
    timeline, longest = asked.timeline, 1 + math.floor(math.log(FORGOTTEN) / math.log(decay))
    rows, items, weights = [], [], []
    for row, request in enumerate(range(begin, end)):
        visible = np.arange(asked.begin[request], asked.end[request])
        met = timeline.item[visible[timeline.counts[visible]]][: -longest - 1 : -1]
        met = met[np.sort(np.unique(met, return_index=True)[1])]
        rows.append(np.full(len(met), row))
        items.append(met)
        weights.append(decay ** np.arange(len(met)))
    values = np.concatenate(weights).astype(np.float32)
    shape = (end - begin, len(timeline.catalogue))
    return sp.csr_matrix((values, (np.concatenate(rows), np.concatenate(items))), shape=shape)
