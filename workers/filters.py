"""Filters: clauses of a request, checked against the fields that features.toml declares, and what they say of an item.

A clause on an attribute that an item lacks, or holds in another type, is false for every op; all clauses must hold.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.spec import FilterType
from schemas.recall import MAX_CLAUSES, FilterClause, FilterOp

Value = float | str | bool

MAX_VALUES = 100  # of one clause
MAX_TEXT_BYTES = 1024
MAX_INTEGER = 1 << 53  # numbers are compared as 64-bit floats, which hold every integer up to here

ONE_VALUE: Final[dict[FilterType, frozenset[FilterOp]]] = {
    "number": frozenset({"eq", "ne", "lt", "le", "gt", "ge"}),
    "string": frozenset({"eq", "ne"}),
    "bool": frozenset({"eq", "ne"}),
    "strings": frozenset({"contains"}),
}
MANY_VALUES: Final[dict[FilterType, frozenset[FilterOp]]] = {
    "number": frozenset({"in", "not_in"}),
    "string": frozenset({"in", "not_in"}),
    "bool": frozenset(),
    "strings": frozenset({"contains_any"}),
}
HOLDS: Final[dict[FilterOp, Callable[[Any, Any], bool]]] = {  # of a stored value and a clause's values
    "eq": lambda stored, values: bool(stored == values[0]),
    "ne": lambda stored, values: bool(stored != values[0]),
    "lt": lambda stored, values: bool(stored < values[0]),
    "le": lambda stored, values: bool(stored <= values[0]),
    "gt": lambda stored, values: bool(stored > values[0]),
    "ge": lambda stored, values: bool(stored >= values[0]),
    "in": lambda stored, values: stored in values,
    "not_in": lambda stored, values: stored not in values,
    "contains": lambda stored, values: values[0] in stored,
    "contains_any": lambda stored, values: any(element in values for element in stored),
}


class InvalidFilter(ValueError):
    """A clause that cannot be asked; the message names the part of the request: `filter[2].value`."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause as it was declared and checked. `values`: one, but for in, not_in and contains_any: sorted, unique."""

    field: str
    kind: FilterType
    op: FilterOp
    values: tuple[Value, ...]


Filter = tuple[Clause, ...]


def checked(clauses: Sequence[FilterClause], declared: Mapping[str, FilterType]) -> Filter:
    """The clauses with the types of their fields. Equal filters are equal, in whatever order values stood.

    Raises InvalidFilter: more than 16 clauses, a field that is not declared, an op that its type does not have, a value
    of another type (numbers: finite, integers up to 2^53; strings: up to 1,024 bytes of UTF-8), not 1 to 100 values.
    """
    if len(clauses) > MAX_CLAUSES:
        raise InvalidFilter("filter")
    return tuple(_clause(f"filter[{number}]", clause, declared) for number, clause in enumerate(clauses))


def _clause(where: str, clause: FilterClause, declared: Mapping[str, FilterType]) -> Clause:
    kind, value = declared.get(clause.field), clause.value
    if kind is None:
        raise InvalidFilter(f"{where}.field")
    if clause.op in ONE_VALUE[kind]:
        values = [value]
    elif clause.op not in MANY_VALUES[kind]:
        raise InvalidFilter(f"{where}.op")
    elif isinstance(value, list) and 1 <= len(value) <= MAX_VALUES:
        values = value
    else:
        raise InvalidFilter(f"{where}.value")
    if not all(VALID[kind](each) for each in values):
        raise InvalidFilter(f"{where}.value")
    typed = [float(each) for each in values] if kind == "number" else values
    return Clause(clause.field, kind, clause.op, tuple(sorted(set(typed))))


def holds(where: Filter, attributes: Mapping[str, Any]) -> bool:
    """Whether every clause holds for an item's filterable attributes. Milvus is asked the same by an expression."""
    return all(clause_holds(clause, attributes.get(clause.field)) for clause in where)


def which(where: Filter, items: Sequence[Mapping[str, Any]]) -> list[int]:
    """Positions of the items for which every clause holds, in order. `holds` for many items, faster."""
    left = list(range(len(items)))
    for clause in where:
        values = clause.values if clause.op in ONE_VALUE[clause.kind] else frozenset(clause.values)
        left = [n for n in left if _holds(clause, values, items[n].get(clause.field))]
    return left


def clause_holds(clause: Clause, stored: Any) -> bool:
    """Whether a clause holds for the value of its attribute."""
    return _holds(clause, clause.values, stored)


def _holds(clause: Clause, values: Collection[Value], stored: Any) -> bool:
    if type_of(stored) != clause.kind:
        return False
    return HOLDS[clause.op](float(stored) if clause.kind == "number" else stored, values)


def type_of(value: Any) -> FilterType | None:
    """As what a value can be filtered on; None for one that cannot be."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list) and all(isinstance(element, str) for element in value):
        return "strings"
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= MAX_INTEGER


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(value.encode()) <= MAX_TEXT_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


VALID: Final[dict[FilterType, Callable[[Any], bool]]] = {
    "number": _is_number,
    "string": _is_text,
    "bool": _is_bool,
    "strings": _is_text,
}
