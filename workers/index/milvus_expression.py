"""Filters as boolean expressions of Milvus and of Milvus Lite, which differ."""

import json
from typing import Final

from schemas.recall import FilterOp
from workers.filters import Clause, Filter, Value
from workers.index.schema import ATTRIBUTES, LETTERS, PRESENT

COMPARISONS: Final[dict[FilterOp, str]] = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
LITE_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})  # all that it knows


def expression(where: Filter, *, lite: bool = False) -> str:
    """True of the items for which the filter holds; empty for no clause. Only literals come from a request."""
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
    tag = literal(f"{clause.field}:{LETTERS[clause.kind]}", lite=lite)
    return f'json_contains({ATTRIBUTES}["{PRESENT}"], {tag}) and {told}'
