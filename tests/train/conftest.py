"""What tests of training share: small data of our own, trained once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.spec import builtin_spec, load_spec
from models.training.options import TrainOptions
from models.training.towers import Architecture, Encoder
from models.training.train import train
from models.training.trainer import Recipe
from workers.training import open_onnx

QUICK = Recipe(epochs=2, batch=256, warmup=10, averaging=0.9)


@dataclass(frozen=True)
class Trained:
    """A bundle and the data that it was trained on, up to the data's test window."""

    dataset: Dataset
    bundle: Bundle


def trained(
    dataset: Dataset, folder: Path, encoder: Encoder, recipe: Recipe = QUICK, members: int = 1, **options: object
) -> Trained:
    path = builtin_spec(dataset.spec)
    shape = Architecture(dim=32 * members, encoder=encoder, width=32, members=members)
    bundle = train(
        dataset.log.before(dataset.test_ms),
        dataset.catalogue(dataset.test_ms),
        load_spec(path),
        path.read_text(),
        folder,
        TrainOptions(architecture=shape, recipe=recipe, **options),
        open_onnx,
        lambda *_: None,
    )
    return Trained(dataset, bundle)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    dataset = generate(items=300, users=150, events=6000)
    return trained(
        dataset, tmp_path_factory.mktemp("films"), "transformer", members=2, validation_ms=dataset.validation_ms
    )


@pytest.fixture(scope="session")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(generate_marketplace(400, 300, 4000), tmp_path_factory.mktemp("offers"), "mean")
