"""Names, types and shapes of the towers' inputs and outputs: what a graph declares and a worker checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.spec import Field, Vector
from models.tensors import Encoding, Vocabularies

Type = Literal["float32", "int64"]

USER_EMBEDDING = "user_embedding"
ITEM_EMBEDDING = "item_embedding"
HISTORY_EMBEDDING = "history_embedding"


@dataclass(frozen=True)
class Array:
    """An array with the batch on its first axis: element type and the axes behind it."""

    type: Type
    shape: tuple[int, ...] = ()


Arrays = dict[str, Array]


def user_inputs(encoding: Encoding, dim: int) -> Arrays:
    """Inputs of the user tower."""
    length = encoding.spec.history.length
    return (
        {
            "history_vectors": Array("float32", (length, dim)),
            "history_codes": Array("int64", (length,)),
            "history_age_s": Array("float32", (length,)),
            "event_count": Array("float32"),
            "gap_s": Array("float32"),
        }
        | _fields("profile", encoding.spec.profile, encoding.vocabularies)
        | _fields("context", encoding.spec.context, encoding.vocabularies)
        | {name.replace(".", "_", 1): Array("float32", (v.size,)) for name, v in encoding.spec.vectors.items()}
    )


def item_inputs(encoding: Encoding) -> Arrays:
    """Inputs of the item tower."""
    return {"item_code": Array("int64")} | _fields("item", encoding.spec.item, encoding.vocabularies)


def user_outputs(dim: int) -> Arrays:
    """Outputs of the user tower."""
    return {USER_EMBEDDING: Array("float32", (dim,))}


def item_outputs(dim: int) -> Arrays:
    """Outputs of the item tower: what is indexed, and what stands in a user's history."""
    return {ITEM_EMBEDDING: Array("float32", (dim,)), HISTORY_EMBEDDING: Array("float32", (dim,))}


def width(field: Field, name: str, vocabularies: Vocabularies) -> int:
    """How many weights a field has per dimension: its codes, 0 included; a multi field has no code 0."""
    if isinstance(field, Vector):
        return field.size
    if field.kind == "category":
        return len(vocabularies.values.get(name, ())) + 1
    if field.kind == "multi":
        return len(vocabularies.values.get(name, ()))
    return len(field.edges) + 2 if field.kind == "bucket" else 1


def _fields(section: str, fields: Mapping[str, Field], vocabularies: Vocabularies) -> Arrays:
    types = {"category": Array("int64"), "bucket": Array("int64"), "number": Array("float32")}
    return {
        f"{section}_{name}": types.get(field.kind)
        or Array("float32", (width(field, f"{section}.{name}", vocabularies),))
        for name, field in fields.items()
    }
