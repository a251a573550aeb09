"""The models that servers of tests run: a bundle's ONNX towers, by name and version."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from tests.e2e.conftest import fit_small
from workers.towers.onnx import declared

DATASET = generate(60, 60, 2500)
WHOLE_VERSION = "1"  # of servers whose versions are numbers

Arrays = dict[str, NDArray[Any]]


class UnknownModel(Exception):
    """There is no such model, or not in this version."""


class BadInputs(Exception):
    """What was sent is not what the model takes."""


@dataclass
class Model:
    """One tower of one version."""

    name: str
    version: str
    session: Any
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = declared(self.session.get_inputs())
        self.outputs = declared(self.session.get_outputs())

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name. Raises BadInputs, and what the runtime raises when the model fails."""
        for name, wanted in self.inputs.items():
            found = inputs.get(name)
            if found is None or str(found.dtype) != wanted.type or found.shape[1:] != wanted.shape[1:]:
                raise BadInputs(f"input {name} is {found if found is None else found.shape}, declared is {wanted}")
        names = list(self.outputs)
        return dict(zip(names, self.session.run(names, {name: inputs[name] for name in self.inputs}), strict=True))


class Models:
    """All models of a server; of one version each."""

    def __init__(self, bundle: Bundle) -> None:
        self._models = {
            path.stem: Model(path.stem, bundle.version, _session(path))
            for path in (bundle.user_tower, bundle.item_tower)
        }

    def find(self, name: str, version: str = "") -> Model:
        """A model by name and version; none named = the one that there is. Raises UnknownModel."""
        model = self._models.get(name)
        if model is None or version not in {"", model.version, WHOLE_VERSION}:
            raise UnknownModel(f"model {name} version {version or 'any'} is not here")
        return model


def fit_towers(folder: Path, dataset: Dataset = DATASET) -> Bundle:
    """A bundle of the closed form, small unless it is of another data set."""
    return fit_small(dataset, folder)


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path.read_bytes(), options)


def as_array(values: Any, kind: str) -> NDArray[Any]:
    """Nested lists as an array of a declared type. Raises BadInputs."""
    try:
        return np.array(values, dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInputs(str(error)) from error
