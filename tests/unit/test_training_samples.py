"""Training samples are what the live system would have given the user tower, byte for byte."""

import random

import numpy as np
import pytest
from msgspec import structs

from models import tensors
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.evaluation.timeline import Timeline
from models.samples import Requests
from models.spec import Spec, builtin_spec, load_spec
from models.tensors import Encoding
from models.training.samples import HISTORY_VECTORS, TrainingSet, training_set
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


def made(spec: Spec | None = None, *, lesser: bool = False) -> tuple[Timeline, TrainingSet]:
    dataset = generate(100, 30, 1500)
    spec = spec or load_spec(builtin_spec(dataset.spec))
    catalogue = dataset.catalogue()
    words = tensors.build_vocabularies(dataset.log, catalogue.item_ids, catalogue.attributes, spec)
    encoding = Encoding(spec, words)
    samples = training_set(dataset.log, catalogue, encoding, lesser=lesser)
    return Timeline(dataset.log, catalogue, encoding), samples


def test_positives_of_requests() -> None:
    _, samples = made()
    rows = np.array([3, 10, 11])
    place, which = samples.positives(rows)
    for n, row in enumerate(rows):
        np.testing.assert_array_equal(which[place == n], np.flatnonzero(samples.request == row))


def test_lesser_events_are_positives_that_say_what_they_are() -> None:
    timeline, targets = made()
    _, every = made(lesser=True)
    assert targets.target.all()
    assert len(every.item) == timeline.counts.sum() > every.target.sum() == len(targets.item)
    chosen = every.request[every.target]
    keys = np.stack([every.user, every.as_of_ms])[:, chosen]
    wanted = np.stack([targets.user, targets.as_of_ms])[:, targets.request]
    assert set(zip(*keys.tolist(), every.item[every.target].tolist(), strict=True)) == set(
        zip(*wanted.tolist(), targets.item.tolist(), strict=True)
    )


@pytest.mark.parametrize("window_ms", [0, 3_600_000])
def test_a_sample_knows_what_its_user_had_seen(window_ms: int) -> None:
    spec = load_spec(builtin_spec("movielens"))
    spec = structs.replace(spec, seen=structs.replace(spec.seen, window_ms=window_ms))
    timeline, samples = made(spec)
    rows = np.arange(0, len(samples), 3)
    row, item = samples.seen.before(rows)
    requests = Requests(samples.user[rows], samples.as_of_ms[rows], [None] * len(rows))
    for n, wanted in enumerate(timeline.seen(requests)):
        assert set(item[row == n].tolist()) == set(wanted.tolist())
