"""Trainings of one pair each, from the closed form on: one, or several at once, each in a process of its own.

A process, not a thread: torch's threads and its source of random numbers are the process's.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from models.event_log import Catalogue, EventLog
from models.fit import FitError
from models.tensors import Encoding, Inputs
from models.training import start, validation
from models.training.options import TrainOptions
from models.training.samples import TrainingSet
from models.training.towers import ItemTower, UserTower
from models.training.trainer import Report, Trainer, Validate

Progress = Callable[[str, float], None]
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Data:
    """What is trained on: `rows` are the item tower's inputs of the catalogue."""

    log: EventLog
    catalogue: Catalogue
    encoding: Encoding
    rows: Inputs
    samples: TrainingSet


@dataclass(frozen=True)
class Found:
    """A trained pair, on the CPU."""

    pair: tuple[UserTower, ItemTower]
    report: Report


def train_pair(
    data: Data, options: TrainOptions, name: str, progress: Progress, validate: Validate | None = None
) -> Found:
    """One training from its start: closed form, epochs. `name` is that of its checkpoint."""
    torch.manual_seed(options.seed)
    shape = options.architecture.of_member()
    first = start.closed_form(data.log, data.catalogue, data.encoding, shape.dim, options.seed, progress)
    pair = start.towers(first, data.rows, data.samples.inputs, data.encoding, shape)
    checkpoint = None if options.checkpoints is None else options.checkpoints / f"{name}.pt"
    trainer = Trainer(pair, data.samples, data.rows, options.recipe, options.seed, options.device, checkpoint)
    if options.resume and trainer.resume():
        progress("resumed", 0.0)
    return Found(pair, trainer.run(validate, progress))


def train_members(data: Data, members: Sequence[TrainOptions], progress: Progress) -> list[Found]:
    """One training for each, in their order; on the CPU as many at once as there are threads for.

    Raises FitError when one of the processes dies.
    """
    of_all = members[0]
    processes = min(len(members), of_all.threads) if of_all.device == "cpu" else 1
    if processes == 1:
        return [_member(data, options, n, _named(n, len(members), progress)) for n, options in enumerate(members)]
    told: Any = torch.multiprocessing.get_context("spawn").Queue()
    with tempfile.TemporaryDirectory() as folder:
        work = (data, members, processes, torch.get_num_threads(), told, Path(folder))
        running = torch.multiprocessing.start_processes(_in_process, work, processes, join=False, start_method="spawn")
        assert running is not None  # noqa: S101  # for the types: it is with join=False
        try:
            while not running.join(LOOK_EVERY_S):
                _tell(told, len(members), progress)
        except (ProcessExitedException, ProcessRaisedException) as error:
            last = str(error).strip().splitlines()[-1]
            raise FitError(f"the process that trained a member ended: {last}") from error
        finally:
            for process in running.processes:
                process.kill()
        return [torch.load(_result(Path(folder), n), weights_only=False) for n in range(len(members))]


def _tell(told: Any, members: int, progress: Progress) -> None:
    """What the processes have said since, each of its own members."""
    try:
        while True:
            number, what, part = told.get_nowait()
            progress(_named_as(number, members) + what, part)
    except Empty:
        pass


def _in_process(
    place: int, data: Data, members: Sequence[TrainOptions], processes: int, threads: int, told: Any, folder: Path
) -> None:
    """Every so many members, beginning with that of the process' place."""
    torch.set_num_threads(threads)
    for number in range(place, len(members), processes):
        found = _member(data, members[number], number, partial(_put, told, number))
        torch.save(found, _result(folder, number))


def _put(told: Any, number: int, what: str, part: float) -> None:
    told.put((number, what, part))


def _result(folder: Path, number: int) -> Path:
    return folder / f"{number}.pt"


def _member(data: Data, options: TrainOptions, number: int, progress: Progress) -> Found:
    validate = validation.left_out(data.catalogue, data.encoding, options)
    return train_pair(data, options, f"member-{number + 1}", progress, validate)


def _named(number: int, of: int, progress: Progress) -> Progress:
    return lambda what, part: progress(_named_as(number, of) + what, part)


def _named_as(number: int, of: int) -> str:
    return f"member {number + 1} of {of}: " if of > 1 else ""
