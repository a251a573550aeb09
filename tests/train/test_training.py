"""The parts of training: a block gives what serving gives, the start is the closed form, an interrupted run goes on."""

import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.event_log import EventLog
from models.fit import FitError, FitOptions, fit
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Inputs, build_vocabularies, item_inputs
from models.training import start
from models.training.blocks import MAX_REQUESTS, assemble, cut, request_inputs
from models.training.loss import Negatives, softmax_loss
from models.training.options import TrainOptions
from models.training.samples import HISTORY_VECTORS, training_set
from models.training.towers import Architecture, Encoder, ItemTower, UserTower
from models.training.train import train
from models.training.trainer import Trainer
from tests.train.conftest import QUICK, trained
from workers.towers.onnx import open_tower
from workers.training import open_onnx

SHAPE = Architecture(dim=32, width=32)


class Made:
    """Samples and freshly started towers."""

    def __init__(self, encoder: Encoder = "transformer", offers: bool = False) -> None:
        self.dataset = generate_marketplace(150, 80, 900) if offers else generate(items=150, users=80, events=4000)
        self.log, self.catalogue = self.dataset.log, self.dataset.catalogue()
        spec = load_spec(builtin_spec(self.dataset.spec))
        facts = (self.catalogue.item_ids, self.catalogue.attributes)
        self.encoding = Encoding(spec, build_vocabularies(self.log, *facts, spec))
        self.samples = training_set(self.log, self.catalogue, self.encoding)
        self.rows = item_inputs(*facts, self.encoding)
        torch.manual_seed(0)
        first = start.closed_form(self.log, self.catalogue, self.encoding, 32, 0, lambda *_: None)
        shape = replace(SHAPE, encoder=encoder)
        self.pair = start.towers(first, self.rows, self.samples.inputs, self.encoding, shape)

    def trainer(self, checkpoint: Path | None = None, epochs: int = 2) -> Trainer:
        recipe = replace(QUICK, epochs=epochs)
        return Trainer(self.pair, self.samples, self.rows, recipe, 3, "cpu", checkpoint)


def tensors_of(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def served(made: Made, pair: tuple[UserTower, ItemTower], rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """User vectors of some samples as serving makes them, and history vectors with one of nobody behind them."""
    history = pair[1](tensors_of(made.rows))[1]
    history = torch.cat([history, torch.zeros_like(history[:1])])
    inputs = tensors_of(made.samples.batch(rows))
    inputs[HISTORY_VECTORS] = history[torch.from_numpy(made.samples.history[rows]).long()]
    return pair[0](inputs), history


@pytest.mark.parametrize("offers", [False, True], ids=["films", "offers"])
@pytest.mark.parametrize("encoder", ["transformer", "mean"])
def test_a_request_gets_in_a_block_what_serving_gives_it(encoder: Encoder, offers: bool) -> None:
    made = Made(encoder, offers)
    with torch.no_grad():
        for parameter in made.pair[0].parameters():  # a network that adds something
            parameter.add_(0.05 * torch.randn_like(parameter))
        runs = cut(made.samples, np.random.default_rng(0))
        assert sorted(np.concatenate(runs).tolist()) == list(range(len(made.samples)))
        assert max(map(len, runs)) <= MAX_REQUESTS
        block = assemble(made.samples, runs)
        user = made.pair[0].eval()
        alone, history = served(made, (user, made.pair[1]), block.rows.reshape(-1))
        vectors = history[torch.from_numpy(block.items).long()]
        together = user.look_back(block.past(vectors), tensors_of(request_inputs(made.samples, block)))
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=2e-4)  # ages are rounded, from another time on
    assert np.abs(together.numpy() - alone.numpy()).mean() < 5e-6


def test_towers_begin_as_the_closed_form(tmp_path: Path) -> None:
    made = Made()
    path = builtin_spec(made.dataset.spec)
    options = FitOptions(dim=32, polish=True)
    bundle = fit(made.log, made.catalogue, load_spec(path), path.read_text(), tmp_path, options, lambda *_: None)
    item = open_tower(bundle, "item", 1000).run(made.rows)
    rows = np.arange(0, len(made.samples), 11)
    inputs = made.samples.batch(rows)
    table = np.vstack([item["history_embedding"], np.zeros((1, 32), np.float32)])
    inputs[HISTORY_VECTORS] = table[made.samples.history[rows]]
    wanted = open_tower(bundle, "user", 1000).run(inputs)["user_embedding"]
    with torch.no_grad():
        users = served(made, (made.pair[0].eval(), made.pair[1]), rows)[0].numpy()
        indexed = made.pair[1](tensors_of(made.rows))[0].numpy()
    np.testing.assert_allclose(users / np.linalg.norm(users, axis=1, keepdims=True), wanted, atol=1e-4)
    scale = np.linalg.norm(indexed, axis=1).max()
    np.testing.assert_allclose(indexed / scale, item["item_embedding"], atol=1e-4)


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def score(user: UserTower, item: ItemTower) -> float:
        return -float((user.log_temperature + item.log_temperature).detach())

    whole, first, second = Made(), Made(), Made()
    whole.trainer().run(score, lambda *_: None)
    checkpoint = tmp_path / "training.pt"

    class Interrupted(Exception):
        """Stands for a machine that was switched off."""

    def dies(what: str, part: float) -> None:
        if part >= 0.5:
            raise Interrupted

    with pytest.raises(Interrupted):
        first.trainer(checkpoint).run(score, dies)
    trainer = second.trainer(checkpoint)
    assert trainer.resume()
    trainer.run(score, lambda *_: None)
    for one, other in zip(whole.pair, second.pair, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, msg=name)
    with pytest.raises(FitError, match="is of another training"):
        second.trainer(checkpoint, epochs=5).resume()
    assert not second.trainer(tmp_path / "nowhere.pt").resume()


def test_the_same_data_and_seed_give_the_same_bundle(tmp_path: Path) -> None:
    dataset = generate(items=80, users=60, events=3000)
    options = {"recipe": replace(QUICK, epochs=1), "validate": False}
    first = trained(dataset, tmp_path / "a", "mean", **options)
    again = trained(dataset, tmp_path / "b", "mean", **options)
    other = trained(dataset, tmp_path / "c", "mean", seed=1, **options)
    assert first.bundle.version == again.bundle.version != other.bundle.version


def test_members_at_once_are_those_that_come_one_after_the_other(tmp_path: Path) -> None:
    dataset = generate(items=80, users=60, events=3000)
    options = {"recipe": replace(QUICK, epochs=1), "members": 2, "checkpoints": tmp_path / "checkpoints"}
    in_order = trained(dataset, tmp_path / "a", "mean", **options)
    at_once = trained(dataset, tmp_path / "b", "mean", **options, threads=2)
    assert in_order.bundle.version == at_once.bundle.version
    assert not (tmp_path / "checkpoints").exists()


def test_members_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before the bundle is written: nothing is trained again."""
    dataset = generate(items=80, users=60, events=3000)
    options = {"recipe": QUICK, "members": 2, "checkpoints": tmp_path / "checkpoints"}
    whole = trained(dataset, tmp_path / "a", "mean", **options)
    with monkeypatch.context() as broken:
        broken.setattr("models.training.train.check_parity", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(dataset, tmp_path / "b", "mean", **options)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"held-out.pt", "member-1.pt", "member-2.pt"}
    with monkeypatch.context() as no_epochs:
        no_epochs.setattr(Trainer, "_run_epoch", lambda *_: 1 / 0)
        resumed = trained(dataset, tmp_path / "b", "mean", **options, resume=True)
    assert resumed.bundle.version == whole.bundle.version


def test_a_member_that_is_killed_is_one_line(tmp_path: Path) -> None:
    dataset = generate(items=80, users=60, events=3000)
    options = {"recipe": replace(QUICK, epochs=500), "members": 2, "threads": 2, "validate": False}
    killing = threading.Thread(target=kill_a_child, daemon=True)
    killing.start()
    with pytest.raises(FitError, match=r"the process that trained a member ended: .* SIGKILL"):
        trained(dataset, tmp_path / "a", "mean", **options)
    killing.join()
    assert multiprocessing.active_children() == []


def kill_a_child() -> None:
    """As soon as there is one."""
    while not multiprocessing.active_children():
        time.sleep(0.05)
    multiprocessing.active_children()[0].kill()


def test_training_stops_when_validation_gets_no_better() -> None:
    made = Made()
    values = iter([0.3, 0.2, 0.1, 0.0])
    report = made.trainer(epochs=4).run(lambda *_: next(values), lambda *_: None)
    assert report.epochs == 1
    assert report.validations == [0.3, 0.2, 0.1]


def test_a_sample_of_negatives_estimates_the_whole_softmax() -> None:
    rng = np.random.default_rng(0)
    counts = rng.zipf(1.5, 400).clip(max=1000)
    items, users = torch.randn(400, 8), torch.randn(50, 8) / 2
    wanted = torch.from_numpy(rng.integers(0, 400, 50))
    nothing = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))

    def loss(drawn: np.ndarray, log_q: np.ndarray) -> float:
        place = np.full(400, -1)
        place[drawn] = np.arange(len(drawn))
        column = torch.from_numpy(place)[wanted]
        positives = (torch.arange(50), items[wanted], column)
        return float(softmax_loss(users, items[drawn], torch.from_numpy(log_q), nothing, positives, torch.ones(50)))

    exact = loss(*Negatives(counts, 400).draw(rng))
    plain = torch.nn.functional.cross_entropy(users @ items.T, wanted)
    assert exact == pytest.approx(float(plain), rel=1e-5)
    some = Negatives(counts, 150)
    estimates = [loss(*some.draw(rng)) for _ in range(200)]
    uncorrected = [loss(drawn, 0 * log_q) for drawn, log_q in (some.draw(rng) for _ in range(200))]
    assert abs(np.mean(estimates) - exact) < 0.05 * exact < abs(np.mean(uncorrected) - exact)


def test_nothing_to_learn_is_one_line(tmp_path: Path) -> None:
    path = builtin_spec("movielens")
    nobody = EventLog.from_activities([])
    with pytest.raises(FitError, match="no 'rate' event that is a target names an item of the catalogue"):
        train(
            nobody,
            generate(items=5, users=5, events=50).catalogue(),
            load_spec(path),
            path.read_text(),
            tmp_path,
            TrainOptions(),
            open_onnx,
            lambda *_: None,
        )
