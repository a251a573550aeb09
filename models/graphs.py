"""The linear towers as ONNX graphs: every aggregate, weight and normalisation stands inside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models import signature
from models.signature import Arrays
from models.spec import Field
from models.tensors import Encoding

OPSET = 17
IR_VERSION = 9
EPSILON = 1e-6

Float32 = NDArray[np.float32]
FieldWeights = Mapping[str, Float32]
"""`section_name` -> float32[width, D], see models.signature.width."""


@dataclass(frozen=True)
class UserTower:
    """u = sum_k code_weight * position_weight * recency * vector_k + aggregates @ W + fields + bias."""

    code_weight: Float32  # float32[codes + 1], of code 0 first: 0
    position_weight: Float32  # float32[H], newest last
    aggregates: Float32  # float32[6, D]: 1/(1+n), n == 0, log1p(n)/5, log1p(gap)/10, gap > session, gap > 60 s
    bias: Float32  # float32[D]
    fields: FieldWeights
    unit_length: bool


@dataclass(frozen=True)
class Embedding:
    """A learned row for the items of the fit, content for all others."""

    table: Float32  # float32[M + 1, D], row 0 is nobody's
    learned: NDArray[np.bool_]  # bool[M + 1]
    fields: FieldWeights
    bias: Float32  # float32[D]
    unit_length: bool  # scale rows and content vectors to length 1
    content_scale: float  # then shorten content vectors by this


class Graph:
    """An ONNX graph under construction: constants, nodes, and the names in between."""

    def __init__(self, inputs: Arrays, outputs: Arrays) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Any, kind: type = np.float32) -> str:
        """A constant's name."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def node(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """The name of an operator's output."""
        name = to or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def total(self, terms: list[str]) -> str:
        """The sum of arrays of one shape."""
        return terms[0] if len(terms) == 1 else self.node("Sum", *terms)

    def serialize(self) -> bytes:
        """The checked model."""
        inputs, outputs = (
            [helper.make_tensor_value_info(n, _element_type(a.type), ["batch", *a.shape]) for n, a in side.items()]
            for side in (self._inputs, self._outputs)
        )
        graph = helper.make_graph(self._nodes, "tower", inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def user_tower(tower: UserTower, encoding: Encoding, dim: int) -> bytes:
    """The user tower's ONNX bytes."""
    spec = encoding.spec
    graph = Graph(signature.user_inputs(encoding, dim), signature.user_outputs(dim))
    axis1 = graph.constant([1], np.int64)
    session_s = graph.constant(spec.history.session_ms / 1000)
    one = graph.constant(1.0)

    weight = graph.node("Gather", graph.constant(tower.code_weight), "history_codes")
    weight = graph.node("Mul", weight, graph.constant(tower.position_weight))
    recent = graph.node("Less", "history_age_s", session_s)
    weight = graph.node("Mul", weight, graph.node("Where", recent, one, graph.constant(0.5)))
    pooled = graph.node("MatMul", graph.node("Unsqueeze", weight, axis1), "history_vectors")
    history = graph.node("Squeeze", pooled, axis1)

    count = graph.node("Unsqueeze", "event_count", axis1)
    gap = graph.node("Unsqueeze", "gap_s", axis1)
    more = graph.node("Add", count, one)
    nobody = _as_float(graph, graph.node("Equal", count, graph.constant(0.0)))
    apart = _as_float(graph, graph.node("Greater", gap, session_s))
    later = _as_float(graph, graph.node("Greater", gap, graph.constant(60.0)))
    events = graph.node("Div", graph.node("Log", more), graph.constant(5.0))
    pause = graph.node("Div", graph.node("Log", graph.node("Add", gap, one)), graph.constant(10.0))
    columns = graph.node("Concat", graph.node("Reciprocal", more), nobody, events, pause, apart, later, axis=1)
    dense = graph.node("Gemm", columns, graph.constant(tower.aggregates), graph.constant(tower.bias))

    fields: dict[str, Field] = {f"profile_{name}": field for name, field in spec.profile.items()}
    fields |= {f"context_{name}": field for name, field in spec.context.items()}
    fields |= {name.replace(".", "_", 1): field for name, field in spec.vectors.items()}
    terms = [history, dense, *_field_terms(graph, fields, tower.fields, share=False)]
    _output(graph, graph.total(terms), signature.USER_EMBEDDING, tower.unit_length)
    return graph.serialize()


def item_tower(indexed: Embedding, history: Embedding, encoding: Encoding, dim: int) -> bytes:
    """The item tower's ONNX bytes: `item_embedding` and `history_embedding`."""
    graph = Graph(signature.item_inputs(encoding), signature.item_outputs(dim))
    fields = {f"item_{name}": field for name, field in encoding.spec.item.items()}
    for name, embedding in ((signature.ITEM_EMBEDDING, indexed), (signature.HISTORY_EMBEDDING, history)):
        learned = graph.node("Gather", graph.constant(embedding.table), "item_code")
        is_learned = graph.node("Gather", graph.constant(embedding.learned[:, None], np.bool_), "item_code")
        zeros = graph.node("Mul", learned, graph.constant(0.0))  # gives the bias its batch axis
        bias = graph.node("Add", zeros, graph.constant(embedding.bias))
        content = graph.total([bias, *_field_terms(graph, fields, embedding.fields, share=True)])
        if embedding.unit_length:
            learned, content = _unit(graph, learned), _unit(graph, content)
        content = graph.node("Mul", content, graph.constant(embedding.content_scale))
        graph.node("Where", is_learned, learned, content, to=name)
    return graph.serialize()


def _field_terms(graph: Graph, fields: Mapping[str, Field], weights: FieldWeights, *, share: bool) -> list[str]:
    """One term float32[batch, D] per field; `share`: the values of a multi field divide one weight among them."""
    terms = []
    for name, field in fields.items():
        weight = graph.constant(weights[name])
        if field.kind in {"category", "bucket"}:
            terms.append(graph.node("Gather", weight, name))
            continue
        if len(weights[name]) == 0:  # a multi field whose vocabulary is empty
            continue
        values = (
            name if field.kind in {"multi", "vector"} else graph.node("Unsqueeze", name, graph.constant([1], np.int64))
        )
        if field.kind == "multi" and share:
            count = graph.node("ReduceSum", values, graph.constant([1], np.int64), keepdims=1)
            values = graph.node("Div", values, graph.node("Max", count, graph.constant(1.0)))
        terms.append(graph.node("MatMul", values, weight))
    return terms


def _as_float(graph: Graph, flag: str) -> str:
    return graph.node("Where", flag, graph.constant(1.0), graph.constant(0.0))


def _unit(graph: Graph, vector: str) -> str:
    length = graph.node("ReduceL2", vector, axes=[1], keepdims=1)
    return graph.node("Div", vector, graph.node("Add", length, graph.constant(EPSILON)))


def _output(graph: Graph, vector: str, name: str, unit_length: bool) -> None:
    graph.node("Identity", _unit(graph, vector) if unit_length else vector, to=name)


def _element_type(kind: str) -> int:
    return int(TensorProto.FLOAT if kind == "float32" else TensorProto.INT64)
