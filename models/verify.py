"""What a tower must be to be served. One implementation: `recall model verify` does all of it, a start the cheap part.

Every check returns one line that says what it has seen, and raises Unfit with one line when it fails. A tower is given
as what its file declares, and as a function that runs it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models import probes
from models.bundle import Metric
from models.signature import Array, Arrays
from models.tensors import Encoding, Inputs

BATCH = 64
TOLERANCE = 1e-5  # of a batch's rows against the same rows alone, relative to a row's largest value above 1
MAX_LENGTH = 1e15  # of a vector: scores of longer ones may overflow 32 bits, and with one of them its list is lost
DISTINCT_SHARE = 0.5  # of different items' vectors that differ
FOUND_SHARE = 0.25  # of users nearest to themselves a minute later; chance is 1 of the sample
CHANCE_SD = 12**-0.5  # of one place between 0 and 1 that chance gives; means have to be 3 of their own below .5
TINY = 1e-30
PLACES = 4  # digits of the largest value by which vectors are told apart

Side = Literal["user", "item"]
Float32 = NDArray[np.float32]
Run = Callable[[Inputs], Mapping[str, Float32]]


class Unfit(ValueError):
    """A tower that must not be served; one line that says why."""


@dataclass(frozen=True)
class Declared:
    """An input or output as a file declares it: element type and all axes, a free one being a name or None."""

    type: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        """For a line of an error."""
        return f"{self.type}[{', '.join('?' if axis is None else str(axis) for axis in self.shape)}]"


def check_declared(side: Literal["input", "output"], found: Mapping[str, Declared], expected: Arrays) -> str:
    """Names, types and shapes are those of the bundle, and the batch is free."""
    for name in [*expected, *sorted(found.keys() - expected.keys())]:
        there, wanted = found.get(name), expected.get(name)
        if there is None or wanted is None or (there.type, there.shape[1:]) != (wanted.type, wanted.shape):
            raise Unfit(f"{side} {name!r} is {there or 'missing'}, the bundle says {_described(wanted)}")
        if not there.shape or isinstance(there.shape[0], int):
            raise Unfit(f"{side} {name!r} is {there}, its batch must be free: a dynamic first axis")
    return f"{len(expected)} {side}s: names, types and shapes are the bundle's, the batch is free"


def check_runs(run: Run, inputs: Inputs, outputs: Arrays) -> str:
    """It runs, and gives finite float32 vectors of the declared shape for every row."""
    rows = _rows(inputs)
    for name, found in _run(run, inputs).items():
        wanted = (rows, *outputs[name].shape)
        if found.shape != wanted or found.dtype != np.float32:
            shape, expected = (", ".join(map(str, each)) for each in (found.shape, wanted))
            raise Unfit(f"output {name!r} is {found.dtype}[{shape}] for {rows} rows, not float32[{expected}]")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            whose = ", also where nothing is known" if bad[0] == 0 else ""
            raise Unfit(f"output {name!r} is not finite for {len(bad)} of {rows} rows{whose}")
        longest = float(np.sqrt((found.astype(np.float64) ** 2).sum(axis=1)).max(initial=0))
        if longest > MAX_LENGTH:
            raise Unfit(f"output {name!r} has a vector of length {longest:.3g}: scores may overflow")
    return f"runs, finite for all of {rows} rows"


def check_batch(run: Run, inputs: Inputs, alone: int = BATCH) -> str:
    """A row's outputs do not depend on its batch: `alone` rows by themselves are as they are among all."""
    rows = _rows(inputs)
    together = _run(run, inputs)
    worst = 0.0
    for row in range(min(alone, rows)):
        single = _run(run, {name: column[row : row + 1] for name, column in inputs.items()})
        for name, among in together.items():
            if single[name].shape != among[row : row + 1].shape:
                shapes = f"{list(single[name].shape)} at batch 1, {list(among.shape)} at batch {rows}"
                raise Unfit(f"output {name!r} has a shape that depends on the batch: {shapes}")
            differs, largest = (float(np.abs(each).max()) for each in (single[name][0] - among[row], among[row]))
            differs /= max(1.0, largest)
            worst = max(worst, differs)
            if not differs <= TOLERANCE:
                line = f"differs by {differs:.2g} between batch 1 and batch {rows}, {TOLERANCE:.0e} is allowed"
                raise Unfit(f"output {name!r} {line}")
    return f"batch 1 and batch {rows} differ by {worst:.1g}, {TOLERANCE:.0e} is allowed"


def check_start(run: Run, inputs: Inputs, outputs: Arrays) -> str:
    """What a worker checks of a tower at start, beyond what it declares; a few runs."""
    check_runs(run, inputs, outputs)
    return check_batch(run, inputs, alone=4)


def check_same(found: Mapping[str, Float32], own: Mapping[str, Float32]) -> str:
    """The vectors of a tower that runs elsewhere are those of the bundle's own file, row by row."""
    worst = 0.0
    for name, wanted in own.items():
        largest = np.maximum(1.0, np.abs(wanted).max(axis=1, initial=0))
        differs = float((np.abs(found[name] - wanted).max(axis=1, initial=0) / largest).max(initial=0))
        worst = max(worst, differs)
        if not differs <= TOLERANCE:
            line = f"differs by {differs:.2g} from the bundle's own tower, {TOLERANCE:.0e} is allowed"
            raise Unfit(f"output {name!r} {line}: another version, or another model")
    return f"differs by {worst:.1g} from the bundle's own tower, {TOLERANCE:.0e} is allowed"


def check_metric(metric: Metric, users: Float32, items: Float32) -> str:
    """The metric can compare these vectors."""
    lengths = np.linalg.norm(items.astype(np.float64), axis=1)
    if metric == "COSINE":
        for what, vectors in (("user", users), ("item", items)):
            zero = int((np.linalg.norm(vectors.astype(np.float64), axis=1) == 0).sum())
            if zero:
                raise Unfit(f"COSINE cannot compare vectors of length 0: {zero} of {len(vectors)} {what} vectors")
    return f"{metric}; item vectors have lengths {lengths.min():.3g} to {lengths.max():.3g}"


def check_items_differ(items: int, outputs: Mapping[str, Float32]) -> str:
    """Different items have different vectors; `items` is how many there are, each with other inputs."""
    if items < 2:
        raise Unfit("all items of the sample have the same inputs: neither vocabulary nor fields tell them apart")
    said = []
    for name, vectors in outputs.items():
        scale = max(float(np.abs(vectors).max(initial=0)), TINY)
        distinct = len(np.unique(np.round(vectors.astype(np.float64) / scale, PLACES), axis=0))
        if distinct < max(2.0, DISTINCT_SHARE * items):
            raise Unfit(f"{items} different items have {distinct} different vectors in {name!r}")
        said.append(f"{distinct} in {name!r}")
    return f"{items} different items have different vectors: {', '.join(said)}"


def check_users_found(before: Float32, after: Float32) -> str:
    """Users are told apart: most are nearest to themselves a minute later, among all of the sample."""
    distances = _squared_distances(before, after)
    own = np.diagonal(distances)
    nearer = (distances <= own[:, None]).sum(axis=1) - 1  # others as near count against it
    found, users = int((nearer == 0).sum()), len(before)
    line = f"{found} of {users} users are nearest to themselves a minute later"
    if found < max(2.0, FOUND_SHARE * users):
        raise Unfit(f"{line}: the user tower hardly tells them apart (chance is 1)")
    return line


def check_seen_counts(metric: Metric, users: Float32, items: Float32) -> str:
    """What a user has seen speaks for its item, more than chance would.

    User n has seen item n alone. For every item, where does its user stand among all, by score? 0 first, .5 by chance.
    Popularity and lengths of user vectors are no help: it is one item, compared between users. Towers of different
    trainings, whose vectors have nothing in common, do not reach it.
    """
    scores = _scores(metric, users, items)
    own = np.diagonal(scores)
    above = (scores > own).sum(axis=0) + 0.5 * ((scores == own).sum(axis=0) - 1)
    place = float((above / max(1, len(items) - 1)).mean())
    needed = 0.5 - 3 * CHANCE_SD / len(items) ** 0.5
    line = f"the users who have just seen an item stand at {place:.2f} of all by its score (0 first, 0.50 chance)"
    if place >= needed:
        raise Unfit(f"{line}, below {needed:.2f} is needed: user tower and history do not fit the item vectors")
    return line


def start_inputs(side: Side, encoding: Encoding, dim: int) -> Inputs:
    """The rows that towers are tried on at start; no number is drawn, since a tower may refuse some."""
    if side == "item":
        return probes.items(encoding, BATCH, numbers=False)
    vectors = np.random.default_rng(0).standard_normal((BATCH, dim)).astype(np.float32)
    return probes.users(encoding, vectors / np.float32(dim**0.5), BATCH, numbers=False)


def _run(run: Run, inputs: Inputs) -> Mapping[str, Float32]:
    try:
        return run(inputs)
    except Exception as error:  # runtimes' exceptions share no base class but this
        raise Unfit(f"fails on {_rows(inputs)} rows: {' '.join(str(error).split())}") from error


def _rows(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _described(array: Array | None) -> str:
    return "missing" if array is None else str(Declared(array.type, ("batch", *array.shape)))


def _scores(metric: Metric, users: Float32, items: Float32) -> NDArray[np.float64]:
    """float64[B, N], higher is better."""
    if metric == "L2":
        return -_squared_distances(users, items)
    wide, rows = users.astype(np.float64), items.astype(np.float64)
    if metric == "COSINE":
        wide, rows = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), TINY) for each in (wide, rows))
    return wide @ rows.T


def _squared_distances(left: Float32, right: Float32) -> NDArray[np.float64]:
    """float64[B, N], of differences: what is equal is 0."""
    wide, rows = left.astype(np.float64), right.astype(np.float64)
    return np.stack([((row - rows) ** 2).sum(axis=1) for row in wide])
