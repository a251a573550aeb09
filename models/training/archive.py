"""A trained tower as a TorchServe archive (.mar): a zip of manifest, TorchScript, handler and signature.

The format is that of torch-model-archiver 0.12, whose package is not needed to write it.
"""

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

from models.signature import Arrays

HANDLER = Path(__file__).with_name("torchserve_handler.py")


def archive(name: str, version: str, script: bytes, inputs: Arrays, outputs: Arrays) -> bytes:
    """The archive's bytes. `script` is TorchScript that takes the inputs in their order."""
    model = {
        "modelName": name,
        "modelVersion": version,
        "serializedFile": f"{name}.pt",
        "handler": HANDLER.name,
        "extensions": "signature.json",
    }
    signature = {
        "inputs": {each: asdict(array) for each, array in inputs.items()},
        "outputs": {each: asdict(array) for each, array in outputs.items()},
    }
    contents = {
        "MAR-INF/MANIFEST.json": _json({"runtime": "python", "model": model, "archiverVersion": "0.12.0"}),
        f"{name}.pt": script,
        HANDLER.name: HANDLER.read_bytes(),
        "signature.json": _json(signature),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path, content in contents.items():
            file.writestr(path, content)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
