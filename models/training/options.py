"""What a training is asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.evaluation.leave_one_out import LeaveOneOut
from models.extractors import Extract
from models.training.towers import Architecture
from models.training.trainer import Recipe


@dataclass(frozen=True)
class TrainOptions:
    """`validation_ms`: where the validation window begins; None = at the newest tenth of events.

    With `leave_one_out`, a split for validation of which the log is `training`, nothing of the log is held out: each
    member is validated on the events that are left out anyway, and keeps the weights of its best epoch.
    On the CPU members are trained at once, each in a process of its own with its share of `threads`.
    `checkpoints` is a folder: how far each training is, after every epoch; `resume` goes on from there.
    """

    architecture: Architecture = field(default_factory=Architecture)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    validate: bool = True
    validation_ms: int | None = None
    leave_one_out: LeaveOneOut | None = None
    checkpoints: Path | None = None
    resume: bool = False
    extractors: Mapping[str, Extract] = field(default_factory=dict)  # the code of those that the spec names
