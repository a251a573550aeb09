"""From events to a bundle by training: closed form, PyTorch, export. The counterpart of `models/fit.py`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, write_bundle
from models.evaluation import leave_one_out, protocol
from models.evaluation.leave_one_out import LeaveOneOut
from models.evaluation.timeline import Timeline
from models.evaluation.window import Window
from models.event_log import Catalogue, EventLog
from models.extractors import Extract
from models.fit import DIMS, FitError
from models.samples import is_target
from models.spec import Spec
from models.tensors import Encoding, Inputs, build_vocabularies, item_inputs
from models.training import graphs, start
from models.training.members import ItemMembers, Pair, UserMembers
from models.training.parity import OpenOnnx, check_parity
from models.training.samples import TrainingSet, training_set
from models.training.towers import Architecture, ItemTower, UserTower
from models.training.trainer import Recipe, Report, Trainer, Validate
from models.training.weights import save_weights

Float32 = NDArray[np.float32]
Progress = Callable[[str, float], None]
VALIDATION_REQUESTS = 5000
VALIDATION_USERS = 100
VALIDATION_SHARE = 0.9  # of events, in time, stands before the validation window where nobody names one


@dataclass(frozen=True)
class TrainOptions:
    """`validation_ms`: where the validation window begins; None = at the newest tenth of events.

    With `leave_one_out`, a split for validation of which the log is `training`, nothing of the log is held out: each
    member is validated on the events that are left out anyway, and keeps the weights of its best epoch.
    """

    architecture: Architecture = field(default_factory=Architecture)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    validate: bool = True
    validation_ms: int | None = None
    leave_one_out: LeaveOneOut | None = None
    checkpoint: Path | None = None
    resume: bool = False
    extractors: Mapping[str, Extract] = field(default_factory=dict)  # the code of those that the spec names


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
    torch.set_num_threads(options.threads)
    progress("building samples", 0.0)
    words = build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec)
    encoding = Encoding(spec, words, options.extractors)
    rows = item_inputs(catalogue.item_ids, catalogue.attributes, encoding)
    held_out_ms = _held_out_from(log, catalogue, encoding, options)
    data = _Data(catalogue, encoding, rows)
    validations: list[float] = []
    validate = _left_out(catalogue, encoding, options)
    if held_out_ms is not None:
        asked = protocol.window(log, catalogue, encoding, held_out_ms)
        held_out = _validation(log, catalogue, encoding, asked, options)
        before = log.before(held_out_ms)
        first = _run(before, _samples(before, data, options), data, options, progress, held_out).report
        validations = first.validations
        options = replace(options, recipe=replace(options.recipe, epochs=first.epochs), checkpoint=None)
    samples, found = _samples(log, data, options), []
    for number in range(shape.members):
        one = replace(options, seed=options.seed + number, checkpoint=None if number else options.checkpoint)
        name = f"member {number + 1} of {shape.members}: " if shape.members > 1 else ""
        found.append(_run(log, samples, data, one, _named(name, progress), validate))
    validations = validations or found[0].report.validations
    pair: Pair = (
        UserMembers([each.pair[0] for each in found]).eval(),
        ItemMembers([each.pair[1] for each in found]).eval(),
    )

    progress("exporting towers", 0.97)
    dim = shape.dim
    user, item = pair
    towers = (graphs.user_tower(user, encoding), graphs.item_tower(item, encoding))
    difference = check_parity(pair, towers, samples, rows, encoding, open_onnx)
    bundle = write_bundle(
        folder,
        towers=towers,
        features=features,
        encoding=encoding,
        dim=dim,
        metric="IP",
        figures=_figures([each.report for each in found], validations, samples, catalogue, options)
        | {
            "newest_event_ms": int(log.timestamp_ms.max()),
            "train_s": round(sum(each.report.train_s for each in found), 2),
            "parity": difference,
            "fit_s": round(time.perf_counter() - started, 2),
        },
    )
    save_weights(bundle, pair, options.architecture)
    if options.checkpoint is not None:
        options.checkpoint.unlink(missing_ok=True)
    progress("done", 1.0)
    return bundle


@dataclass(frozen=True)
class _Data:
    catalogue: Catalogue
    encoding: Encoding
    rows: Inputs


@dataclass(frozen=True)
class _Found:
    pair: tuple[UserTower, ItemTower]
    report: Report


def _samples(log: EventLog, data: _Data, options: TrainOptions) -> TrainingSet:
    samples = training_set(log, data.catalogue, data.encoding, lesser=options.recipe.lesser_events > 0)
    if not samples.target.any():
        action = data.encoding.spec.target.action
        raise FitError(f"no {action!r} event that is a target names an item of the catalogue")
    return samples


def _run(
    log: EventLog,
    samples: TrainingSet,
    data: _Data,
    options: TrainOptions,
    progress: Progress,
    validate: Validate | None = None,
) -> _Found:
    """One training from its start: closed form, epochs."""
    torch.manual_seed(options.seed)
    shape = options.architecture.of_member()
    first = start.closed_form(log, data.catalogue, data.encoding, shape.dim, options.seed, progress)
    pair = start.towers(first, data.rows, samples.inputs, data.encoding, shape)
    trainer = Trainer(pair, samples, data.rows, options.recipe, options.seed, options.device, options.checkpoint)
    if options.resume and trainer.resume():
        progress("resumed", 0.0)
    return _Found(pair, trainer.run(validate, progress))


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


def _held_out_from(log: EventLog, catalogue: Catalogue, encoding: Encoding, options: TrainOptions) -> int | None:
    """Where the validation window begins; None = nothing is held out, as nothing would be left on one of the sides."""
    if not options.validate or options.leave_one_out is not None:
        return None
    times = log.timestamp_ms[is_target(log, encoding) & (catalogue.index_of(log.item) >= 0)]
    begin_ms = options.validation_ms
    if begin_ms is None:
        begin_ms = int(np.quantile(times, VALIDATION_SHARE)) if len(times) else 0
    return begin_ms if 0 < np.count_nonzero(times < begin_ms) < len(times) else None


def _left_out(catalogue: Catalogue, encoding: Encoding, options: TrainOptions) -> Validate | None:
    """By the events that leave-one-out has for validation; None = it is not asked for."""
    split = options.leave_one_out
    if split is None or not options.validate:
        return None
    asked = leave_one_out.window(split, Timeline(split.visible, catalogue, encoding))
    return _validation(split.visible, catalogue, encoding, asked, options)


def _named(name: str, progress: Progress) -> Progress:
    return lambda what, part: progress(name + what, part)


def _validation(
    log: EventLog, catalogue: Catalogue, encoding: Encoding, asked: Window, options: TrainOptions
) -> Validate:
    """Mean of Recall@10 and Recall@100 over whole users of the validation window: exact, full catalogue."""
    if len(asked.requests.user) > VALIDATION_REQUESTS:
        asked = asked.of_users(protocol.sample_users(asked, VALIDATION_REQUESTS, VALIDATION_USERS, seed=0))
    device = torch.device(options.device)

    def validate(user: UserTower, item: ItemTower) -> float:
        def embed_users(inputs: Inputs) -> Float32:
            found: Float32 = user(_tensors(inputs, device)).cpu().numpy()
            return found

        def embed_items(inputs: Inputs) -> tuple[Float32, Float32]:
            indexed, history = item(_tensors(inputs, device))
            return indexed.cpu().numpy(), history.cpu().numpy()

        with torch.no_grad():
            pair = (embed_users, embed_items)
            ranks = protocol.exact_ranks(log, catalogue, encoding, asked, pair, lambda _: None)
        found = protocol.metrics(ranks)
        return (found["recall_at_10"] + found["recall_at_100"]) / 2

    return validate


def _tensors(inputs: Inputs, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in inputs.items()}
