"""Random filters through the check and into expressions. The million: `python -m tests.fuzz filters`."""

import json
from types import ModuleType
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.fuzz import examples, filters
from tests.fuzz.expressions import Reader, UnreadableError
from workers import filters as product
from workers.filters import Filter, clause_holds
from workers.index import milvus_expression


def test_random_filters_are_refused_or_mean_the_same_everywhere() -> None:
    report = filters.run(seed=1, inputs=2500)
    assert set(report["outcomes"]) == {"typed", "held", "did not hold", "filter", "field", "op", "value"}


@pytest.mark.parametrize(
    "bad",
    [
        'attributes["a"] == "b" or"',
        'attributes["a"] == "\n"',
        'attributes["a"] == "\\" or 1.0 == 1.0',
        'attributes["a"] == "\\ud800"',
        'attributes["a"] == "\\q"',
        'attributes["a"] in []',
        'attributes["a"] == nan',
        'attributes["a"] == attributes["b"]',
        '(attributes["a"] == 1.0',
        "true",
        "",
    ],
)
def test_what_is_not_of_the_language_is_not_read(bad: str) -> None:
    with pytest.raises(UnreadableError):
        Reader(bad, lite=False)


def pasted(value: Any, *, lite: bool = False) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def json_in_lite(value: Any, *, lite: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False)


def of_any_type(where: Filter, *, lite: bool = False) -> str:
    return expression(where, lite=lite).replace('json_contains(attributes["_f"], "lang:s") and ', "")


def loose(where: Filter, attributes: dict[str, Any]) -> bool:
    return all(clause.op == "ne" or clause_holds(clause, attributes.get(clause.field)) for clause in where)


expression = milvus_expression.expression


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (milvus_expression, "literal", pasted),
        (milvus_expression, "literal", json_in_lite),
        (milvus_expression, "expression", of_any_type),
        (product, "holds", loose),
    ],
)
def test_a_compiler_that_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, broken: Any
) -> None:
    monkeypatch.setattr(examples, "LONG", settings(examples.LONG, phases=[Phase.generate]))
    monkeypatch.setattr(module, name, broken)
    with pytest.raises((AssertionError, ExceptionGroup)):
        filters.run(seed=1, inputs=50_000)
