"""Towers of a bundle as files for model servers."""

from pathlib import Path
from typing import Literal

from models import signature
from models.bundle import Bundle
from models.fit import FitError
from workers.errors import ConfigurationError, RecallError


def export_bundle(bundle: Bundle, kind: Literal["onnx", "torchscript"], folder: Path) -> list[Path]:
    """Write user and item tower to a folder; their paths. Raises RecallError, ConfigurationError with one line."""
    if kind == "onnx":
        contents = {path.name: path.read_bytes() for path in (bundle.user_tower, bundle.item_tower)}
    else:
        contents = _torchscript(bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in contents]


def _torchscript(bundle: Bundle) -> dict[str, bytes]:
    from models.training.script import torchscript
    from models.training.weights import load_weights

    try:
        user, item = load_weights(bundle.path, bundle.encoding)
    except FitError as error:
        raise RecallError(str(error)) from error
    return {
        "user_tower.pt": torchscript(user, signature.user_inputs(bundle.encoding, bundle.dim)),
        "item_tower.pt": torchscript(item, signature.item_inputs(bundle.encoding)),
    }
