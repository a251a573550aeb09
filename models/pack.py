"""Towers that were trained elsewhere, made into a bundle's: read, and completed to what every bundle declares.

What a foreign tower may leave out is added to its graph, so that bundles stay of one kind: inputs of the spec that it
does not read, axes that an exporter has left open, and the item tower's second output, the history vectors, for which
the vectors of the index then stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx
from msgspec import Struct
from onnx import TensorProto, helper

from models.bundle import MAX_DIM
from models.signature import HISTORY_EMBEDDING, ITEM_EMBEDDING, Array, Arrays
from models.spec import Spec
from models.tensors import Vocabularies

ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class PackError(ValueError):
    """Files that no bundle can be made of; one line."""


class _VocabularyFile(Struct, frozen=True):
    """vocabularies.json, as it stands in every bundle."""

    values: dict[str, list[str]] = {}
    item_ids: list[str] = []


@dataclass(frozen=True)
class Completed:
    """A tower that declares what its bundle says, and what was added to it."""

    model: bytes
    unread: Sequence[str]  # inputs of the spec that the tower does not read
    one_vector: bool  # the item tower's vectors of the index stand for the history vectors


def read_vocabularies(path: Path | None, spec: Spec) -> Vocabularies:
    """Values of the spec's category and multi fields, and item ids, in order of their codes. Raises PackError.

    None = no item has a code, and there is no such field.
    """
    fields = {
        f"{section}.{name}": field.kind
        for section in ("profile", "context", "item")
        for name, field in getattr(spec, section).items()
        if field.kind in {"category", "multi"}
    }
    if path is None:
        for name, kind in fields.items():
            raise PackError(f"{name} is of kind {kind}: --vocabularies FILE names its values, in order of their codes")
        return Vocabularies({}, [])
    try:
        words = msgspec.json.decode(path.read_bytes(), type=_VocabularyFile)
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackError(f"{path}: {error}") from error
    for name in sorted(fields.keys() ^ words.values.keys()):
        what = f"no values for {name}" if name in fields else f"{name} is no category or multi field of the spec"
        raise PackError(f"{path}: {what}")
    for name, known in {**words.values, "item_ids": words.item_ids}.items():
        if len(set(known)) < len(known) or "" in known:
            raise PackError(f"{path}: {name} names a value twice, or an empty one")
    return Vocabularies(words.values, words.item_ids)


def read_tower(path: Path) -> onnx.ModelProto:
    """A model in ONNX, its weights in the same file. Raises PackError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own, whose class depends on its implementation
        raise PackError(f"{path} is not ONNX: {' '.join(str(error).split())}") from error
    if not model.graph.output:
        raise PackError(f"{path} is not ONNX: it has no graph with outputs")
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
            line = f"{path} keeps its weights in another file, {where}; export them into the model itself"
            raise PackError(f"{line} (PyTorch: torch.onnx.export(..., external_data=False))")
    return model


def opsets(model: onnx.ModelProto) -> str:
    """The operator sets that a model asks for."""
    return ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)


def dimension(towers: Sequence[tuple[str, int]]) -> int:
    """D, of all outputs. Raises PackError when they differ."""
    name, dim = towers[0]
    for other, found in towers[1:]:
        if found != dim:
            raise PackError(f"{name} has {dim} dimensions, {other} has {found}: both towers need the same")
    if not 1 <= dim <= MAX_DIM:
        raise PackError(f"{name} has {dim} dimensions, 1 to {MAX_DIM} are possible")
    return dim


def complete(model: onnx.ModelProto, inputs: Arrays, outputs: Arrays) -> Completed:
    """Add what a bundle's tower declares and this one may leave out. What contradicts the bundle stays as it is."""
    declared = {node.name for node in model.graph.input}
    unread = [name for name in inputs if name not in declared]
    model.graph.input.extend(_value(name, inputs[name]) for name in unread)
    produced = {node.name: node for node in model.graph.output}
    one_vector = HISTORY_EMBEDDING in outputs and ITEM_EMBEDDING in produced and HISTORY_EMBEDDING not in produced
    if one_vector:
        model.graph.node.append(helper.make_node("Identity", [ITEM_EMBEDDING], [HISTORY_EMBEDDING]))
        model.graph.output.append(produced[ITEM_EMBEDDING])
        model.graph.output[-1].name = HISTORY_EMBEDDING
    for nodes, arrays in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for node in nodes:
            if node.name in arrays:
                _close(node, arrays[node.name])
    return Completed(model.SerializeToString(), unread, one_vector)


def _value(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[array.type], ["batch", *array.shape])


def _close(node: onnx.ValueInfoProto, array: Array) -> None:
    """Give axes behind the batch their size where the file leaves it open."""
    tensor = node.type.tensor_type
    if not tensor.HasField("shape") and tensor.elem_type == ELEMENT_TYPES[array.type]:
        node.CopyFrom(_value(node.name, array))
    if len(tensor.shape.dim) == len(array.shape) + 1:
        for axis, size in zip(tensor.shape.dim[1:], array.shape, strict=True):
            if not axis.HasField("dim_value"):
                axis.dim_value = size


def _tensors(model: onnx.ModelProto) -> list[Any]:
    """Every tensor in which weights can stand, those of graphs inside nodes too."""
    found, graphs, nodes = [], [model.graph], [node for each in model.functions for node in each.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            found += [
                *graph.initializer,
                *(t for each in graph.sparse_initializer for t in (each.values, each.indices)),
            ]
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            found += [attribute.t, *attribute.tensors]
            graphs += [attribute.g, *attribute.graphs]
    return found
