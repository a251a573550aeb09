"""Trains a small bundle and writes it as TorchServe archives: `train_towers.py FOLDER`, where PyTorch is installed."""

import sys
from pathlib import Path

import torch

from models.datasets.generated import generate
from models.spec import builtin_spec, load_spec
from models.training.towers import Architecture
from models.training.train import TrainOptions, train
from models.training.trainer import Recipe
from workers.exporting import export_bundle
from workers.training import open_onnx

QUICK = Recipe(epochs=1, batch=256, warmup=5, averaging=0.9)


def main(folder: Path) -> None:
    """Print where the bundle is."""
    torch.set_num_threads(1)
    dataset = generate(items=60, users=60, events=2500)
    until_ms = generate().test_ms  # of before what the demo asks for
    spec = builtin_spec(dataset.spec)
    bundle = train(
        dataset.log.before(until_ms),
        dataset.catalogue(until_ms),
        load_spec(spec),
        spec.read_text(),
        folder / "bundles",
        TrainOptions(architecture=Architecture(dim=32, encoder="transformer", width=32), recipe=QUICK),
        open_onnx,
        lambda *_: None,
    )
    export_bundle(bundle, "torchserve", folder / "archives")
    print(bundle.path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
