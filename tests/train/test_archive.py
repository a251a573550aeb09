"""TorchServe archives: what stands in them, and that their handler answers what the ONNX towers give."""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import signature, tensors
from models.bundle import load_bundle
from models.tensors import Inputs
from models.training.samples import HISTORY_VECTORS, training_set
from tests.train.conftest import Trained
from workers.exporting import export_bundle
from workers.fitting import TOWER_TIMEOUT_MS
from workers.towers.onnx import open_tower


class Server:
    """What TorchServe is to a handler: it unpacks the archive, imports its one class and says who asks."""

    def __init__(self, mar: Path, folder: Path) -> None:
        with zipfile.ZipFile(mar) as file:
            file.extractall(folder)
            self.names = file.namelist()
        self.manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
        self.model = self.manifest["model"]
        path = folder / self.model["handler"]
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (self._class,) = [each for each in vars(module).values() if getattr(each, "__module__", "") == path.stem]
        self._handler = self._class()
        self.statuses: dict[int, int] = {}
        self._handler.initialize(self._context(folder))

    def _context(self, folder: Path) -> Any:
        def respond(code: int, phrase: str, idx: int) -> None:
            self.statuses[idx] = code

        self._asked = SimpleNamespace(
            system_properties={"model_dir": str(folder), "gpu_id": None},
            manifest=self.manifest,
            set_response_status=respond,
        )
        return self._asked

    def answers(self, *bodies: Any) -> list[dict[str, Any]]:
        self.statuses.clear()
        found: list[dict[str, Any]] = self._handler.handle([{"body": body} for body in bodies], self._asked)
        return found


def rows(inputs: Inputs, begin: int, end: int) -> dict[str, Any]:
    return {name: values[begin:end].tolist() for name, values in inputs.items()}


@pytest.mark.parametrize("model", ["films", "offers"])
@pytest.mark.parametrize("side", ["user", "item"])
def test_a_handler_answers_what_onnx_gives(side: str, model: str, tmp_path: Path, request: Any) -> None:
    trained: Trained = request.getfixturevalue(model)
    bundle, dataset = load_bundle(trained.bundle.path), trained.dataset
    paths = export_bundle(bundle, "torchserve", tmp_path / "made")
    assert [path.name for path in paths] == ["user_tower.mar", "item_tower.mar"]
    server = Server(tmp_path / "made" / f"{side}_tower.mar", tmp_path / side)
    assert server.model["modelName"] == f"{side}_tower"
    assert server.model["modelVersion"] == bundle.version
    assert {"MAR-INF/MANIFEST.json", server.model["serializedFile"], server.model["handler"]} < set(server.names)
    if side == "user":
        samples = training_set(dataset.log, dataset.catalogue(), bundle.encoding)
        inputs = samples.batch(np.arange(0, 50, 10))
        shape = (5, bundle.spec.history.length, bundle.dim)
        inputs[HISTORY_VECTORS] = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        outputs = signature.user_outputs(bundle.dim)
    else:
        inputs = tensors.item_inputs(dataset.item_ids[:5], dataset.attributes[:5], bundle.encoding)
        outputs = signature.item_outputs(bundle.dim)
    wanted = open_tower(bundle, side, TOWER_TIMEOUT_MS).run(inputs)  # type: ignore[arg-type]
    first, second = rows(inputs, 0, 3), json.dumps(rows(inputs, 3, 5)).encode()
    answers = server.answers(first, second)
    assert server.statuses == {}
    for name in outputs:
        found = np.array([*answers[0][name], *answers[1][name]], dtype=np.float32)
        np.testing.assert_allclose(found, wanted[name], atol=1e-5)
    assert [list(answer) for answer in answers] == [list(outputs)] * 2


def test_a_bad_request_is_answered_alone(films: Trained, tmp_path: Path) -> None:
    bundle, dataset = load_bundle(films.bundle.path), films.dataset
    export_bundle(bundle, "torchserve", tmp_path)
    server = Server(tmp_path / "item_tower.mar", tmp_path / "item")
    good = rows(tensors.item_inputs(dataset.item_ids[:2], dataset.attributes[:2], bundle.encoding), 0, 2)
    bad = {
        "no JSON": b"{",
        "a list": [],
        "a name is missing": {"item_code": [1, 2]},
        "fractions": good | {"item_code": [1.5, 2.5]},
        "too few rows": good | {"item_code": [1]},
        "too few columns": good | {"item_genres": [[1.0], [0.0]]},
        "ragged": good | {"item_genres": [[1.0], [0.0, 1.0]]},
        "text": good | {"item_code": ["1", "2"]},
        "no rows": {name: [] for name in good},
    }
    answers = server.answers(*bad.values(), good)
    assert server.statuses == dict.fromkeys(range(len(bad)), 400)
    assert [list(answer) for answer in answers[:-1]] == [["error"]] * len(bad)
    assert "item_code must be integers" in answers[3]["error"]
    assert list(answers[-1]) == list(signature.item_outputs(bundle.dim))
