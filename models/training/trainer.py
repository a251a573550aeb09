"""The training loop: batches of requests, AdamW, averaged weights, early stopping, checkpoints to go on from."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.fit import FitError
from models.tensors import Inputs
from models.training.blocks import MAX_REQUESTS, Block, assemble, cut, request_inputs
from models.training.loss import Negatives, softmax_loss
from models.training.samples import TrainingSet
from models.training.towers import ItemTower, UserTower

Progress = Callable[[str, float], None]
Validate = Callable[[UserTower, ItemTower], float]
"""How good towers are, the more the better; called between epochs."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, tuned on the validation window of MovieLens-1M."""

    epochs: int = 4
    batch: int = 512  # requests
    negatives: int = 8192  # candidates per batch; every item where there are no more
    learning_rate: float = 2e-3
    tables_learning_rate: float = 7e-4
    weight_decay: float = 0.02
    warmup: int = 100  # steps
    final_rate: float = 0.05  # of the learning rate, reached along a cosine
    half_weight_days: float = 200.0  # a request's weight is exp(-age / this)
    item_dropout: float = 0.1  # of rows of their own, so that content alone is worth something
    history_dropout: float = 0.1  # of events
    lesser_events: float = 0.3  # weight of an event that is none of the targets, as something to foretell
    averaging: float = 0.998  # of weights, per step; 0 = none
    patience: int = 2  # epochs without a better validation
    clip: float = 1.0  # norm of gradients


@dataclass(frozen=True)
class Report:
    """What a training was."""

    epochs: int  # that the kept weights have seen
    validations: list[float]
    losses: list[float]
    train_s: float


class Trainer:
    """Trains a pair of towers on a set of samples."""

    def __init__(
        self,
        towers: tuple[UserTower, ItemTower],
        samples: TrainingSet,
        rows: Inputs,
        recipe: Recipe,
        seed: int,
        device: str,
        checkpoint: Path | None = None,
    ) -> None:
        """`rows` are the item tower's inputs of the catalogue; `checkpoint` is written after every epoch."""
        self._device = torch.device(device)
        self._pair = nn.ModuleList(towers).to(self._device)
        self._samples, self._recipe, self._seed = samples, recipe, seed
        self._rows = {name: torch.from_numpy(values).to(self._device) for name, values in rows.items()}
        targets = np.bincount(samples.item, minlength=len(rows["item_code"]))
        self._negatives = Negatives(targets, recipe.negatives)
        fades = np.exp(-samples.age_days() / recipe.half_weight_days)[samples.request]
        self._weight = (fades * _worth(samples.target, recipe)).astype(np.float32)
        tables = [towers[1].indexed, towers[1].history]
        of_tables = {id(table) for table in tables}
        networks = [each for each in self._pair.parameters() if id(each) not in of_tables]
        groups = [
            {"params": networks, "rate": recipe.learning_rate},
            {"params": tables, "rate": recipe.tables_learning_rate},
        ]
        self._optimizer = torch.optim.AdamW(
            [{**group, "lr": group["rate"]} for group in groups],
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._averaged = copy.deepcopy(self._pair).eval()
        self._checkpoint = checkpoint
        self._step = 0
        self._epoch = 0
        self._losses: list[float] = []
        self._validations: list[float] = []
        self._best: dict[str, Tensor] | None = None
        self._trained_s = 0.0

    def run(self, validate: Validate | None, progress: Progress) -> Report:
        """Train until the last epoch, or until validation gets no better; the towers hold the best weights then."""
        while self._epoch < self._recipe.epochs and not self._exhausted():
            self._run_epoch(progress)
            user, item = self._averaged_towers()
            self._validations.append(validate(user, item) if validate else float(self._epoch))
            if self._validations[-1] >= max(self._validations):
                self._best = copy.deepcopy(self._averaged.state_dict())
            self._save()
        best = int(np.argmax(self._validations)) + 1 if validate else self._epoch
        if self._best is not None:
            self._pair.load_state_dict(self._best)
        self._pair.eval().to("cpu")
        return Report(best, self._validations if validate else [], self._losses, self._trained_s)

    def resume(self) -> bool:
        """Go on where the checkpoint was written. False when there is none; raises FitError for another training's."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return False
        state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        if state["identity"] != self._identity():
            raise FitError(f"{self._checkpoint} is of another training: of other data, another seed or other options")
        self._pair.load_state_dict(state["towers"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self._step, self._epoch = state["best"], state["step"], state["epoch"]
        self._losses, self._validations, self._trained_s = state["losses"], state["validations"], state["trained_s"]
        return True

    def _identity(self) -> dict[str, Any]:
        """What makes a training the same: its towers' shapes, recipe, seed and samples."""
        shapes = {name: list(value.shape) for name, value in self._pair.state_dict().items()}
        samples = [len(self._samples), len(self._samples.item), int(self._samples.as_of_ms.sum())]
        return {"towers": shapes, "recipe": asdict(self._recipe), "seed": self._seed, "samples": samples}

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "towers": self._pair.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "step": self._step,
            "epoch": self._epoch,
            "losses": self._losses,
            "validations": self._validations,
            "trained_s": self._trained_s,
        }
        temporary = self._checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def _exhausted(self) -> bool:
        since = len(self._validations) - 1 - int(np.argmax(self._validations)) if self._validations else 0
        return since >= self._recipe.patience

    def _averaged_towers(self) -> tuple[UserTower, ItemTower]:
        user, item = self._averaged
        assert isinstance(user, UserTower)  # noqa: S101  # for the types: what went in comes out
        assert isinstance(item, ItemTower)  # noqa: S101
        return user, item

    def _run_epoch(self, progress: Progress) -> None:
        started = time.perf_counter()
        rng = np.random.default_rng((self._seed, self._epoch))
        torch.manual_seed(self._seed * 1_000_003 + self._epoch)  # dropout: each epoch begins the same, also resumed
        batches = _batches(cut(self._samples, rng), self._recipe.batch, rng)
        self._pair.train()
        total, last = 0.0, self._recipe.epochs - 1
        for number, runs in enumerate(batches):
            part = number / len(batches)
            total += self._train_step(assemble(self._samples, runs), self._rate(part), rng)
            if number % 10 == 0:
                done = (self._epoch + part) / (last + 1)
                progress(f"training, epoch {self._epoch + 1}, loss {total / (number + 1):.3f}", done)
        self._epoch += 1
        self._losses.append(total / len(batches))
        self._trained_s += time.perf_counter() - started

    def _train_step(self, block: Block, rate: float, rng: np.random.Generator) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        loss = self._loss(block, rng)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._pair.parameters(), self._recipe.clip)
        self._optimizer.step()
        self._step += 1
        self._average()
        return float(loss.detach())

    def _rate(self, part: float) -> float:
        """Of the learning rate, when `part` of the epoch is done: a linear rise, then a cosine."""
        done = (self._epoch + part) / self._recipe.epochs
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        rising = min(1.0, (self._step + 1) / self._recipe.warmup)
        return rising * (self._recipe.final_rate + (1 - self._recipe.final_rate) * cosine)

    def _average(self) -> None:
        """Exponential mean of the weights: what is validated and kept (Polyak and Juditsky 1992)."""
        keep = min(self._recipe.averaging, self._step / (self._step + 10))
        with torch.no_grad():
            for mean, value in zip(self._averaged.parameters(), self._pair.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)

    def _loss(self, block: Block, rng: np.random.Generator) -> Tensor:
        user, item = self._pair
        block.codes[rng.random(block.codes.shape) < self._recipe.history_dropout] = 0
        real = np.flatnonzero(block.real)
        rows = block.rows.reshape(-1)[real]
        row, which = self._samples.positives(rows)
        positive = self._samples.item[which]
        drawn, log_q = self._negatives.draw(rng)
        needed, place = np.unique(np.concatenate([block.items.ravel(), positive, drawn]), return_inverse=True)
        none = int(needed[0] < 0)  # -1: no item
        indexed, past = item(self._item_inputs(needed[none:], rng))
        past = torch.cat([torch.zeros_like(past[:none]), past])
        sizes = (block.items.size, len(positive), len(drawn))
        of_history, of_positive, of_drawn = self._tensor(place).split(sizes)
        vectors = nn.functional.embedding(of_history, past).unflatten(0, block.items.shape)
        inputs = {name: self._tensor(values) for name, values in request_inputs(self._samples, block).items()}
        users = user.look_back(block.past(vectors), inputs)[self._tensor(real)]

        column = np.full(len(self._negatives) + 1, -1)  # of each item among the negatives; the last stands for -1
        column[drawn] = np.arange(len(drawn))
        who, met = self._samples.seen.before(rows)
        met = column[met]
        hidden = np.flatnonzero(met >= 0)
        return softmax_loss(
            users,
            indexed[of_drawn - none],
            self._tensor(log_q),
            (self._tensor(who[hidden]), self._tensor(met[hidden])),
            (self._tensor(row), indexed[of_positive - none], self._tensor(column[positive])),
            self._tensor(self._weight[which]),
        )

    def _item_inputs(self, items: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        """The item tower's inputs of some items of the catalogue; some lose their code."""
        chosen = self._tensor(items)
        inputs = {name: values[chosen] for name, values in self._rows.items()}
        lost = self._tensor(rng.random(len(items)) < self._recipe.item_dropout)
        inputs["item_code"] = inputs["item_code"].masked_fill(lost, 0)
        return inputs

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _batches(runs: list[NDArray[np.int64]], requests: int, rng: np.random.Generator) -> list[list[NDArray[np.int64]]]:
    """Runs in random order, in batches of about so many requests; of a batch all are about equally long."""
    order = rng.permutation(len(runs))
    lengths = np.array([len(run) for run in runs])
    pool = max(1, 16 * requests // MAX_REQUESTS)
    batches: list[list[NDArray[np.int64]]] = []
    for begin in range(0, len(order), pool):
        some = order[begin : begin + pool]
        some = some[np.argsort(lengths[some], kind="stable")]
        group = np.cumsum(lengths[some]) // requests
        batches += [[runs[n] for n in some[group == number]] for number in np.unique(group)]
    return [batches[n] for n in rng.permutation(len(batches))]


def _worth(target: NDArray[np.bool_], recipe: Recipe) -> NDArray[np.float64]:
    """float64[P]: 1 for a target; lesser events never weigh more, all together, than `lesser_events` of all targets."""
    lesser = np.count_nonzero(~target)
    worth = recipe.lesser_events * min(1.0, np.count_nonzero(target) / lesser) if lesser else 0.0
    return np.where(target, 1.0, worth)
