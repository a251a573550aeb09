"""The vectors that items must have: the bundle's item tower, run by ONNX Runtime directly on inputs made here."""

import json
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class ItemTower:
    """The item tower of a bundle folder. Knows the kinds of field that the MovieLens spec has: multi and bucket."""

    def __init__(self, folder: Path) -> None:
        words = json.loads((folder / "vocabularies.json").read_text())
        self.spec: dict[str, Any] = tomllib.loads((folder / "features.toml").read_text())
        self._codes = {item_id: code for code, item_id in enumerate(words["item_ids"], 1)}
        self._values: dict[str, list[str]] = words["values"]
        self._session = onnxruntime.InferenceSession(str(folder / "item_tower.onnx"))

    def embed(self, item_ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> list[NDArray[np.float32]]:
        """float32[N, D] twice: what is indexed, and what stands in the item table."""
        inputs: dict[str, NDArray[Any]] = {
            "item_code": np.array([self._codes.get(each, 0) for each in item_ids], dtype=np.int64)
        }
        for name, declared in self.spec["item"].items():
            column = [row.get(name) for row in attributes]
            if declared["kind"] == "multi":
                inputs[f"item_{name}"] = self._multi(self._values[f"item.{name}"], column)
            elif declared["kind"] == "bucket":
                inputs[f"item_{name}"] = np.array([_bucket(declared["edges"], each) for each in column], dtype=np.int64)
            else:
                raise ValueError(f"the model knows no field of kind {declared['kind']}")
        return self._session.run(["item_embedding", "history_embedding"], inputs)  # type: ignore[no-any-return]

    def _multi(self, values: Sequence[str], column: Sequence[Any]) -> NDArray[np.float32]:
        rows = [[float(value in (given or ())) for value in values] for given in column]
        return np.array(rows, dtype=np.float32).reshape(len(column), len(values))


def _bucket(edges: Sequence[float], value: Any) -> int:
    return 1 + bisect_right(edges, value) if isinstance(value, int | float) else 0
