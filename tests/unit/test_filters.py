"""Clauses are checked against what is declared. What becomes of them: tests/fuzz/test_filters.py."""

import asyncio
from typing import Any

import pytest

from schemas.recall import MAX_CLAUSES, FilterClause
from workers.filters import MAX_INTEGER, Clause, InvalidFilter, checked
from workers.index import effort, milvus_expression

DECLARED: dict[str, Any] = {"year": "number", "lang": "string", "used": "bool", "genres": "strings"}


def clause(field: str, op: str, value: Any) -> FilterClause:
    return FilterClause(field=field, op=op, value=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (clause("price", "eq", 1), "field"),
        (clause("_f", "contains", "year:n"), "field"),
        (clause('year"] or attributes["year', "eq", 1), "field"),
        (clause("year", "contains", 1), "op"),
        (clause("lang", "lt", "en"), "op"),
        (clause("used", "in", [True]), "op"),
        (clause("genres", "eq", "Drama"), "op"),
        (clause("genres", "in", ["Drama"]), "op"),
        (clause("year", "eq", "1990"), "value"),
        (clause("year", "eq", True), "value"),
        (clause("year", "eq", None), "value"),
        (clause("year", "eq", [1990]), "value"),
        (clause("year", "eq", float("nan")), "value"),
        (clause("year", "lt", float("inf")), "value"),
        (clause("year", "eq", MAX_INTEGER + 1), "value"),
        (clause("year", "in", []), "value"),
        (clause("year", "in", 1990), "value"),
        (clause("year", "in", [1990, "1991"]), "value"),
        (clause("year", "in", list(range(101))), "value"),
        (clause("lang", "eq", 1), "value"),
        (clause("lang", "eq", "é" * 513), "value"),
        (clause("lang", "eq", "\ud800"), "value"),
        (clause("used", "eq", 1), "value"),
        (clause("genres", "contains", ["Drama"]), "value"),
        (clause("genres", "contains_any", "Drama"), "value"),
    ],
)
def test_a_clause_that_cannot_be_asked_is_named(bad: FilterClause, what: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        checked([clause("year", "ge", 1990), bad], DECLARED)
    assert str(caught.value) == f"filter[1].{what}"


def test_at_most_16_clauses() -> None:
    assert len(checked([clause("year", "ge", n) for n in range(MAX_CLAUSES)], DECLARED)) == MAX_CLAUSES
    with pytest.raises(InvalidFilter, match=r"^filter$"):
        checked([clause("year", "ge", n) for n in range(MAX_CLAUSES + 1)], DECLARED)


def test_equal_filters_are_equal() -> None:
    one = checked([clause("year", "in", [3, 1.0, 2, 1])], DECLARED)
    assert (
        one
        == checked([clause("year", "in", [1, 2, 3])], DECLARED)
        == (Clause("year", "number", "in", (1.0, 2.0, 3.0)),)
    )
    assert hash(one) == hash(checked([clause("year", "in", [2, 3, 1])], DECLARED))
    assert checked([], DECLARED) == ()


def test_no_clause_is_no_expression() -> None:
    assert milvus_expression.expression(()) == milvus_expression.expression((), lite=True) == ""


def test_ef_grows_as_fewer_items_are_left() -> None:
    assert effort.ef_for(100, 200, 1.0) == 200
    assert effort.ef_for(400, 200, 1.0) == 400
    assert effort.ef_for(100, 200, 0.5) == 600
    assert effort.ef_for(100, 200, 0.0) == effort.ef_for(100, 200, 0.01) == 6000
    assert effort.ef_for(16_384, 200, 0.1) == effort.MAX_EF


def test_a_share_is_counted_once_a_minute() -> None:
    asked: list[str] = []
    now = 0.0

    async def count(expression: str) -> int:
        asked.append(expression)
        return 20 if expression else 100

    async def run() -> None:
        nonlocal now
        shares = effort.Shares(count, lambda: now)
        assert await shares.of("x") == await shares.of("x") == 0.2
        assert asked == ["", "x"]
        now = effort.REMEMBERED_S + 1
        await shares.of("x")
        assert asked == ["", "x", "", "x"]
        for number in range(effort.REMEMBERED + 10):
            await shares.of(f"y{number}")
        await shares.of("x")  # forgotten meanwhile
        assert asked[-1] == "x"

    asyncio.run(run())


def test_no_items_no_share() -> None:
    async def none(_: str) -> int:
        return 0

    assert asyncio.run(effort.Shares(none).of("x")) == 1.0
