"""From events to a bundle: samples, closed form, polish, content, graphs."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import graphs
from models.bundle import Bundle, write_bundle
from models.closed_form import Penalty, content_ridge, solve
from models.event_log import Catalogue, EventLog
from models.extractors import Extract, ExtractorError
from models.polish import polish
from models.samples import Samples, build_samples, design, history_counts, units, user_fields
from models.signature import width
from models.spec import Spec
from models.tensors import Encoding, Inputs, build_vocabularies, item_inputs

DIMS = (32, 64, 128, 256)
MAX_HISTORY_ITEMS = 15_000  # above it, only the most frequent get a factor of their own
KEPT_HISTORY_ITEMS = 10_000
FEW_POSITIVES = 50_000
POLISH_FROM = 100_000
SMALL_RANK = 32
CONTENT_SCALE = 0.7  # of a vector from content: below 1, so that it loses to an equally similar learned one
AGGREGATES = slice(1, 7)
FIRST_FIELD = 7

Float32 = NDArray[np.float32]
Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is, 0 to 1."""


class FitError(ValueError):
    """Data that nothing can be fitted on; one line."""


@dataclass(frozen=True)
class FitOptions:
    """`polish` None = when there are enough positives. `extractors`: the code of those that the spec names."""

    dim: int = 64
    polish: bool | None = None
    seed: int = 0
    extractors: Mapping[str, Extract] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Factors:
    """What was fitted: factors of history items, dense columns and target items, and whether vectors have length 1."""

    history: Float32
    dense: Float32
    item: Float32
    unit_length: bool


def fit(
    log: EventLog,
    catalogue: Catalogue,
    spec: Spec,
    features: str,
    folder: Path,
    options: FitOptions,
    progress: Progress,
) -> Bundle:
    """Fit both towers on a log and a catalogue and write the bundle. The same data and seed give the same bundle.

    `features` is the text of the spec's file. Raises FitError when no target event names an item of the catalogue.
    """
    if options.dim not in DIMS:
        raise FitError(f"dim is {options.dim}, one of {', '.join(map(str, DIMS))} is possible")
    started = time.perf_counter()
    progress("building samples", 0.0)
    words = build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec)
    encoding = Encoding(spec, words, options.extractors)
    code_weight, position_weight = history_weights(spec)
    try:
        samples = build_samples(log, catalogue, encoding, code_weight, position_weight)
    except ExtractorError as error:
        raise FitError(str(error)) from error
    if len(samples.item) == 0:
        raise FitError(f"no {spec.target.action!r} event that is a target names an item of the catalogue")
    samples_s = time.perf_counter() - started

    scale = dense_scale(samples.dense, encoding)
    factors = fit_factors(replace(samples, dense=samples.dense / scale), options, progress)
    dense = factors.dense / scale[:, None]
    progress("writing towers", 0.95)
    counts = history_counts(log, catalogue, encoding)
    targets = np.bincount(samples.item, minlength=len(catalogue))
    rows = item_inputs(catalogue.item_ids, catalogue.attributes, encoding)
    indexed = content_embedding(
        factors.item, targets, np.ones(len(targets)), rows, encoding, factors.unit_length, CONTENT_SCALE
    )
    history = history_embedding(factors.history, counts, rows, encoding)
    user = graphs.UserTower(
        code_weight=code_weight,
        position_weight=position_weight,
        aggregates=dense[AGGREGATES],
        bias=dense[0],
        fields=field_weights(dense, encoding),
        unit_length=factors.unit_length,
    )
    towers = (
        graphs.user_tower(user, encoding, options.dim),
        graphs.item_tower(indexed, history, encoding, options.dim),
    )
    figures: dict[str, Any] = {
        "requests": samples.history.shape[0],
        "positives": len(samples.item),
        "items": len(catalogue),
        "polished": factors.unit_length,
        "seed": options.seed,
        "newest_event_ms": int(log.timestamp_ms.max()),
        "samples_s": round(samples_s, 2),
        "fit_s": round(time.perf_counter() - started, 2),
    }
    bundle = write_bundle(
        folder, towers=towers, features=features, encoding=encoding, dim=options.dim, metric="IP", figures=figures
    )
    progress("done", 1.0)
    return bundle


def history_weights(spec: Spec) -> tuple[Float32, Float32]:
    """Weights of codes float32[codes + 1], code 0 first, and of places float32[H], newest last."""
    code_weight = np.array([0.0, *(code.weight for code in spec.history.codes)], dtype=np.float32)
    position = np.arange(spec.history.length)[::-1]
    return code_weight, ((1 + position / 6) ** -1.5).astype(np.float32)


def fit_factors(samples: Samples, options: FitOptions, progress: Progress) -> Factors:
    """Closed form, and polish where that is wanted; tables are `options.dim` wide."""
    positives = len(samples.item)
    progress("solving", 0.2)
    few = positives < FEW_POSITIVES
    rank = min(SMALL_RANK, options.dim) if few else options.dim
    penalty = Penalty(items=100.0) if few else Penalty()
    frequency = np.asarray((samples.history != 0).sum(axis=0)).reshape(-1)
    columns = np.flatnonzero(frequency)
    if len(columns) > MAX_HISTORY_ITEMS:
        columns = np.sort(np.argsort(-frequency, kind="stable")[:KEPT_HISTORY_ITEMS])
    solved = solve(samples, columns, rank, penalty, options.seed)
    wanted = positives >= POLISH_FROM if options.polish is None else options.polish
    if wanted:
        solved = polish(samples, solved, options.seed, lambda part: progress("polishing", 0.5 + 0.45 * part))
    history, dense, item = (np.pad(table, ((0, 0), (0, options.dim - rank))) for table in solved)
    return Factors(history, dense, item, unit_length=wanted)


def history_embedding(table: Float32, counts: NDArray[np.int64], rows: Inputs, encoding: Encoding) -> graphs.Embedding:
    """Learned history vectors by how often each item stands in histories, content for the others.

    A row of zeros was not learned: its item is beyond KEPT_HISTORY_ITEMS, or stands in the past of no target. It would
    mean nothing to the user tower, and pull the content of all others to nothing, too.
    """
    learned = np.where(table.any(axis=1), counts, 0)
    return content_embedding(table, learned, learned.astype(np.float64), rows, encoding, False, 1.0)


def content_embedding(
    table: Float32,
    counts: NDArray[np.int64],
    weight: NDArray[np.float64],
    rows: Inputs,
    encoding: Encoding,
    unit_length: bool,
    content_scale: float,
) -> graphs.Embedding:
    """Learned rows for items with a count, a ridge of them on content for the others."""
    learned = counts > 0
    fields = {f"item.{name}": field for name, field in encoding.spec.item.items()}
    blocks = {name: _content(name, rows, encoding) for name in fields}
    one = np.ones((len(table), 1), dtype=np.float32)
    matrix = np.concatenate([one, *blocks.values()], axis=1)
    normal = weight[learned] / max(weight[learned].mean(), 1e-9) if learned.any() else weight[learned]
    solved = content_ridge(matrix[learned], table[learned], normal.astype(np.float32))
    splits = np.cumsum([1, *(block.shape[1] for block in blocks.values())])
    weights = {
        name.replace(".", "_", 1): solved[start:end]
        for name, start, end in zip(blocks, splits[:-1], splits[1:], strict=True)
    }
    return graphs.Embedding(
        table=np.vstack([np.zeros_like(table[:1]), table]),
        learned=np.r_[False, learned],
        fields=weights,
        bias=solved[0],
        unit_length=unit_length,
        content_scale=content_scale,
    )


def _content(name: str, rows: Inputs, encoding: Encoding) -> Float32:
    field = encoding.spec.item[name.removeprefix("item.")]
    block = design(field, name, rows[name.replace(".", "_", 1)], encoding)
    return block / np.maximum(block.sum(1, keepdims=True), 1) if field.kind == "multi" else block


def dense_scale(dense: Float32, encoding: Encoding) -> Float32:
    """float32[m]: the root mean square of numbers, 1 for other columns: a step of the polish is the same for all."""
    scale, start = np.ones(dense.shape[1], dtype=np.float32), FIRST_FIELD
    for name, field in user_fields(encoding).items():
        end = start + width(field, name, encoding.vocabularies)
        if field.kind in {"number", "vector"}:
            scale[start:end] = units(dense[:, start:end])
        start = end
    return scale


def field_weights(dense: Float32, encoding: Encoding) -> dict[str, Float32]:
    """`section_name` -> float32[width, D]: the dense factors of each field."""
    weights, start = {}, FIRST_FIELD
    for name, field in user_fields(encoding).items():
        size = width(field, name, encoding.vocabularies)
        weights[name.replace(".", "_", 1)] = dense[start : start + size]
        start += size
    return weights
