"""Training as commands do it: options, training, bundle and report. The counterpart of `workers/fitting.py`."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.bundle import Bundle, BundleError
from models.extractors import ExtractorError
from models.fit import FitError
from models.signature import Arrays
from models.training.options import TrainOptions
from models.training.parity import Run
from models.training.towers import Architecture, Encoder
from models.training.train import train
from models.training.trainer import Recipe
from workers.errors import RecallError
from workers.fitting import TOWER_TIMEOUT_MS, Say, Source, bundles_folder, leave_out, report
from workers.settings import Settings
from workers.towers.onnx import OnnxTower

FIGURES = (
    "fit_s",
    "train_s",
    "requests",
    "positives",
    "items",
    "encoder",
    "members",
    "epochs",
    "validations",
    "parity",
    "device",
    "seed",
    "torch",
)


@dataclass(frozen=True)
class TrainingJob:
    """What to train. None = the recipe's own."""

    dim: int
    encoder: Encoder
    members: int
    epochs: int | None
    seed: int
    device: str
    threads: int
    validate: bool
    resume: bool
    until_ms: int | None
    evaluate: bool
    leave_one_out: bool = False


def run_train(source: Source, job: TrainingJob, settings: Settings, checkpoints: Path, say: Say) -> dict[str, Any]:
    """Train, and evaluate when that is asked for. Raises RecallError, ConfigurationError.

    `checkpoints` is a folder that no other training has (`held_checkpoints`); it is deleted at the end.
    """
    folder = bundles_folder(settings)
    bundle = train_bundle(source, job, folder, checkpoints, say)
    result: dict[str, Any] = {"version": bundle.version, "path": str(bundle.path), "dim": bundle.dim}
    result |= {name: bundle.manifest.figures[name] for name in FIGURES}
    if job.evaluate and source.test_ms is not None:
        result |= report(source, bundle, source.test_ms, say)
    return result


def train_bundle(source: Source, job: TrainingJob, folder: Path, checkpoints: Path, say: Say) -> Bundle:
    """Train on what happened before `job.until_ms`, or on what leave-one-out leaves of it all."""
    split = None
    if job.leave_one_out:
        source, split = leave_out(source, validation=True)
    recipe = Recipe() if job.epochs is None else replace(Recipe(), epochs=job.epochs)
    options = TrainOptions(
        architecture=Architecture(dim=job.dim, encoder=job.encoder, members=job.members),
        recipe=recipe,
        seed=job.seed,
        device=job.device,
        threads=job.threads,
        validate=job.validate,
        validation_ms=source.validation_ms if job.evaluate else None,
        leave_one_out=split,
        checkpoints=checkpoints,
        resume=job.resume,
        extractors=source.extractors,
    )
    try:
        return train(
            source.log_until(job.until_ms),
            source.known_until(job.until_ms),
            source.spec,
            source.features,
            folder,
            options,
            open_onnx,
            lambda what, part: say(f"{what} {part:.0%}"),
        )
    except (FitError, BundleError, ExtractorError) as error:
        raise RecallError(str(error)) from error


def open_onnx(content: bytes, inputs: Arrays, outputs: Arrays) -> Run:
    """An ONNX graph as a worker opens it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tower.onnx"
        path.write_bytes(content)
        return OnnxTower(path, inputs, outputs, TOWER_TIMEOUT_MS).run


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
