"""The hash table of vectors against a dict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.stores.vector_table import VectorTable

DIM = 4


def vectors_of(hashes: np.ndarray) -> np.ndarray:
    return (hashes % np.uint64(1000)).astype(np.float32)[:, None] + np.arange(DIM, dtype=np.float32)


def array(hashes: list[int]) -> np.ndarray:
    return np.array(hashes, dtype=np.uint64)


# few low bits and many equal ones, so that home slots collide
hashes = st.integers(0, 40).map(lambda n: (n % 7) + (n << 40) + 1)
steps = st.lists(st.tuples(st.sampled_from(["put", "absent", "forget", "unknown"]), st.lists(hashes, max_size=12)))


@settings(deadline=None, max_examples=200)
@given(steps)
def test_agrees_with_a_dict(steps: list[tuple[str, list[int]]]) -> None:
    table = VectorTable(DIM, 10_000)
    expected: dict[int, bool] = {}  # hash -> whether it has a vector
    for what, named in steps:
        distinct = array(sorted(set(named)))
        if what in {"put", "absent"}:
            known = np.full(len(distinct), what == "put")
            table.put(distinct, vectors_of(distinct), known)
            expected |= dict.fromkeys(distinct.tolist(), what == "put")
        elif what == "forget":
            table.forget(array(named))
            expected = {item_hash: known for item_hash, known in expected.items() if item_hash not in named}
        else:
            table.forget_unknown()
            expected = {item_hash: known for item_hash, known in expected.items() if known}
        asked = array([0, *((n % 7) + (n << 40) + 1 for n in range(41))])
        rows = table.rows(asked)
        found = table.gather(rows)
        for item_hash, row, vector in zip(asked.tolist(), rows.tolist(), found, strict=True):
            if expected.get(item_hash):
                assert row > VectorTable.UNKNOWN
                assert (vector == vectors_of(array([item_hash]))[0]).all()
            else:
                assert row == (VectorTable.UNKNOWN if item_hash in expected else VectorTable.MISSING)
                assert not vector.any()


def test_grows_and_finds_everything() -> None:
    rng = np.random.default_rng(1)
    table = VectorTable(DIM, 50_000)
    stored = rng.integers(1, 2**63, 20_000).astype(np.uint64)
    for start in range(0, len(stored), 777):
        piece = np.unique(stored[start : start + 777])
        table.put(piece, vectors_of(piece), np.ones(len(piece), dtype=bool))
    asked = rng.permutation(stored)
    assert (table.gather(table.rows(asked)) == vectors_of(asked)).all()
    others = rng.integers(2**63, 2**64 - 1, 5000, dtype=np.uint64)
    assert (table.rows(others) == VectorTable.MISSING).all()


def test_is_bounded() -> None:
    table = VectorTable(DIM, 100)
    for start in range(1, 2000, 60):
        piece = array(list(range(start, start + 60)))
        table.put(piece, vectors_of(piece), np.ones(60, dtype=bool))
        assert len(table) <= 100
        assert (table.rows(piece) > VectorTable.UNKNOWN).all()
    many = array(list(range(5000, 5250)))
    table.put(many, vectors_of(many), np.ones(250, dtype=bool))
    assert len(table) == 100


def test_rows_of_forgotten_hashes_are_used_again() -> None:
    table = VectorTable(DIM, 1000)
    piece = array(list(range(1, 201)))
    for _ in range(50):
        table.put(piece, vectors_of(piece), np.ones(200, dtype=bool))
        table.forget(np.concatenate([piece, piece]))
    table.put(piece, vectors_of(piece), np.ones(200, dtype=bool))
    assert table.rows(piece).max() < 202
    assert len(np.unique(table.rows(piece))) == 200


@pytest.mark.parametrize("shape", [(0,), (1,)])
def test_padding_and_nothing(shape: tuple[int, ...]) -> None:
    table = VectorTable(DIM, 10)
    assert table.gather(table.rows(np.zeros(shape, dtype=np.uint64))).shape == (*shape, DIM)
