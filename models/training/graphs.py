"""Trained towers as ONNX graphs, node by node: what `towers.py` and the encoders compute for one request each.

Written by hand, as those of the closed form are: a tenth of a second instead of twenty, opset 17, and nothing in the
file but the weights, so that equal weights are equal bytes. `parity.py` holds them to PyTorch at every export.
"""

import math
import sys
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import signature
from models.graphs import EPSILON, Graph
from models.samples import user_fields
from models.spec import Field
from models.tensors import Encoding
from models.training.fields import FieldSum, fields_of
from models.training.members import ItemMembers, UserMembers
from models.training.towers import ItemTower, UserTower
from models.training.transformer import MASKED, MOMENT_S, EventLayer, RequestLayer, TimeBias, Transformer
from models.training.weighted_mean import WeightedMean

Array = NDArray[np.float32]
AT_A_TIME = 13  # events that look back together: attention is over these and the REACH before them, not over all


def user_tower(members: UserMembers, encoding: Encoding) -> bytes:
    """The user tower's ONNX bytes."""
    dims = [int(tower.aggregates.shape[1]) for tower in members.towers if isinstance(tower, UserTower)]
    dim, ends = sum(dims), np.cumsum(dims).tolist()
    graph = _Graph(signature.user_inputs(encoding, dim), signature.user_outputs(dim))
    vectors = []
    for tower, width, end in zip(members.towers, dims, ends, strict=True):
        assert isinstance(tower, UserTower)  # noqa: S101  # for the types: members of a module are of any kind
        past = graph.cut("history_vectors", end - width, end, 2) if len(dims) > 1 else "history_vectors"
        vectors.append(_user(graph, tower, past, encoding))
    graph.node("Concat", *vectors, axis=1, to=signature.USER_EMBEDDING)
    return graph.serialize()


def _user(graph: "_Graph", tower: UserTower, past: str, encoding: Encoding) -> str:
    fields = user_fields(encoding)
    session_s = graph.constant(encoding.spec.history.session_ms / 1000)
    known = _aggregates(graph, session_s)
    length = encoding.spec.history.length
    places = np.arange(length, 0, -1)

    older = graph.weight(tower.older_weight)
    recent = graph.node("Where", graph.node("Less", "history_age_s", session_s), graph.constant(1.0), older)
    of_code = graph.node("Gather", graph.weight(tower.code_weight), "history_codes")
    weight = graph.product(of_code, graph.constant(_array(tower.place_weight)[places]), recent)
    pooled = graph.node("MatMul", graph.unsqueeze(weight, 1), past)
    pooled = graph.node("Squeeze", pooled, graph.axes(1))
    terms = [pooled, graph.node("MatMul", known, graph.weight(tower.aggregates))]
    linear = graph.total([*terms, *_fields(graph, tower.linear, fields)])

    request = graph.total(_fields(graph, tower.request, fields, known))
    scaled = graph.node("Mul", pooled, graph.weight(tower.pooled_scale))
    facts = graph.node("Concat", known, request, scaled, axis=1)
    request = graph.unsqueeze(graph.network(tower.request_network, facts), 1)  # float32[B, 1, W]
    vectors = graph.node("Mul", past, graph.weight(tower.vector_scale))
    nothing = graph.node("Equal", "history_codes", graph.constant(0, np.int64))
    encoder = tower.encoder
    if isinstance(encoder, Transformer):
        encoded = _transformer(graph, encoder, vectors, nothing, request, places)
    elif isinstance(encoder, WeightedMean):
        encoded = _weighted_mean(graph, encoder, vectors, nothing, request, places)
    else:
        raise TypeError(f"{type(encoder).__name__} has no graph")
    encoded = graph.node("Squeeze", encoded, graph.axes(1))
    vector = graph.unit(graph.node("Add", linear, graph.linear(tower.leave, encoded)))
    return graph.node("Mul", vector, graph.constant(_half(tower.log_temperature)))


def item_tower(members: ItemMembers, encoding: Encoding) -> bytes:
    """The item tower's ONNX bytes."""
    graph = _Graph(signature.item_inputs(encoding), signature.item_outputs(members.dim))
    pairs = [_item(graph, tower, encoding) for tower in members.towers if isinstance(tower, ItemTower)]
    graph.node("Concat", *(indexed for indexed, _ in pairs), axis=1, to=signature.ITEM_EMBEDDING)
    graph.node("Concat", *(history for _, history in pairs), axis=1, to=signature.HISTORY_EMBEDDING)
    return graph.serialize()


def _item(graph: "_Graph", tower: ItemTower, encoding: Encoding) -> tuple[str, str]:
    fields = fields_of("item", encoding.spec.item)
    target, seen = _array(tower.target)[:, None], _array(tower.seen)[:, None]
    own = graph.node("Gather", graph.constant(_array(tower.indexed) * target), "item_code")
    sizes = _half(tower.log_temperature) * (target + (1 - target) * np.float32(tower.content_scale))
    vector = graph.unit(graph.total([own, *_fields(graph, tower.indexed_content, fields)]))
    size = graph.node("Gather", graph.constant(sizes), "item_code")
    indexed = graph.node("Mul", vector, size)
    own = graph.node("Gather", graph.constant(_array(tower.history) * seen), "item_code")
    history = graph.total([own, *_fields(graph, tower.history_content, fields)])
    return indexed, history


class _Graph(Graph):
    """A graph with what networks are made of."""

    def weight(self, value: Tensor) -> str:
        """A parameter as a constant."""
        return self.constant(_array(value))

    def axes(self, *axes: int) -> str:
        """Axes as a constant."""
        return self.constant(list(axes), np.int64)

    def unsqueeze(self, value: str, *axes: int) -> str:
        """With more axes of length 1."""
        return self.node("Unsqueeze", value, self.axes(*axes))

    def product(self, *factors: str) -> str:
        """All multiplied."""
        result = factors[0]
        for factor in factors[1:]:
            result = self.node("Mul", result, factor)
        return result

    def linear(self, layer: nn.Module, value: str) -> str:
        """nn.Linear on the last axis."""
        assert isinstance(layer, nn.Linear)  # noqa: S101  # for the types: children of a module are of any kind
        return self.affine(_array(layer.weight), _array(layer.bias), value)

    def affine(self, weight: Array, bias: Array, value: str) -> str:
        """`weight` float32[out, in] and `bias` float32[out] on the last axis."""
        return self.node("Add", self.node("MatMul", value, self.constant(weight.T)), self.constant(bias))

    def network(self, layers: nn.Sequential, value: str) -> str:
        """Linear, GELU, linear."""
        hidden = self.linear(layers[0], value)
        scaled = self.node("Erf", self.node("Mul", hidden, self.constant(math.sqrt(0.5))))
        half = self.node("Mul", hidden, self.constant(0.5))
        return self.linear(layers[2], self.node("Mul", half, self.node("Add", scaled, self.constant(1.0))))

    def normal(self, layer: nn.LayerNorm, value: str) -> str:
        """nn.LayerNorm on the last axis."""
        scale, shift = self.weight(layer.weight), self.weight(layer.bias)
        return self.node("LayerNormalization", value, scale, shift, axis=-1, epsilon=layer.eps)

    def unit(self, vector: str) -> str:
        """towers.unit."""
        square = self.node("ReduceSum", self.node("Mul", vector, vector), self.axes(1), keepdims=1)
        length = self.node("Sqrt", self.node("Add", square, self.constant(1e-20)))
        return self.node("Div", vector, self.node("Add", length, self.constant(EPSILON)))

    def log1p(self, value: str) -> str:
        """log(1 + value)."""
        return self.node("Log", self.node("Add", value, self.constant(1.0)))

    def parts(self, value: str, count: int, width: int) -> list[str]:
        """float32[B, M, count * W] as `count` arrays float32[B, M, W]."""
        return [self.cut(value, n * width, (n + 1) * width, 2) for n in range(count)]

    def cut(self, value: str, begin: int, end: int, axis: int) -> str:
        """Elements begin, ..., end - 1 of an axis."""
        return self.node("Slice", value, self.axes(begin), self.axes(end), self.axes(axis))

    def newest(self, value: str, count: int, axis: int) -> str:
        """The last `count` elements of an axis."""
        return self.node("Slice", value, self.axes(-count), self.axes(sys.maxsize), self.axes(axis))

    def split(self, value: str, heads: int, width: int) -> str:
        """float32[B, heads, M, W / heads] from float32[B, M, W]."""
        shaped = self.node("Reshape", value, self.constant([0, 0, heads, width // heads], np.int64))
        return self.node("Transpose", shaped, perm=[0, 2, 1, 3])

    def attention(self, query: str, key: str, value: str, bias: str, width: int, heads: int) -> str:
        """transformer.attention, with the bias already masked."""
        turned = self.node("Transpose", key, perm=[0, 1, 3, 2])
        score = self.node("MatMul", query, turned)
        score = self.node("Mul", score, self.constant(1 / math.sqrt(width // heads)))
        weight = self.node("Softmax", self.node("Add", score, bias), axis=3)
        mixed = self.node("Transpose", self.node("MatMul", weight, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, self.constant([0, 0, width], np.int64))


def _aggregates(graph: _Graph, session_s: str) -> str:
    """float32[B, 6], see UserTower.aggregate."""
    count, gap = graph.unsqueeze("event_count", 1), graph.unsqueeze("gap_s", 1)
    zero, one = graph.constant(0.0), graph.constant(1.0)
    flags = [
        graph.node("Where", condition, one, zero)
        for condition in (
            graph.node("Equal", count, zero),
            graph.node("Greater", gap, session_s),
            graph.node("Greater", gap, graph.constant(60.0)),
        )
    ]
    events = graph.node("Div", graph.log1p(count), graph.constant(5.0))
    pause = graph.node("Div", graph.log1p(gap), graph.constant(10.0))
    more = graph.node("Reciprocal", graph.node("Add", count, one))
    return graph.node("Concat", more, flags[0], events, pause, flags[1], flags[2], axis=1)


def _fields(graph: _Graph, fields: FieldSum, spec: Mapping[str, Field], like: str | None = None) -> list[str]:
    """Terms of FieldSum.forward; the bias takes its batch axis from the others, or from `like` when it may be alone."""
    bias = graph.weight(fields.bias)
    if like is not None:
        none = graph.node("ReduceSum", graph.node("Mul", like, graph.constant(0.0)), graph.axes(1), keepdims=1)
        bias = graph.node("Add", none, bias)
    terms = [bias]
    kinds = {name.replace(".", "_", 1): field.kind for name, field in spec.items()}
    for name, weight in fields.weights.items():
        if kinds[name] in {"category", "bucket"}:
            terms.append(graph.node("Gather", graph.weight(weight), name))
        elif kinds[name] == "number":
            scaled = graph.node("Div", graph.unsqueeze(name, 1), graph.constant(float(fields.scale_of(name)[0])))
            terms.append(graph.node("Mul", scaled, graph.weight(weight)))
        elif kinds[name] == "vector":
            scaled = graph.node("Div", name, graph.weight(fields.scale_of(name)))
            terms.append(graph.node("MatMul", scaled, graph.weight(weight)))
        else:
            values = name
            if fields.share:
                count = graph.node("ReduceSum", name, graph.axes(1), keepdims=1)
                values = graph.node("Div", name, graph.node("Max", count, graph.constant(1.0)))
            terms.append(graph.node("MatMul", values, graph.weight(weight)))
    return terms


def _transformer(
    graph: _Graph, encoder: Transformer, vectors: str, nothing: str, request: str, places: NDArray[np.int64]
) -> str:
    x = graph.node(
        "Add",
        graph.linear(encoder.enter, vectors),
        graph.node("Gather", graph.weight(encoder.by_code), "history_codes"),
    )
    kept = len(places)  # newest events: each layer leaves out those whose look back is not whole
    for layer in encoder.events:
        assert isinstance(layer, EventLayer)  # noqa: S101  # as above
        x = _event_layer(graph, layer, x, nothing, kept)
        kept -= layer.reach
    hidden = graph.unsqueeze(graph.newest(nothing, kept, 1), 1, 2)  # bool[B, 1, 1, kept]
    x = _request_layer(graph, encoder.request, request, x, hidden, places[-kept:])
    return graph.normal(encoder.leave, x)


def _event_layer(graph: _Graph, layer: EventLayer, x: str, nothing: str, length: int) -> str:
    """float32[B, length - reach, W], the newest ones, from float32[B, length, W]: some at a time and what they see."""
    width, heads, reach = layer.join.in_features, layer.heads, layer.reach
    weight, bias = _array(layer.query_key_value.weight), _array(layer.query_key_value.bias)
    before = graph.normal(layer.before, x)
    asking = graph.newest(before, length - reach, 1)
    query = graph.split(graph.affine(weight[:width], bias[:width], asking), heads, width)
    both = graph.parts(graph.affine(weight[width:], bias[width:], before), 2, width)
    key, value = (graph.split(part, heads, width) for part in both)
    age_s, nobody = graph.newest("history_age_s", length, 1), graph.newest(nothing, length, 1)
    mixed = []
    for begin in range(reach, length, AT_A_TIME):
        end = min(begin + AT_A_TIME, length)
        first = begin - reach
        distance = np.arange(begin, end)[:, None] - np.arange(first, end)[None]
        row = graph.unsqueeze(graph.cut(age_s, begin, end, 1), 2)
        apart = graph.node("Relu", graph.node("Sub", graph.unsqueeze(graph.cut(age_s, first, end, 1), 1), row))
        apart = graph.node("Div", graph.unsqueeze(apart, 1), graph.constant(MOMENT_S))
        by_distance = graph.constant(_array(layer.by_distance)[:, distance.clip(0, reach)])
        bias_of = graph.node("Add", graph.product(graph.log1p(apart), graph.weight(layer.by_time)), by_distance)
        unseen = graph.unsqueeze(graph.cut(nobody, first, end, 1), 1, 2)
        unseen = graph.node("And", unseen, graph.constant((distance != 0)[None, None], np.bool_))
        far = (distance < 0) | (distance > reach)
        unseen = graph.node("Or", unseen, graph.constant(far[None, None], np.bool_))
        bias_of = graph.node("Where", unseen, graph.constant(MASKED), bias_of)
        asked = graph.cut(query, begin - reach, end - reach, 2)
        keys, values = (graph.cut(part, first, end, 2) for part in (key, value))
        mixed.append(graph.attention(asked, keys, values, bias_of, width, heads))
    together = mixed[0] if len(mixed) == 1 else graph.node("Concat", *mixed, axis=1)
    x = graph.node("Add", graph.newest(x, length - reach, 1), graph.linear(layer.join, together))
    return graph.node("Add", x, graph.network(layer.network, graph.normal(layer.between, x)))


def _request_layer(
    graph: _Graph, layer: RequestLayer, request: str, events: str, hidden: str, places: NDArray[np.int64]
) -> str:
    width, heads = layer.join.in_features, layer.heads
    query = graph.split(graph.linear(layer.query, graph.normal(layer.before, request)), heads, width)
    both = graph.linear(layer.key_value, graph.normal(layer.of_events, events))
    both = graph.node("Pad", both, graph.constant([0, 1, 0, 0, 0, 0], np.int64))  # nothing stands before the oldest
    key, value = (graph.split(part, heads, width) for part in graph.parts(both, 2, width))
    age_s = graph.newest("history_age_s", len(places), 1)
    bias = _time_bias(graph, layer.by_time, graph.unsqueeze(age_s, 1, 2))
    seen = graph.node("Greater", graph.newest("history_codes", 1, 1), graph.constant(0, np.int64))
    newest_s = graph.node("Where", seen, graph.newest(age_s, 1, 1), graph.constant(0.0))
    lead = graph.node("Sub", age_s, newest_s)
    lead = graph.unsqueeze(graph.node("Relu", lead), 1, 2)
    places_bias = graph.constant(_array(layer.by_place)[:, places][None, :, None])
    bias = graph.total([bias, _time_bias(graph, layer.by_lead, lead), places_bias])
    bias = graph.node("Where", hidden, graph.constant(MASKED), bias)
    bias = graph.node("Pad", bias, graph.constant([0, 0, 0, 1, 0, 0, 0, 0], np.int64))
    x = graph.node("Add", request, graph.linear(layer.join, graph.attention(query, key, value, bias, width, heads)))
    return graph.node("Add", x, graph.network(layer.network, graph.normal(layer.between, x)))


def _time_bias(graph: _Graph, layer: TimeBias, apart_s: str) -> str:
    """float32[B, heads, M, L] from float32[B, 1, M, L]."""
    weight = _array(layer.weight)
    terms = [graph.product(graph.log1p(apart_s), graph.constant(weight[0] / 16))]
    for number, scale in enumerate(layer.scales_s, 1):
        part = graph.node("Div", graph.node("Min", apart_s, graph.constant(scale)), graph.constant(scale))
        terms.append(graph.product(part, graph.constant(weight[number])))
    return graph.total(terms)


def _weighted_mean(
    graph: _Graph, encoder: WeightedMean, vectors: str, nothing: str, request: str, places: NDArray[np.int64]
) -> str:
    means = encoder.by_place.shape[0]
    old = graph.log1p(graph.node("Div", "history_age_s", graph.constant(60.0)))
    age = graph.node("Mul", graph.unsqueeze(old, 1), graph.constant(_array(encoder.by_age)[None, :, 0]))
    of_code = graph.node("Gather", graph.constant(_array(encoder.by_code).T), "history_codes")  # float32[B, H, means]
    score = graph.total([graph.node("Transpose", of_code, perm=[0, 2, 1]), age])
    score = graph.node("Add", score, graph.constant(_array(encoder.by_place)[:, places][None]))
    score = graph.node("Where", graph.unsqueeze(nothing, 1), graph.constant(MASKED), score)
    zero = graph.node("Mul", graph.node("ReduceMax", score, axes=[2], keepdims=1), graph.constant(0.0))
    of_nothing = graph.node("Add", zero, graph.constant(_array(encoder.nothing)[None, :, 0]))
    weight = graph.node("Softmax", graph.node("Concat", score, of_nothing, axis=2), axis=2)
    weight = graph.node("Slice", weight, graph.axes(0), graph.axes(len(places)), graph.axes(2))
    mean = graph.node("MatMul", weight, vectors)  # float32[B, means, D]
    mean = graph.node("Reshape", mean, graph.constant([0, 1, means * encoder.dim], np.int64))
    seen = graph.node("Concat", mean, request, axis=2)
    return graph.node("Add", request, graph.network(encoder.network, seen))


def _array(value: Tensor) -> Array:
    found: Array = value.detach().cpu().numpy()
    return found


def _half(log_temperature: Tensor) -> float:
    return float(torch.exp(log_temperature.detach() / 2))
