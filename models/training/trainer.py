"""The training loop: batches of requests, AdamW, averaged weights, early stopping, checkpoints that can be gone on with."""

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

from models.spec import Spec
from models.tensors import Inputs
from models.training.loss import Negatives, softmax_loss
from models.training.samples import HISTORY_VECTORS, TrainingSet
from models.training.towers import ItemTower, UserTower

Progress = Callable[[str, float], None]
Validate = Callable[[UserTower, ItemTower], float]
"""How good towers are, the more the better; called between epochs."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, tuned on the validation window of MovieLens-1M."""

    epochs: int = 4
    batch: int = 256  # requests
    negatives: int = 8192  # candidates per batch; every item where there are no more
    learning_rate: float = 1e-3
    tables_learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 100  # steps
    final_rate: float = 0.05  # of the learning rate, reached along a cosine
    half_weight_days: float = 200.0  # a request's weight is exp(-age / this)
    item_dropout: float = 0.1  # of rows of their own, so that content alone is worth something
    history_dropout: float = 0.1  # of events
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
        spec: Spec,
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
        self._weight = np.exp(-samples.age_days() / recipe.half_weight_days).astype(np.float32)
        self._seen_codes = _seen_codes(spec)
        tables = [towers[1].indexed, towers[1].history]
        of_tables = {id(table) for table in tables}
        networks = [each for each in self._pair.parameters() if id(each) not in of_tables]
        groups = [{"params": networks, "rate": recipe.learning_rate}, {"params": tables, "rate": recipe.tables_learning_rate}]
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

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return max(1, len(self._samples) // self._recipe.batch)

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
        """Go on where the checkpoint was written. False when there is none of this training."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return False
        state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        if state["identity"] != self._identity():
            return False
        self._pair.load_state_dict(state["towers"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self._step, self._epoch = state["best"], state["step"], state["epoch"]
        self._losses, self._validations, self._trained_s = state["losses"], state["validations"], state["trained_s"]
        return True

    def _identity(self) -> dict[str, Any]:
        """What makes a training the same: its recipe, seed and samples."""
        samples = [len(self._samples), len(self._samples.item), int(self._samples.as_of_ms.sum() % 2**53)]
        return {"recipe": asdict(self._recipe), "seed": self._seed, "samples": samples}

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
        order = rng.permutation(len(self._samples))
        self._pair.train()
        total = 0.0
        for number in range(self.steps):
            rows = np.sort(order[number * self._recipe.batch :][: self._recipe.batch])
            total += self._train_step(rows, rng)
            if number % 20 == 0:
                done = (self._epoch + number / self.steps) / self._recipe.epochs
                progress(f"training, epoch {self._epoch + 1}, loss {total / (number + 1):.3f}", done)
        self._epoch += 1
        self._losses.append(total / self.steps)
        self._trained_s += time.perf_counter() - started

    def _train_step(self, rows: NDArray[np.int64], rng: np.random.Generator) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * self._rate()
        loss = self._loss(rows, rng)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._pair.parameters(), self._recipe.clip)
        self._optimizer.step()
        self._step += 1
        self._average()
        return float(loss.detach())

    def _rate(self) -> float:
        steps = self.steps * self._recipe.epochs
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._step / steps)))
        rising = min(1.0, (self._step + 1) / self._recipe.warmup)
        return rising * (self._recipe.final_rate + (1 - self._recipe.final_rate) * cosine)

    def _average(self) -> None:
        """Exponential mean of the weights: what is validated and kept (Polyak and Juditsky 1992)."""
        keep = min(self._recipe.averaging, self._step / (self._step + 10))
        with torch.no_grad():
            for mean, value in zip(self._averaged.parameters(), self._pair.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)

    def _loss(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        user, item = self._pair
        history = self._samples.history[rows]
        inputs = self._samples.batch(rows)
        drop = rng.random(history.shape) < self._recipe.history_dropout
        codes = inputs["history_codes"]
        hidden_row, hidden_item = _candidates_seen(history, self._seen_codes[codes])
        inputs["history_codes"] = np.where(drop, 0, codes)
        drawn, log_q = self._negatives.draw(rng)
        row, positive = self._samples.positives(rows)

        needed, place = np.unique(np.concatenate([history.ravel(), positive, drawn]), return_inverse=True)
        none = int(needed[0] < 0)  # -1: no item
        indexed, past = item(self._item_inputs(needed[none:], rng))
        past = torch.cat([torch.zeros_like(past[:none]), past])
        place = torch.from_numpy(place - none).to(self._device)
        sizes = (history.size, len(positive), len(drawn))
        of_history, of_positive, of_drawn = place.split(sizes)
        tensors = {name: torch.from_numpy(values).to(self._device) for name, values in inputs.items()}
        vectors = nn.functional.embedding(of_history + none, past).unflatten(0, history.shape)
        vectors = vectors * (tensors["history_codes"] > 0)[:, :, None]
        users = user(tensors | {HISTORY_VECTORS: vectors})
        columns = np.full(int(needed[-1]) + 1, -1)
        columns[drawn] = np.arange(len(drawn))
        inside = (hidden_item < len(columns)) & (columns[np.minimum(hidden_item, len(columns) - 1)] >= 0)
        on = [self._index(hidden_row[inside]), self._index(columns[hidden_item[inside]])]
        return softmax_loss(
            users,
            indexed[of_drawn],
            torch.from_numpy(log_q).to(self._device),
            (on[0], on[1]),
            (self._index(row), indexed[of_positive], self._index(columns[positive])),
            torch.from_numpy(self._weight[rows][row]).to(self._device),
        )

    def _item_inputs(self, items: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        """The item tower's inputs of some items of the catalogue; some lose their code."""
        chosen = self._index(items)
        inputs = {name: values[chosen] for name, values in self._rows.items()}
        lost = torch.from_numpy(rng.random(len(items)) < self._recipe.item_dropout).to(self._device)
        inputs["item_code"] = inputs["item_code"].masked_fill(lost, 0)
        return inputs

    def _index(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _seen_codes(spec: Spec) -> NDArray[np.bool_]:
    """bool[codes + 1]: events that take their item out of the candidates, as far as their code tells."""
    seen = [not spec.seen_actions or code.action in spec.seen_actions for code in spec.history.codes]
    return np.array([not spec.seen_actions, *seen])


def _candidates_seen(
    history: NDArray[np.int32], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (row, catalogue index) of what stands in the history and counts as seen."""
    row, column = np.nonzero(seen & (history >= 0))
    return row, history[row, column].astype(np.int64)
