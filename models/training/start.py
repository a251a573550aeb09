"""Towers that begin as the closed form: its tables, its weights, its content, and a network that adds nothing yet."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.event_log import Catalogue, EventLog
from models.fit import (
    AGGREGATES,
    CONTENT_SCALE,
    Factors,
    FitOptions,
    content_embedding,
    dense_scale,
    field_weights,
    fit_factors,
    history_embedding,
    history_weights,
)
from models.graphs import Embedding, FieldWeights
from models.samples import build_samples, history_counts
from models.tensors import Encoding, Inputs
from models.training.fields import FieldSum
from models.training.towers import Architecture, ItemTower, UserTower

TEMPERATURE = 14.0  # where the polish usually ends
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Start:
    """A polished closed form, over all items of the catalogue."""

    factors: Factors
    dense_scale: Float32
    targets: NDArray[np.int64]  # int64[M], how often each item was a positive
    seen: NDArray[np.int64]  # int64[M], how often it stands in histories


def closed_form(
    log: EventLog,
    catalogue: Catalogue,
    encoding: Encoding,
    dim: int,
    seed: int,
    progress: Callable[[str, float], None],
) -> Start:
    """Solve and polish, as `recall model fit --polish` does."""
    samples = build_samples(log, catalogue, encoding, *history_weights(encoding.spec))
    scale = dense_scale(samples.dense, encoding)
    scaled = replace(samples, dense=samples.dense / scale)
    factors = fit_factors(scaled, FitOptions(dim=dim, polish=True, seed=seed), progress)
    targets = np.bincount(samples.item, minlength=len(catalogue))
    return Start(factors, scale, targets, history_counts(log, catalogue, encoding))


def towers(
    start: Start, rows: Inputs, users: Inputs, encoding: Encoding, shape: Architecture
) -> tuple[UserTower, ItemTower]:
    """Both towers. `rows` are the item tower's inputs of the catalogue, `users` the user tower's of all samples."""
    factors, counts = start.factors, start.seen
    item = ItemTower(encoding, len(start.targets), shape, CONTENT_SCALE)
    indexed = content_embedding(
        factors.item, start.targets, np.ones(len(start.targets)), rows, encoding, True, CONTENT_SCALE
    )
    history = history_embedding(factors.history, counts, rows, encoding)
    with torch.no_grad():
        for content, embedding in ((item.indexed_content, indexed), (item.history_content, history)):
            content.set_scales(rows)
            _fill(content, embedding.fields, embedding.bias)
        item.target.copy_(torch.from_numpy((np.r_[0, start.targets] > 0).astype(np.float32)))
        item.seen.copy_(torch.from_numpy((np.r_[0, counts] > 0).astype(np.float32)))
        item.indexed.copy_(_rows_of_their_own(item.indexed_content, indexed, rows))
        item.history.copy_(_rows_of_their_own(item.history_content, history, rows))
        item.log_temperature.fill_(np.log(TEMPERATURE))
        user = _user_tower(start, users, encoding, shape)
    return user, item


def _user_tower(start: Start, users: Inputs, encoding: Encoding, shape: Architecture) -> UserTower:
    user = UserTower(encoding, shape)
    code_weight, position_weight = history_weights(encoding.spec)
    user.code_weight.copy_(torch.from_numpy(code_weight))
    user.place_weight[1:].copy_(torch.from_numpy(position_weight[::-1].copy()))
    for fields in (user.linear, user.request):
        fields.set_scales(users)
    dense = start.factors.dense / start.dense_scale[:, None]
    user.aggregates.copy_(torch.from_numpy(dense[AGGREGATES]))
    _fill(user.linear, field_weights(dense, encoding), dense[0])
    history = start.factors.history
    learned = history[history.any(axis=1)]  # rows of zeros stand for content, which is as long as these
    size = float(np.sqrt(np.square(learned).mean())) if len(learned) else 1.0
    user.vector_scale.fill_(1 / size)
    user.pooled_scale.fill_(1 / (4 * size))
    user.log_temperature.fill_(np.log(TEMPERATURE))
    return user


def _fill(fields: FieldSum, weights: FieldWeights, bias: Float32) -> None:
    """Weights for numbers as they are become weights for numbers divided by their scale."""
    fields.bias.copy_(torch.from_numpy(bias))
    for name, weight in fields.weights.items():
        weight.copy_(torch.from_numpy(weights[name]) * fields.scale_of(name)[:, None])


def _rows_of_their_own(content: FieldSum, embedding: Embedding, rows: Inputs) -> torch.Tensor:
    """float32[M + 1, D]: what a learned vector has beyond its content."""
    inputs = {name: torch.from_numpy(values) for name, values in rows.items()}
    table = torch.from_numpy(embedding.table)
    own = table[1:] - content(inputs, table[1:])
    own[torch.from_numpy(~embedding.learned[1:])] = 0
    return torch.cat([table[:1], own])
