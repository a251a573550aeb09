"""How good towers are while they are trained: on events of the log that are held out, or that are left out anyway."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluation import leave_one_out, protocol
from models.evaluation.timeline import Timeline
from models.evaluation.window import Window
from models.event_log import Catalogue, EventLog
from models.samples import is_target
from models.tensors import Encoding, Inputs
from models.training.options import TrainOptions
from models.training.towers import ItemTower, UserTower
from models.training.trainer import Validate

Float32 = NDArray[np.float32]
REQUESTS = 5000
USERS = 100
SHARE = 0.9  # of events, in time, stands before the validation window where nobody names one


def held_out_from(log: EventLog, catalogue: Catalogue, encoding: Encoding, options: TrainOptions) -> int | None:
    """Where the validation window begins; None = nothing is held out, as nothing would be left on one of the sides."""
    if not options.validate or options.leave_one_out is not None:
        return None
    times = log.timestamp_ms[is_target(log, encoding) & (catalogue.index_of(log.item) >= 0)]
    begin_ms = options.validation_ms
    if begin_ms is None:
        begin_ms = int(np.quantile(times, SHARE)) if len(times) else 0
    return begin_ms if 0 < np.count_nonzero(times < begin_ms) < len(times) else None


def held_out(log: EventLog, catalogue: Catalogue, encoding: Encoding, begin_ms: int, options: TrainOptions) -> Validate:
    """By what happened from `begin_ms` on."""
    asked = protocol.window(log, catalogue, encoding, begin_ms)
    return _over(log, catalogue, encoding, asked, options)


def left_out(catalogue: Catalogue, encoding: Encoding, options: TrainOptions) -> Validate | None:
    """By the events that leave-one-out has for validation; None = it is not asked for."""
    split = options.leave_one_out
    if split is None or not options.validate:
        return None
    asked = leave_one_out.window(split, Timeline(split.visible, catalogue, encoding))
    return _over(split.visible, catalogue, encoding, asked, options)


def _over(log: EventLog, catalogue: Catalogue, encoding: Encoding, asked: Window, options: TrainOptions) -> Validate:
    """Mean of Recall@10 and Recall@100 over whole users of the validation window: exact, full catalogue."""
    if len(asked.requests.user) > REQUESTS:
        asked = asked.of_users(protocol.sample_users(asked, REQUESTS, USERS, seed=0))
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
