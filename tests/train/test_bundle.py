"""Training ends in a bundle that serves: its towers load as a worker's, and foretell better than popularity."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models import signature, tensors
from models.bundle import load_bundle
from models.evaluation import protocol
from models.tensors import Inputs
from models.training import parity, start
from models.training.members import ItemMembers, UserMembers
from models.training.samples import HISTORY_VECTORS, training_set
from models.training.towers import Architecture
from tests.train.conftest import Trained
from workers.errors import RecallError
from workers.exporting import export_bundle
from workers.fitting import TOWER_TIMEOUT_MS
from workers.towers.onnx import OnnxTower, open_tower
from workers.training import open_onnx


@pytest.fixture(params=["films", "offers"])
def model(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def towers(model: Trained) -> tuple[OnnxTower, OnnxTower]:
    bundle = load_bundle(model.bundle.path)
    return open_tower(bundle, "user", TOWER_TIMEOUT_MS), open_tower(bundle, "item", TOWER_TIMEOUT_MS)


def test_targets_are_foretold_better_than_by_popularity(offers: Trained) -> None:
    dataset, encoding = offers.dataset, offers.bundle.encoding
    user, item = towers(offers)

    def embed_users(inputs: Inputs) -> np.ndarray:
        return user.run(inputs)[signature.USER_EMBEDDING]

    def embed_items(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        outputs = item.run(inputs)
        return outputs[signature.ITEM_EMBEDDING], outputs[signature.HISTORY_EMBEDDING]

    asked = protocol.window(dataset.log, dataset.catalogue(), encoding, dataset.test_ms)
    pair = (embed_users, embed_items)
    ranks = protocol.exact_ranks(dataset.log, dataset.catalogue(), encoding, asked, pair, lambda _: None)
    popular = protocol.popularity_ranks(dataset.log, dataset.catalogue(), encoding, asked, dataset.test_ms)
    assert protocol.metrics(ranks)["recall_at_50"] > 1.5 * protocol.metrics(popular)["recall_at_50"]


def test_figures_say_how_it_was_made(films: Trained) -> None:
    figures = films.bundle.manifest.figures
    assert [len(each) for each in figures["losses"]] == [figures["epochs"]] * 2
    assert figures["members"] == 2
    assert figures["protocol"] == "temporal"
    assert len(figures["validations"]) == 2
    assert figures["epochs"] == 1 + int(np.argmax(figures["validations"]))
    assert figures["parity"] <= parity.TOLERANCE
    assert films.bundle.metric == "IP"


def test_an_item_nobody_has_seen_is_shorter_and_lies_near_its_like(model: Trained) -> None:
    _, item = towers(model)
    encoding, dataset = model.bundle.encoding, model.dataset
    known = int(np.argmax(np.bincount(dataset.item, minlength=len(dataset.item_ids))))
    ids = [dataset.item_ids[known], "appeared a minute ago"]
    rows = tensors.item_inputs(ids, [dataset.attributes[known]] * 2, encoding)
    vectors = item.run(rows)
    indexed, history = vectors[signature.ITEM_EMBEDDING], vectors[signature.HISTORY_EMBEDDING]
    lengths = np.linalg.norm(indexed, axis=1)
    assert lengths[1] == pytest.approx(0.7 * lengths[0], rel=1e-3)
    assert np.abs(history[1]).max() > 1e-4


def test_the_batch_changes_nothing(model: Trained) -> None:
    user, _ = towers(model)
    encoding, dataset, rng = model.bundle.encoding, model.dataset, np.random.default_rng(0)
    samples = training_set(dataset.log, dataset.catalogue(), encoding)
    inputs = samples.batch(rng.integers(0, len(samples), 64))
    shape = (64, encoding.spec.history.length, model.bundle.dim)
    inputs[HISTORY_VECTORS] = rng.standard_normal(shape).astype(np.float32)
    whole = user.run(inputs)[signature.USER_EMBEDDING]
    alone = [
        user.run({name: values[n : n + 1] for name, values in inputs.items()})[signature.USER_EMBEDDING]
        for n in range(64)
    ]
    np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)


def test_a_tower_that_is_not_the_trained_one_is_refused(films: Trained) -> None:
    dataset, encoding = films.dataset, films.bundle.encoding
    catalogue, log = dataset.catalogue(dataset.test_ms), dataset.log.before(dataset.test_ms)
    samples = training_set(log, catalogue, encoding)
    rows = tensors.item_inputs(catalogue.item_ids, catalogue.attributes, encoding)
    first = start.closed_form(log, catalogue, encoding, 32, 0, lambda *_: None)
    pairs = [start.towers(first, rows, samples.inputs, encoding, Architecture(dim=32, width=32)) for _ in range(2)]
    pair = (UserMembers([user for user, _ in pairs]).eval(), ItemMembers([item for _, item in pairs]).eval())
    files = (films.bundle.user_tower.read_bytes(), films.bundle.item_tower.read_bytes())
    with pytest.raises(parity.ParityError, match="vectors in ONNX differ by"):
        parity.check_parity(pair, files, samples, rows, encoding, open_onnx)


def test_torchscript_gives_what_onnx_gives(model: Trained, tmp_path: Path) -> None:
    encoding, dataset, rng = model.bundle.encoding, model.dataset, np.random.default_rng(1)
    user, item = towers(model)
    paths = export_bundle(load_bundle(model.bundle.path), "torchscript", tmp_path / "made")
    assert [path.name for path in paths] == ["user_tower.pt", "item_tower.pt"]
    samples = training_set(dataset.log, dataset.catalogue(), encoding)
    inputs = samples.batch(rng.integers(0, len(samples), 40))
    shape = (40, encoding.spec.history.length, model.bundle.dim)
    inputs[HISTORY_VECTORS] = rng.standard_normal(shape).astype(np.float32)
    rows = tensors.item_inputs(dataset.item_ids, dataset.attributes, encoding)
    sides = (
        (paths[0], inputs, signature.user_inputs(encoding, model.bundle.dim), user),
        (paths[1], rows, signature.item_inputs(encoding), item),
    )
    for path, given, declared, onnx in sides:
        script = torch.jit.load(str(path))
        found = script(*(torch.from_numpy(given[name]) for name in declared))
        wanted = onnx.run(given)
        for array, expected in zip(found if isinstance(found, tuple) else [found], wanted.values(), strict=True):
            np.testing.assert_allclose(array.numpy(), expected, atol=1e-5)


def test_a_bundle_without_weights_has_no_torchscript(model: Trained, tmp_path: Path) -> None:
    alone = shutil.copytree(model.bundle.path, tmp_path / model.bundle.version)
    with pytest.raises(RecallError, match="only bundles of `recall model train` have weights"):
        export_bundle(load_bundle(alone), "torchscript", tmp_path)
