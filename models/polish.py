"""One epoch of Adam on a sampled softmax over cosines, started from the closed form. numpy only.

Negatives are shared by a batch and drawn with probability ~ count^0.75; their logits are corrected by log Q (Bengio and
Senecal 2008, "Adaptive importance sampling"; Yi et al. 2019 for two towers), the target's own repeats are masked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.samples import Samples

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class PolishOptions:
    """Hyperparameters, tuned on the validation window of MovieLens-1M."""

    batch: int = 1024
    negatives: int = 1024
    learning_rate: float = 7e-3
    temperature: float = 12.0
    dropout: float = 0.2
    weight_decay: float = 0.05
    warmup: int = 50
    beta1: float = 0.9
    beta2: float = 0.98


def polish(
    samples: Samples,
    factors: tuple[Float32, Float32, Float32],
    seed: int,
    progress: Callable[[float], None],
    options: PolishOptions = PolishOptions(),
) -> tuple[Float32, Float32, Float32]:
    """History, dense and item factors after one epoch; user and item vectors are meant to be scaled to length 1."""
    rng = np.random.default_rng(seed)
    history, dense, item = factors
    joint = (_size(history) or _size(dense) or 1.0) / 0.1  # history is all zero where nobody has a past
    start = item / _size(item) * 0.1 + 1e-3 * rng.standard_normal(item.shape)
    parameters = [history / joint, dense / joint, start, np.array([np.log(options.temperature)])]
    parameters = [parameter.astype(np.float32) for parameter in parameters]
    adam = _Adam(parameters, options)
    draw = _Negatives(samples.item, len(item), options.negatives, rng)
    steps = len(samples.item) // options.batch
    order = rng.permutation(len(samples.item))
    for step in range(1, steps + 1):
        chosen = order[(step - 1) * options.batch :][: options.batch]
        x, z = samples.history[samples.request[chosen]], samples.dense[samples.request[chosen]]
        x.data *= rng.random(len(x.data), dtype=np.float32) > options.dropout
        gradients = _gradients(x, z, samples.item[chosen], parameters, draw)
        cosine = 0.5 * (1 + np.cos(np.pi * step / steps)) * 0.95 + 0.05
        adam.update(gradients, step, options.learning_rate * min(1, step / options.warmup) * cosine)
        if step % 20 == 0:
            progress(step / steps)
    return parameters[0], parameters[1], unit(parameters[2])[0]


def _size(table: Float32) -> np.float32:
    """The root mean square, in float32."""
    size: np.float32 = np.sqrt((table**2).mean())
    return size


def unit(rows: Float32) -> tuple[Float32, Float32]:
    """Rows scaled to length 1, and float32[n, 1], their lengths."""
    length = np.sqrt((rows * rows).sum(1, keepdims=True)) + 1e-6
    return rows / length, length


class _Negatives:
    """Draws the negatives of a batch, and knows the log probability of each item being among them."""

    def __init__(self, targets: NDArray[np.int64], items: int, count: int, rng: np.random.Generator) -> None:
        probability = (np.bincount(targets, minlength=items) + 0.1) ** 0.75
        probability /= probability.sum()
        self._cumulative = probability.cumsum()
        self._count = count
        self._rng = rng
        with np.errstate(divide="ignore"):  # an only item is drawn for certain: log1p(-1) is -inf
            self.log_q = np.log(-np.expm1(count * np.log1p(-probability)) + 1e-12).astype(np.float32)

    def draw(self) -> NDArray[np.int64]:
        found = np.searchsorted(self._cumulative, self._rng.random(self._count))
        return np.unique(found).clip(0, len(self._cumulative) - 1)


def _gradients(
    x: sp.csr_matrix, z: Float32, target: NDArray[np.int64], parameters: list[Float32], negatives: _Negatives
) -> list[Float32]:
    """Gradients of the mean loss with respect to history, dense and item factors and the log temperature."""
    history, dense, item, log_temperature = parameters
    temperature, batch = np.exp(log_temperature[0]), len(target)
    drawn = negatives.draw()
    users, user_length = unit(x @ history + z @ dense)
    others, other_length = unit(item[drawn])
    wanted, wanted_length = unit(item[target])

    weight = temperature * (users @ others.T) - (negatives.log_q[drawn] + temperature)
    weight[target[:, None] == drawn] = -1e4
    np.exp(weight, out=weight)
    score = (users * wanted).sum(1)
    positive = np.exp(temperature * (score - 1))
    total = weight.sum(1) + positive
    weight *= (1 / (total * batch))[:, None]
    pull = (positive / total - 1) / batch

    spread = weight @ others
    d_user = _through_unit(temperature * (spread + pull[:, None] * wanted), users, user_length)
    d_wanted = _through_unit(temperature * pull[:, None] * users, wanted, wanted_length)
    ones = np.ones(batch, np.float32)
    d_item = sp.csr_matrix((ones, (target, np.arange(batch))), shape=(len(item), batch)) @ d_wanted
    d_item[drawn] += _through_unit(temperature * (weight.T @ users), others, other_length)
    d_temperature = np.array([temperature * ((spread * users).sum() + (pull * score).sum())])
    return [x.T @ d_user, z.T @ d_user, d_item, d_temperature]


def _through_unit(gradient: Float32, scaled: Float32, length: Float32) -> Float32:
    through: Float32 = (gradient - scaled * (gradient * scaled).sum(1, keepdims=True)) / length
    return through


class _Adam:
    """Adam with decoupled weight decay, in place."""

    def __init__(self, parameters: list[Float32], options: PolishOptions) -> None:
        self._parameters = parameters
        self._options = options
        self._first = [np.zeros_like(parameter) for parameter in parameters]
        self._second = [np.zeros_like(parameter) for parameter in parameters]

    def update(self, gradients: list[Float32], step: int, rate: float) -> None:
        beta1, beta2 = self._options.beta1, self._options.beta2
        for parameter, gradient, first, second in zip(
            self._parameters, gradients, self._first, self._second, strict=True
        ):
            first *= beta1
            first += (1 - beta1) * gradient
            second *= beta2
            second += (1 - beta2) * gradient * gradient
            parameter *= 1 - rate * self._options.weight_decay
            corrected = np.sqrt(second / (1 - beta2**step)) + 1e-8
            parameter -= rate * (first / (1 - beta1**step)) / corrected
