"""Leave-one-out of trained towers: what is left out is never trained on, and the bundle can be evaluated by it."""

from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from models.datasets.generated import generate
from models.evaluation.report import Resampling
from models.spec import builtin_spec, load_spec
from workers.evaluating import Question, evaluate
from workers.fitting import Source, leave_out
from workers.live.told import Told
from workers.settings import load_settings
from workers.training import TrainingJob, train_bundle

DATASET = generate(items=300, users=150, events=6000)
PATH = builtin_spec(DATASET.spec)
SOURCE = Source(DATASET.log, DATASET.catalogue, load_spec(PATH), PATH.read_text(), None)
QUIET = Told(lambda *_: None, lambda _: None, lambda: False)


def job(**changes: object) -> TrainingJob:
    options = {"dim": 32, "encoder": "mean", "members": 1, "epochs": 2, "seed": 0, "device": "cpu", "threads": 1}
    rest = {"validate": True, "resume": False, "until_ms": None, "evaluate": False, "leave_one_out": True}
    return TrainingJob(**(options | rest | changes))  # type: ignore[arg-type]


def question(bundle: Path) -> Question:
    return Question([bundle], [], None, False, True, {}, {}, Resampling(100, 0))


@pytest.mark.parametrize("members", [1, 2])
def test_what_is_left_out_is_not_trained_on_and_foretold_afterwards(members: int, tmp_path: Path) -> None:
    made = train_bundle(SOURCE, job(dim=32 * members, members=members), tmp_path, tmp_path / "training.pt", str)
    bundle = load_bundle(made.path)
    left, split = leave_out(SOURCE, validation=True)
    figures = bundle.manifest.figures
    assert figures["positives"] == len(left.log) == len(DATASET.log) - 2 * len(split.foretold)
    assert bundle.spec.target.at_least is None, "any rating is a target"
    assert figures["protocol"] == "leave-one-out"
    assert len(figures["validations"]) == 2
    assert figures["epochs"] == 1 + int(np.argmax(figures["validations"])), "those of the best epoch are kept"
    assert [len(each) for each in figures["losses"]] == [2] * members, "and nothing is trained anew"
    found = evaluate(SOURCE, question(made.path), QUIET, load_settings())["models"]
    assert found[made.version]["recall_at_10"] > 0.1, "by chance one of 26 would be found"


def test_without_validation_all_epochs_are_trained(tmp_path: Path) -> None:
    figures = train_bundle(SOURCE, job(validate=False), tmp_path, tmp_path / "training.pt", str).manifest.figures
    assert (figures["epochs"], figures["validations"]) == (2, [])
