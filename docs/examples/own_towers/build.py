"""Towers of one's own, in two ONNX files: PureSVD (Cremonesi et al., RecSys 2010), with genres for films that are new.

    python build.py items.jsonl activity.jsonl towers
    recall model pack --user-tower towers/user.onnx --item-tower towers/item.onnx \\
        --spec features.toml --vocabularies towers/vocabularies.json

It imports nothing of recall-worker: all that binds it to features.toml are the names, types and shapes of inputs and
outputs. `train` may be anything that ends in such towers. Where they are PyTorch modules, `torch.onnx.export` takes the
place of `user_tower` and `item_tower`: docs/towers.md shows its call.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DIM = 32
HISTORY = 20  # history.length of features.toml
CODE_WEIGHTS = (0.0, 1.0, 0.2)  # none, liked, any other rating
LIKED = 4.0
DEFAULT = 0.05  # how much of the mean user is in everybody: the list of somebody of whom nothing is known

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What training has found."""

    item_ids: Sequence[str]
    genres: Sequence[str]
    items: Float32  # float32[M + 1, D]; row 0, of items that are not known here, is not used
    by_genre: Float32  # float32[G, D]: what tells of the others
    mean_user: Float32  # float32[D]


def read(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def train(items: list[dict[str, Any]], activity: list[dict[str, Any]]) -> Trained:
    """A truncated SVD of users times items; a ridge from genres to its item vectors."""
    genres_of = {each["item_id"]: each["attributes"].get("genres", []) for each in items if each["op"] == "upsert"}
    ratings = [each for each in activity if each["action"] == "rate" and each.get("item_id") in genres_of]
    item_ids, users = sorted(genres_of), sorted({each["user_id"] for each in ratings})
    column, row = ({name: n for n, name in enumerate(names)} for names in (item_ids, users))
    matrix = np.zeros((len(users), len(item_ids)))
    for each in ratings:
        matrix[row[each["user_id"]], column[each["item_id"]]] = CODE_WEIGHTS[1 if each["value"] >= LIKED else 2]
    vectors = np.zeros((len(item_ids), DIM))
    right = np.linalg.svd(matrix, full_matrices=False)[2][:DIM]
    vectors[:, : len(right)] = right.T
    genres = sorted({genre for of_item in genres_of.values() for genre in of_item})
    has = np.array([[genre in genres_of[item_id] for genre in genres] for item_id in item_ids], dtype=np.float64)
    by_genre = np.linalg.solve(has.T @ has + np.eye(len(genres)), has.T @ vectors)
    mean_user = DEFAULT * (matrix @ vectors).mean(axis=0)
    table = np.vstack([np.zeros(DIM), vectors])
    return Trained(item_ids, genres, *(each.astype(np.float32) for each in (table, by_genre, mean_user)))


def user_tower(trained: Trained) -> onnx.ModelProto:
    """user_embedding = mean user + sum of the history's vectors, each by the weight of its code."""
    nodes = [
        helper.make_node("Gather", ["code_weights", "history_codes"], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "last_axis"], ["columns"]),
        helper.make_node("Mul", ["columns", "history_vectors"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "history_axis"], ["history"], keepdims=0),
        helper.make_node("Add", ["history", "mean_user"], ["user_embedding"]),
    ]
    constants = {
        "code_weights": np.array(CODE_WEIGHTS, dtype=np.float32),
        "last_axis": np.array([2]),
        "history_axis": np.array([1]),
        "mean_user": trained.mean_user,
    }
    inputs = {
        "history_vectors": (TensorProto.FLOAT, [HISTORY, DIM]),
        "history_codes": (TensorProto.INT64, [HISTORY]),
    }
    return model(nodes, constants, inputs, "user_embedding")


def item_tower(trained: Trained) -> onnx.ModelProto:
    """item_embedding = the learned vector of a known item, else what its genres tell."""
    nodes = [
        helper.make_node("Gather", ["table", "item_code"], ["learned"]),
        helper.make_node("MatMul", ["item_genres", "by_genre"], ["told"]),
        helper.make_node("Equal", ["item_code", "none"], ["new"]),
        helper.make_node("Unsqueeze", ["new", "last_axis"], ["new_column"]),
        helper.make_node("Where", ["new_column", "told", "learned"], ["item_embedding"]),
    ]
    constants = {
        "table": trained.items,
        "by_genre": trained.by_genre,
        "none": np.array(0),
        "last_axis": np.array([1]),
    }
    inputs = {"item_code": (TensorProto.INT64, []), "item_genres": (TensorProto.FLOAT, [len(trained.genres)])}
    return model(nodes, constants, inputs, "item_embedding")


def model(
    nodes: list[Any], constants: dict[str, NDArray[Any]], inputs: dict[str, tuple[int, list[int]]], output: str
) -> onnx.ModelProto:
    """One output float32[batch, DIM]; the first axis of everything is the batch, and free."""
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info(name, kind, ["batch", *axes]) for name, (kind, axes) in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def main(items: Path, activity: Path, folder: Path) -> None:
    """Train, and write both towers and the values that their codes stand for."""
    trained = train(read(items), read(activity))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(user_tower(trained), folder / "user.onnx")
    onnx.save(item_tower(trained), folder / "item.onnx")
    words = {"values": {"item.genres": trained.genres}, "item_ids": trained.item_ids}
    (folder / "vocabularies.json").write_text(json.dumps(words))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
