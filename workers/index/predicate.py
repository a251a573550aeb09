"""Filters in the languages of the indexes: an expression for Milvus, a function for the index in memory."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from models.spec import FilterType
from schemas.recall import FilterOp
from workers.filters import Clause, Filter, Value
from workers.index.schema import ATTRIBUTES, PRESENT, kind_of

KINDS: Final[dict[FilterType, str]] = {"number": "n", "string": "s", "bool": "b", "strings": "l"}
COMPARISONS: Final[dict[FilterOp, str]] = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
LITE_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})  # all that it knows

HOLDS: Final[dict[FilterOp, Callable[[Any, tuple[Value, ...]], bool]]] = {
    "eq": lambda stored, values: bool(stored == values[0]),
    "ne": lambda stored, values: bool(stored != values[0]),
    "lt": lambda stored, values: bool(stored < values[0]),
    "le": lambda stored, values: bool(stored <= values[0]),
    "gt": lambda stored, values: bool(stored > values[0]),
    "ge": lambda stored, values: bool(stored >= values[0]),
    "in": lambda stored, values: stored in values,
    "not_in": lambda stored, values: stored not in values,
    "contains": lambda stored, values: values[0] in stored,
    "contains_any": lambda stored, values: any(value in stored for value in values),
}


def holds(where: Filter, attributes: Mapping[str, Any]) -> bool:
    """Whether every clause holds for an item's filterable attributes."""
    return all(_holds(clause, attributes.get(clause.field)) for clause in where)


def _holds(clause: Clause, stored: Any) -> bool:
    if kind_of(stored) != KINDS[clause.kind]:
        return False
    return HOLDS[clause.op](float(stored) if clause.kind == "number" else stored, clause.values)


def expression(where: Filter, *, lite: bool = False) -> str:
    """The same as a boolean expression of Milvus; empty for no clause. Only literals come from a request."""
    return " and ".join(_expression(clause, lite) for clause in where)


def literal(value: Value, *, lite: bool = False) -> str:
    """A value as Milvus reads it: JSON strings are safe literals, whatever the text.

    Lite takes any other character as it is where JSON has an escape that it does not know.
    """
    if isinstance(value, str):
        return f'"{value.translate(LITE_ESCAPES)}"' if lite else json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(float(value))


def _expression(clause: Clause, lite: bool) -> str:
    """One clause, asking `_f` for the type where the values alone do not tell.

    In Milvus `!=` and `not in` hold for what is missing or of another type. In Lite more does: true equals 1, and a
    string that looks like a list contains. And Lite has no `in` within JSON.
    """
    path = f"{ATTRIBUTES}[{literal(clause.field, lite=lite)}]"
    values = [literal(value, lite=lite) for value in clause.values]
    if clause.op == "contains":
        told = f"json_contains({path}, {values[0]})"
    elif clause.op == "contains_any":
        told = f"json_contains_any({path}, [{', '.join(values)}])"
    elif clause.op in COMPARISONS:
        told = f"{path} {COMPARISONS[clause.op]} {values[0]}"
    elif not lite:
        told = f"{path} {clause.op.replace('_', ' ')} [{', '.join(values)}]"
    elif clause.op == "in":
        told = f"({' or '.join(f'{path} == {value}' for value in values)})"
    else:
        told = " and ".join(f"{path} != {value}" for value in values)
    if not lite and clause.op not in {"ne", "not_in"}:
        return told
    tag = literal(f"{clause.field}:{KINDS[clause.kind]}", lite=lite)
    return f'json_contains({ATTRIBUTES}["{PRESENT}"], {tag}) and {told}'
