"""The towers of docs/examples/own_towers as tests want them: of random weights, whole or damaged."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "own_towers"
FEATURES = EXAMPLE / "features.toml"
ITEMS, GENRES = 60, ("Comedy", "Drama", "War")

Edit = Callable[[onnx.ModelProto], None]


def example() -> Any:
    """The module build.py."""
    if "own_towers_build" not in sys.modules:
        spec = importlib.util.spec_from_file_location("own_towers_build", EXAMPLE / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["own_towers_build"] = module
        spec.loader.exec_module(module)
    return sys.modules["own_towers_build"]


def write_towers(folder: Path, user: Edit = lambda _: None, item: Edit = lambda _: None) -> Path:
    """`user.onnx`, `item.onnx` and `vocabularies.json`, the models edited before they are written."""
    build, rng = example(), np.random.default_rng(0)
    vectors = (rng.standard_normal(shape).astype(np.float32) for shape in ((ITEMS + 1, 32), (len(GENRES), 32), (32,)))
    item_ids = [f"i{n}" for n in range(ITEMS)]
    trained = build.Trained(item_ids, GENRES, *vectors)
    for name, model, edit in (("user", build.user_tower(trained), user), ("item", build.item_tower(trained), item)):
        edit(model)
        onnx.save(model, folder / f"{name}.onnx")
    words = {"values": {"item.genres": GENRES}, "item_ids": item_ids}
    (folder / "vocabularies.json").write_text(json.dumps(words))
    return folder


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """A constant of the graph is another one."""

    def edit(model: onnx.ModelProto) -> None:
        (found,) = (each for each in model.graph.initializer if each.name == name)
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found).copy()), name))

    return edit


def output(operator: str, *others: np.ndarray, **attributes: Any) -> Edit:
    """One more node stands before the first output: `operator(output, *others)`."""

    def edit(model: onnx.ModelProto) -> None:
        name = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["before" if each == name else each for each in node.output]
        names = [f"other{n}" for n in range(len(others))]
        model.graph.initializer.extend(numpy_helper.from_array(o, n) for n, o in zip(names, others, strict=True))
        model.graph.node.append(helper.make_node(operator, ["before", *names], [name], **attributes))

    return edit


def batch_of(size: int) -> Edit:
    """Every input and output is declared with this batch."""

    def edit(model: onnx.ModelProto) -> None:
        for node in (*model.graph.input, *model.graph.output):
            node.type.tensor_type.shape.dim[0].dim_value = size

    return edit


def depends_on_the_batch(model: onnx.ModelProto) -> None:
    """The mean of the batch's vectors is taken off each."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
    model.graph.node.append(helper.make_node("ReduceMean", ["before"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["before", "mean"], [name]))


def renamed(old: str, new: str) -> Edit:
    """An input or output has another name."""

    def edit(model: onnx.ModelProto) -> None:
        for node in (*model.graph.input, *model.graph.output):
            node.name = new if node.name == old else node.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if each == old else each for each in names]

    return edit


def declared(name: str, kind: int, axes: list[Any]) -> Edit:
    """An input or output is declared otherwise."""

    def edit(model: onnx.ModelProto) -> None:
        for node in (*model.graph.input, *model.graph.output):
            if node.name == name:
                node.CopyFrom(helper.make_tensor_value_info(name, kind, axes))

    return edit


def opset(version: int) -> Edit:
    """It asks for another operator set."""

    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return edit
