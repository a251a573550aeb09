"""Training samples are what the live system would have given the user tower, byte for byte."""

import random

import numpy as np
import pytest

from models import tensors
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding
from models.training.samples import HISTORY_VECTORS, training_set
from schemas.records import UserRecord
from workers.merge import merge


def _record_before(dataset: Dataset, user: int, limit_ms: int, step_ms: int) -> bytes | None:
    """The record as it stood strictly before a request's step."""
    earlier = np.flatnonzero((dataset.user == user) & (dataset.timestamp_ms // step_ms < limit_ms // step_ms))
    events = [each for each in dataset.profile_activities() if each.user_id == dataset.user_ids[user]]
    events += dataset.activities(earlier.tolist())
    return merge(UserRecord(), events, frozenset()).record.encode() if events else None


@pytest.mark.parametrize("dataset", [generate(200, 40, 2500), generate_marketplace(150, 40, 700)], ids=lambda d: d.name)
def test_a_sample_is_what_serving_reads_from_the_merged_record(dataset: Dataset) -> None:
    rng = random.Random(3)
    spec = load_spec(builtin_spec(dataset.spec))
    catalogue = dataset.catalogue()
    words = tensors.build_vocabularies(dataset.log, catalogue.item_ids, catalogue.attributes, spec)
    encoding = Encoding(spec, words)
    samples = training_set(dataset.log, catalogue, encoding)
    rows = np.array(sorted(rng.sample(range(len(samples)), 120)))
    as_of_ms, step_ms = samples.as_of_ms[rows], spec.history.time_resolution_ms
    stored = [
        _record_before(dataset, user, limit_ms, step_ms)
        for user, limit_ms in zip(samples.user[rows].tolist(), as_of_ms.tolist(), strict=True)
    ]
    read = tensors.user_features(stored, as_of_ms, encoding)
    contexts = _contexts(dataset, samples.user[rows], as_of_ms)
    vectors = np.zeros((len(rows), spec.history.length, 1), dtype=np.float32)
    served = tensors.user_inputs(read, vectors, as_of_ms, contexts, encoding)
    del served[HISTORY_VECTORS]
    found = samples.batch(rows)
    assert found.keys() == served.keys()
    for name, values in served.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name
    np.testing.assert_array_equal(samples.history[rows], catalogue.index_of(read.item_hashes))


def _contexts(dataset: Dataset, users: np.ndarray, as_of_ms: np.ndarray) -> list:
    """The context of the event that each request was made of."""
    if not dataset.contexts:
        return [None] * len(users)
    at = {(int(u), int(t)): row for row, (u, t) in enumerate(zip(dataset.user, dataset.timestamp_ms, strict=True))}
    return [dataset.contexts[at[user, time]] for user, time in zip(users.tolist(), as_of_ms.tolist(), strict=True)]


def test_positives_of_requests() -> None:
    dataset = generate(100, 30, 1500)
    spec = load_spec(builtin_spec(dataset.spec))
    catalogue = dataset.catalogue()
    words = tensors.build_vocabularies(dataset.log, catalogue.item_ids, catalogue.attributes, spec)
    samples = training_set(dataset.log, catalogue, Encoding(spec, words))
    rows = np.array([3, 10, 11])
    place, item = samples.positives(rows)
    for n, row in enumerate(rows):
        wanted = samples.item[samples.request == row]
        np.testing.assert_array_equal(item[place == n], wanted)
