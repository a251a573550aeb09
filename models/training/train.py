"""From events to a bundle by training: closed form, PyTorch, export. The counterpart of `models/fit.py`."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.bundle import LEAVE_ONE_OUT, Bundle, write_bundle
from models.event_log import Catalogue, EventLog
from models.fit import DIMS, FitError
from models.spec import Spec
from models.tensors import Encoding, build_vocabularies, item_inputs
from models.training import graphs, validation
from models.training.members import ItemMembers, Pair, UserMembers
from models.training.options import TrainOptions
from models.training.parity import OpenOnnx, check_parity
from models.training.runs import Data, train_members, train_pair
from models.training.samples import TrainingSet, training_set
from models.training.trainer import Report
from models.training.weights import save_weights

Progress = Callable[[str, float], None]


def train(
    log: EventLog,
    catalogue: Catalogue,
    spec: Spec,
    features: str,
    folder: Path,
    options: TrainOptions,
    open_onnx: OpenOnnx,
    progress: Progress,
) -> Bundle:
    """Train both towers on a log and a catalogue and write the bundle.

    With validation, the newest events are held out until a first member has shown the best number of epochs; then all
    members are trained on everything, for so many. Raises FitError when no target event names an item of the catalogue.
    """
    shape = options.architecture
    if shape.dim not in DIMS:
        raise FitError(f"dim is {shape.dim}, one of {', '.join(map(str, DIMS))} is possible")
    if shape.dim % shape.members or shape.dim // shape.members not in DIMS:
        raise FitError(f"{shape.members} members of dim {shape.dim} are not possible: each needs one of {DIMS}")
    started = time.perf_counter()
    torch.set_num_threads(max(1, options.threads // shape.members))  # of the first one, too: all are trained alike
    progress("building samples", 0.0)
    words = build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec)
    encoding = Encoding(spec, words, options.extractors)
    rows = item_inputs(catalogue.item_ids, catalogue.attributes, encoding)
    if options.checkpoints is not None:
        options.checkpoints.mkdir(parents=True, exist_ok=True)
    held_out_ms = validation.held_out_from(log, catalogue, encoding, options)
    validations: list[float] = []
    if held_out_ms is not None:
        held_out = validation.held_out(log, catalogue, encoding, held_out_ms, options)
        before = log.before(held_out_ms)
        data = Data(before, catalogue, encoding, rows, _samples(before, catalogue, encoding, options))
        first = train_pair(data, options, "held-out", progress, held_out).report
        validations = first.validations
        options = replace(options, recipe=replace(options.recipe, epochs=first.epochs))
    data = Data(log, catalogue, encoding, rows, _samples(log, catalogue, encoding, options))
    seeds = range(options.seed, options.seed + shape.members)
    found = train_members(data, [replace(options, seed=seed) for seed in seeds], progress)
    validations = validations or found[0].report.validations
    pair: Pair = (
        UserMembers([each.pair[0] for each in found]).eval(),
        ItemMembers([each.pair[1] for each in found]).eval(),
    )

    progress("exporting towers", 0.97)
    user, item = pair
    towers = (graphs.user_tower(user, encoding), graphs.item_tower(item, encoding))
    difference = check_parity(pair, towers, data.samples, rows, encoding, open_onnx)
    bundle = write_bundle(
        folder,
        towers=towers,
        features=features,
        encoding=encoding,
        dim=shape.dim,
        metric="IP",
        figures=_figures([each.report for each in found], validations, data.samples, catalogue, options)
        | {
            "protocol": "temporal" if options.leave_one_out is None else LEAVE_ONE_OUT,
            "newest_event_ms": int(log.timestamp_ms.max()),
            "train_s": round(sum(each.report.train_s for each in found), 2),
            "parity": difference,
            "fit_s": round(time.perf_counter() - started, 2),
        },
    )
    save_weights(bundle, pair, options.architecture)
    if options.checkpoints is not None:
        shutil.rmtree(options.checkpoints)
    progress("done", 1.0)
    return bundle


def _samples(log: EventLog, catalogue: Catalogue, encoding: Encoding, options: TrainOptions) -> TrainingSet:
    samples = training_set(log, catalogue, encoding, lesser=options.recipe.lesser_events > 0)
    if not samples.target.any():
        raise FitError(f"no {encoding.spec.target.action!r} event that is a target names an item of the catalogue")
    return samples


def _figures(
    reports: list[Report],
    validations: list[float],
    samples: TrainingSet,
    catalogue: Catalogue,
    options: TrainOptions,
) -> dict[str, Any]:
    return {
        "requests": len(samples),
        "positives": int(samples.target.sum()),
        "items": len(catalogue),
        "polished": True,
        "encoder": options.architecture.encoder,
        "members": options.architecture.members,
        "epochs": reports[0].epochs,
        "losses": [[round(loss, 4) for loss in report.losses] for report in reports],
        "validations": [round(value, 4) for value in validations],
        "seed": options.seed,
        "device": options.device,
        "torch": str(torch.__version__),
    }
