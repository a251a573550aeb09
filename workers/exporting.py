"""Towers of a bundle as files for model servers."""

from pathlib import Path
from typing import Literal

from models import signature
from models.bundle import Bundle
from models.fit import FitError
from workers.errors import ConfigurationError, RecallError

Kind = Literal["onnx", "torchscript", "torchserve"]


def export_bundle(bundle: Bundle, kind: Kind, folder: Path) -> list[Path]:
    """Write user and item tower to a folder; their paths. Raises RecallError, ConfigurationError with one line."""
    if kind == "onnx":
        contents = {path.name: path.read_bytes() for path in (bundle.user_tower, bundle.item_tower)}
    else:
        contents = _torch(bundle, archives=kind == "torchserve")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in contents]


def _torch(bundle: Bundle, *, archives: bool) -> dict[str, bytes]:
    """TorchScript, or archives that hold it."""
    from models.training.archive import archive
    from models.training.script import torchscript
    from models.training.weights import load_weights

    try:
        user, item = load_weights(bundle.path, bundle.encoding)
    except FitError as error:
        raise RecallError(str(error)) from error
    sides = {
        "user_tower": (user, signature.user_inputs(bundle.encoding, bundle.dim), signature.user_outputs(bundle.dim)),
        "item_tower": (item, signature.item_inputs(bundle.encoding), signature.item_outputs(bundle.dim)),
    }
    scripts = {name: torchscript(tower, inputs) for name, (tower, inputs, _) in sides.items()}
    if not archives:
        return {f"{name}.pt": script for name, script in scripts.items()}
    return {
        f"{name}.mar": archive(name, bundle.version, scripts[name], inputs, outputs)
        for name, (_, inputs, outputs) in sides.items()
    }
