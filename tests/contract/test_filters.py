"""A filter means the same in every index: each op on each type of stored value, missing ones and hostile ones too."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from schemas.recall import FilterClause, FilterOp
from tests.contract.indexes import (
    HOSTILE,
    Index,
    Shelf,
    backend,
    collections,
    lite_settings,
    new_collection,
    server_settings,
    shelf,
)
from workers.filters import MANY_VALUES, ONE_VALUE, checked
from workers.index.milvus_collection import merged, prepare_index, seal
from workers.ports import IndexRows
from workers.settings import Settings

__all__ = ["backend", "collections", "lite_settings", "server_settings", "shelf"]  # fixtures

EVERYTHING = 16_384
DECLARED = {"number": "number", "string": "string", "bool": "bool", "strings": "strings"}
NUMBERS = [0, 1, 1.0, 2, -3, 2.5, -0.1, 0.1, 1e300, 5e-324, -(2**53), 2**53, 1994]
TEXTS = ["", "a", "b", "1", "true", "null", '["a"]', '", "', '" or 1 == 1 or "', *HOSTILE]
ODD: list[Any] = [None, {"a": 1}, [1, "a"], [None], [["a"]], "x" * 5000, [2], float("nan")]
STORED: list[Any] = [
    *NUMBERS, 2**60, 2**60 + 1, True, False, *TEXTS, [], ["a"], ["a", "b"], ["b", "c"], *([text] for text in TEXTS),
    TEXTS, *ODD,
]  # fmt: skip
ASKED: dict[str, list[Any]] = {"number": NUMBERS, "string": TEXTS, "bool": [True, False], "strings": TEXTS}
SOME: dict[str, list[list[Any]]] = {
    "number": [[1], [0, 1.0, 2.5], NUMBERS, [7]],
    "string": [["a"], ["a", "1", "nowhere"], TEXTS, ['"', "\\"]],
    "bool": [],
    "strings": [["a"], ["a", "c"], TEXTS, ["nowhere"]],
}
TYPES: dict[str, Callable[[Any], bool]] = {
    "number": lambda v: type(v) in {int, float} and math.isfinite(v),
    "string": lambda v: type(v) is str and len(v) < 5000,
    "bool": lambda v: type(v) is bool,
    "strings": lambda v: type(v) is list and all(type(each) is str for each in v),
}
MEANS: dict[FilterOp, Callable[[Any, Any], bool]] = {
    "eq": lambda stored, asked: stored == asked,
    "ne": lambda stored, asked: stored != asked,
    "lt": lambda stored, asked: stored < asked,
    "le": lambda stored, asked: stored <= asked,
    "gt": lambda stored, asked: stored > asked,
    "ge": lambda stored, asked: stored >= asked,
    "in": lambda stored, asked: stored in asked,
    "not_in": lambda stored, asked: stored not in asked,
    "contains": lambda stored, asked: asked in stored,
    "contains_any": lambda stored, asked: not set(stored).isdisjoint(asked),
}
OPS = [(kind, op) for kind in DECLARED for op in sorted(ONE_VALUE[kind] | MANY_VALUES[kind])]  # type: ignore[index]

one = pytest.mark.parametrize(("dim", "metric"), [(32, "IP")])


async def fill(shelf: Shelf, rows: list[dict[str, Any]]) -> list[str]:
    ids = shelf.ids(*map(str, range(len(rows))))
    await shelf.index.upsert(IndexRows(ids, shelf.vectors(len(rows)), rows))
    await shelf.until(shelf.found(ids, there=True))
    return ids


async def found(shelf: Shelf, *clauses: FilterClause) -> set[str]:
    """Of this test's items."""
    where = checked(clauses, DECLARED)  # type: ignore[arg-type]
    hits = await shelf.index.search(shelf.away[None], EVERYTHING, where)
    return {item_id for item_id in hits.item_ids[0] if item_id.startswith(shelf.prefix)}


@one
@pytest.mark.parametrize(("kind", "op"), OPS)
async def test_an_op_means_the_same_everywhere(shelf: Shelf, kind: str, op: FilterOp) -> None:
    rows = [{kind: stored} for stored in STORED] + [{}]
    ids = await fill(shelf, rows)
    for asked in ASKED[kind] if op in ONE_VALUE[kind] else SOME[kind]:  # type: ignore[index]
        wanted = {
            item_id
            for item_id, row in zip(ids, rows, strict=True)
            if kind in row and TYPES[kind](row[kind]) and MEANS[op](row[kind], asked)
        }
        got = await found(shelf, FilterClause(field=kind, op=op, value=asked))
        names = dict(zip(ids, rows, strict=True))
        assert got == wanted, (asked, [names[i] for i in got - wanted], [names[i] for i in wanted - got])


@one
async def test_all_clauses_must_hold(shelf: Shelf) -> None:
    rows: list[dict[str, Any]] = [
        {"number": n, "string": "ab"[n % 2], "bool": n % 3 == 0, "strings": ["x", "y"][: n % 3]} for n in range(30)
    ]
    ids = await fill(shelf, rows)
    clauses = [
        FilterClause(field="number", op="ge", value=5),
        FilterClause(field="number", op="lt", value=25),
        FilterClause(field="string", op="ne", value="a"),
        FilterClause(field="strings", op="contains_any", value=["x", "z"]),
        FilterClause(field="bool", op="eq", value=False),
    ]
    wanted = {ids[n] for n in range(5, 25) if n % 2 == 1 and n % 3 > 0}
    assert await found(shelf, *clauses) == wanted
    assert await found(shelf, *clauses, FilterClause(field="number", op="not_in", value=[5, 7])) == wanted - {
        ids[5],
        ids[7],
    }
    assert await found(shelf, *clauses, FilterClause(field="number", op="gt", value=100)) == set()


@one
async def test_a_filtered_list_has_the_best_of_those_that_fit(shelf: Shelf) -> None:
    rows = [{"number": n % 10} for n in range(300)]
    ids, vectors = await fill(shelf, rows), shelf.vectors(300)
    queries = shelf.vectors(4, 2)
    where = checked([FilterClause(field="number", op="in", value=[3, 4])], DECLARED)  # type: ignore[arg-type]
    fitting = [n for n in range(300) if n % 10 in {3, 4}]
    hits = await shelf.index.search(queries, 20, where)
    shelf.assert_best(hits, queries, [ids[n] for n in fitting], vectors[fitting], 20)


async def test_a_filter_costs_no_recall(collections: Settings) -> None:
    """Of a graph, at every share of the items that a filter may leave."""
    items, k, queries = 6000, 100, 16
    settings = collections.model_copy(update={"index_flat_below": 100})
    graph = new_collection(32, "IP")
    index = await prepare_index(settings, graph, items)
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((items // 20, 32))  # items come in groups of a kind, as real ones do
    vectors, asked = (
        (rng.choice(centres, n) + 0.5 * rng.standard_normal((n, 32))).astype(np.float32) for n in (items, queries)
    )
    ids = [f"item {n}" for n in range(items)]
    group = rng.permutation(items) % 100
    await index.upsert(IndexRows(ids, vectors, [{"number": int(each)} for each in group]))
    await Shelf(index, 32, "IP", "", vectors[0]).until(lambda: _all_there(index, items))
    await seal(settings, graph)
    await merged(settings, graph, 60.0)
    scores = asked @ vectors.T

    async def recall(below: int) -> float:
        where = checked([FilterClause(field="number", op="lt", value=below)] if below < 100 else [], DECLARED)  # type: ignore[arg-type]
        fitting = np.flatnonzero(group < below)
        hits = await index.search(asked, k, where)
        best = fitting[np.argsort(-scores[:, fitting], axis=1)[:, :k]]
        found = [len({ids[n] for n in row} & set(got)) for row, got in zip(best.tolist(), hits.item_ids, strict=True)]
        return sum(found) / best.size

    unfiltered = await recall(100)
    for below in (90, 70, 50, 30, 15, 10, 5, 1):
        assert await recall(below) >= unfiltered - 0.05, below
    await index.close()


async def _all_there(index: Index, items: int) -> bool:
    return await index.count() == items
