"""The attributes of a row: what can be filtered on, typed by what is there."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import hash64
from workers.errors import RowRefused
from workers.index.schema import (
    MAX_ATTRIBUTES_BYTES,
    MAX_VALUE_BYTES,
    check_queries,
    check_rows,
    encode_attributes,
    last_of_each,
    signed_hash,
)
from workers.ports import IndexRows


def test_values_keep_their_place_and_their_type() -> None:
    attributes = {"year": 1999, "price": 9.5, "title": "Tron", "used": False, "genres": ["Drama", "War"], "none": []}
    assert orjson.loads(encode_attributes(attributes)) == attributes | {
        "_f": ["year:n", "price:n", "title:s", "used:b", "genres:l", "none:l"]
    }


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, 2], ["a", 1], ["a", None], [["a"]], float("nan"), float("inf")])
def test_other_values_are_absent(value: Any) -> None:
    assert orjson.loads(encode_attributes({"a": value, "b": 1})) == {"b": 1, "_f": ["b:n"]}


def test_the_list_of_what_is_present_cannot_be_forged() -> None:
    assert orjson.loads(encode_attributes({"_f": ["x:n"], "a": 1})) == {"a": 1, "_f": ["a:n"]}


def test_a_value_that_is_too_long_is_absent_not_cut() -> None:
    fits, over = "x" * (MAX_VALUE_BYTES - 2), "x" * (MAX_VALUE_BYTES - 1)
    assert orjson.loads(encode_attributes({"a": fits, "b": over, "c": [over], "d": 1}))["_f"] == ["a:s", "d:n"]


def test_a_row_that_is_too_long_keeps_what_fits_in_order() -> None:
    attributes = {f"field {n}": "é" * 2000 for n in range(40)} | {"last": 1}
    encoded = encode_attributes(attributes)
    assert MAX_ATTRIBUTES_BYTES - 4100 < len(encoded) <= MAX_ATTRIBUTES_BYTES
    assert orjson.loads(encoded)["_f"] == [f"field {n}:s" for n in range(16)] + ["last:n"]


scalars = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=3000), st.none())


@given(st.dictionaries(st.text(max_size=20), st.one_of(scalars, st.lists(scalars, max_size=5)), max_size=30))
def test_is_json_of_bounded_size_whatever_comes(attributes: dict[str, Any]) -> None:
    encoded = encode_attributes(attributes)
    assert len(encoded) <= MAX_ATTRIBUTES_BYTES
    decoded = orjson.loads(encoded)
    assert [tag.rpartition(":")[0] for tag in decoded["_f"]] == [name for name in decoded if name != "_f"]


@given(st.text(min_size=1))
def test_the_signed_hash_is_the_same_64_bits(item_id: str) -> None:
    signed = signed_hash(item_id)
    assert -(2**63) <= signed < 2**63
    assert signed % 2**64 == hash64(item_id)


def test_of_a_repeated_id_the_last_row_counts() -> None:
    assert last_of_each(["a", "b", "a", "c", "b"]) == [2, 3, 4]


def test_rows_that_no_index_takes_are_named() -> None:
    vectors = np.ones((5, 2), dtype=np.float32)
    vectors[1, 0], vectors[4, 1] = np.nan, -np.inf
    ids = ["a", "b", "é" * 128, "é" * 128 + "x", "c"]
    with pytest.raises(RowRefused) as caught:
        check_rows("index", IndexRows(ids, vectors, [{}] * 5), 2)
    assert caught.value.rows == [1, 3, 4]
    with pytest.raises(RowRefused, match=r"\(5, 3\)"):
        check_rows("index", IndexRows(ids, vectors, [{}] * 5), 3)


def test_queries_of_another_dimension_are_refused() -> None:
    check_queries("index", np.ones((3, 2), dtype=np.float32), 2)
    for vectors in (np.ones((3, 4), dtype=np.float32), np.ones(2, dtype=np.float32), np.full((1, 2), np.nan)):
        with pytest.raises(RowRefused):
            check_queries("index", vectors, 2)
