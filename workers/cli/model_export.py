"""`recall model export`: a bundle's towers as files for model servers."""

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from workers.cli.bundles import bundle_folder
from workers.errors import ConfigurationError, ExtraMissing
from workers.settings import load_settings


class Format(StrEnum):
    """What model servers read."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    TORCHSERVE = "torchserve"


def export(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its version among those of the data folder.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write to; it is made.")],
    kind: Annotated[
        Format, typer.Option("--format", help="torchscript and torchserve only for bundles of `recall model train`.")
    ] = Format.ONNX,
) -> None:
    """Write both towers of a bundle as files for model servers."""
    if kind is not Format.ONNX and find_spec("torch") is None:
        raise ExtraMissing("TorchScript", "train")
    from models.bundle import BundleError, load_bundle
    from workers.exporting import export_bundle

    try:
        paths = export_bundle(load_bundle(bundle_folder(bundle, load_settings())), kind.value, to)
    except BundleError as error:
        raise ConfigurationError(str(error)) from error
    for path in paths:
        print(path)
