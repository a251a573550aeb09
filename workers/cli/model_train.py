"""`recall model train`: a bundle trained with PyTorch, from a data set or from events of your own."""

import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import orjson
import typer

from workers.checkpoints import held_checkpoints
from workers.cli.console import Working
from workers.cli.data_sets import DataSet
from workers.cli.model import activate, print_result
from workers.cli.model_evaluate import Protocol
from workers.errors import ConfigurationError, ExtraMissing
from workers.settings import load_settings


class HistoryEncoder(StrEnum):
    """What turns a history into a vector."""

    TRANSFORMER = "transformer"
    MEAN = "mean"


class Device(StrEnum):
    """Where training runs; auto = on a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def train(
    data: Annotated[DataSet | None, typer.Option(help="A data set; it brings its own spec.")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of item updates, with --activity and --spec.")] = None,
    activity: Annotated[Path | None, typer.Option(help="JSON lines of user activity.")] = None,
    spec: Annotated[Path | None, typer.Option(help="A features.toml; a data set brings its own.")] = None,
    encoder: Annotated[HistoryEncoder, typer.Option(help="Of the history: more accurate, or faster to serve.")] = (
        HistoryEncoder.TRANSFORMER
    ),
    dim: Annotated[int, typer.Option(help="Dimension of the vectors: 32, 64, 128 or 256.")] = 128,
    members: Annotated[int, typer.Option(min=1, help="Pairs of towers side by side; each has its share of dim.")] = 2,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many; the recipe's own when left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of all members; every processor when left out.")] = None,
    device: Annotated[Device, typer.Option(help="auto = a GPU when there is one.")] = Device.AUTO,
    no_validation: Annotated[
        bool, typer.Option("--no-validation", help="Hold nothing out: train all epochs on everything.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
    until_ms: Annotated[int | None, typer.Option(help="Use only what happened before this time (epoch ms).")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Train on what is before the data set's test window and report on it.")
    ] = False,
    protocol: Annotated[
        Protocol, typer.Option(help="leave-one-out: on what it leaves, for `model evaluate`; never activated.")
    ] = Protocol.TEMPORAL,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Leave the active bundle as it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train both towers with PyTorch and make their bundle the active one."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: the start is as fast, and repeatable
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is: threads that spin for each other starve
    if evaluate and data is None:
        raise ConfigurationError("--evaluate needs --data, whose test window is known")
    leave_one_out = protocol is Protocol.LEAVE_ONE_OUT
    if leave_one_out and (evaluate or until_ms is not None):
        raise ConfigurationError("--protocol leave-one-out goes without --evaluate and --until-ms: it has no time")
    if dim not in (32, 64, 128, 256):
        raise ConfigurationError(f"--dim: {dim} is not one of 32, 64, 128, 256")
    if dim % members or dim // members not in (32, 64, 128, 256):
        each = f"--members: each of {members} would have {dim // members} of --dim {dim}"
        raise ConfigurationError(f"{each}, one of 32, 64, 128, 256 is possible")
    if data is None and (items is None or activity is None or spec is None):
        raise ConfigurationError("either --data NAME, or all of --items FILE, --activity FILE and --spec FILE")
    if find_spec("torch") is None:
        raise ExtraMissing("training", "train")
    settings = load_settings()
    with held_checkpoints(settings) as checkpoints, Working("loading PyTorch") as working:
        import torch

        from workers.fitting import fitted_until, read_source, with_extractors
        from workers.training import TrainingJob, processors, run_train

        cuda = torch.cuda.is_available()
        if device is Device.CUDA and not cuda:
            raise ConfigurationError("--device cuda: PyTorch finds no GPU")
        working.update("reading events")
        source = with_extractors(read_source(data, items, activity, spec, working.say), settings)
        job = TrainingJob(
            dim=dim,
            encoder=encoder.value,
            members=members,
            epochs=epochs,
            seed=seed,
            device="cuda" if cuda and device is not Device.CPU else "cpu",
            threads=threads or processors(),
            validate=not no_validation,
            resume=resume,
            until_ms=fitted_until(source, until_ms, evaluate=evaluate),
            evaluate=evaluate,
            leave_one_out=leave_one_out,
        )
        result = run_train(source, job, settings, checkpoints, working.update)
    activated = not no_activate and not leave_one_out
    if activated:
        activate(settings, result)
    if as_json:
        print(orjson.dumps(result).decode())
    else:
        print_result(result, active=activated)
