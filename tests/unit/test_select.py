"""Selection: what is taken out, the order, the cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.recall import Removed
from schemas.records import hash64
from workers.select import candidates, first_depth, full_depth

NONE = np.zeros(0, dtype=np.uint64)


class Deleted:
    def __init__(self, *item_ids: str) -> None:
        self.hashes = hashes(*item_ids)

    def deleted(self, asked: np.ndarray) -> np.ndarray:
        return np.isin(asked, self.hashes)


def hashes(*item_ids: str) -> np.ndarray:
    return np.sort(np.array([hash64(item_id) for item_id in item_ids], dtype=np.uint64))


def test_takes_out_what_must_not_be_shown_and_counts_each_item_once() -> None:
    selection = candidates(
        ["a", "b", "c", "d", "e", "f"],
        np.array([6, 5, 4, 3, 2, 1], dtype=np.float32),
        k=2,
        seen=hashes("a", "b"),
        excluded=hashes("b", "d"),
        deleted=Deleted("a"),
    )
    assert selection.item_ids == ["c", "e"]
    assert selection.scores.tolist() == [4, 2]
    assert selection.removed == Removed(seen=2, excluded=1)


def test_equal_scores_stand_in_order_of_their_ids_also_at_the_cut() -> None:
    scores = np.array([2, 1, 1, 1], dtype=np.float32)
    selection = candidates(["x", "c", "a", "b"], scores, k=3, seen=NONE, excluded=NONE, deleted=Deleted())
    assert selection.item_ids == ["x", "a", "b"]


def test_an_item_found_twice_is_kept_once_with_its_best_score() -> None:
    scores = np.array([3, 2, 1], dtype=np.float32)
    selection = candidates(["a", "b", "a"], scores, k=3, seen=NONE, excluded=NONE, deleted=Deleted())
    assert (selection.item_ids, selection.scores.tolist()) == (["a", "b"], [3, 2])
    assert selection.removed.duplicate == 1


def test_nothing_found_is_an_empty_list() -> None:
    selection = candidates([], np.zeros(0, dtype=np.float32), k=5, seen=NONE, excluded=NONE, deleted=Deleted())
    assert selection.item_ids == []
    assert selection.scores.shape == (0,)


@given(
    st.lists(st.integers(0, 400), unique=True, max_size=300),
    st.sets(st.integers(0, 400)),
    st.sets(st.integers(0, 400)),
    st.integers(1, 60),
)
def test_equals_the_plain_rule(items: list[int], seen: set[int], deleted: set[int], k: int) -> None:
    ids = [f"i{item}" for item in items]
    scores = np.array([-(position // 3) for position in range(len(ids))], dtype=np.float32)  # ties of three
    selection = candidates(
        ids,
        scores,
        k=k,
        seen=hashes(*(f"i{item}" for item in seen)),
        excluded=NONE,
        deleted=Deleted(*(f"i{item}" for item in deleted)),
    )
    ranked = sorted(zip((-scores).tolist(), ids, strict=True))
    gone = {f"i{item}" for item in seen | deleted}
    assert selection.item_ids == [item_id for _, item_id in ranked if item_id not in gone][:k]


def test_hits_that_do_not_come_in_order_are_ordered() -> None:
    scores = np.array([1, 3, 3, 2], dtype=np.float32)
    selection = candidates(["d", "b", "a", "c"], scores, k=4, seen=NONE, excluded=NONE, deleted=Deleted())
    assert (selection.item_ids, selection.scores.tolist()) == (["a", "b", "c", "d"], [3, 3, 2, 1])


LIMIT = 16384


def test_full_depth_leaves_room_for_everything_removable_in_few_distinct_steps() -> None:
    assert [full_depth(100, n, LIMIT) for n in (0, 28, 29, 92, 93, 412, 413)] == [128, 128, 192, 192, 256, 512, 768]
    assert [full_depth(k, 0, LIMIT) for k in (1, 64, 65, 96, 97)] == [64, 64, 96, 96, 128]
    assert full_depth(1000, 20_000, LIMIT) == LIMIT


def test_first_depth_grows_with_the_root_of_the_seen_items() -> None:
    assert [first_depth(100, n, 0, LIMIT) for n in (0, 20, 100, 250, 600, 1000, 2000)] == [
        *(128, 128, 192, 256, 256, 384, 384),
    ]
    assert first_depth(1000, 2000, 0, LIMIT) == 2048
    assert first_depth(100, 2000, 0, 200) == 200


def test_first_depth_leaves_room_for_every_excluded_item() -> None:
    assert first_depth(100, 0, 412, LIMIT) == 512
    assert first_depth(100, 0, 413, LIMIT) == 768


@given(st.integers(1, 1000), st.integers(0, 2000), st.integers(0, 1000), st.integers(1, LIMIT))
def test_the_first_search_is_never_deeper_than_the_full_one(k: int, seen: int, excluded: int, limit: int) -> None:
    first = first_depth(k, seen, excluded, limit)
    assert min(k + excluded, limit) <= first <= full_depth(k, seen + excluded, limit) <= limit


@given(st.integers(1, 200), st.integers(0, 500), st.data())
def test_full_depth_is_enough_wherever_the_seen_items_stand(k: int, seen: int, data: st.DataObject) -> None:
    depth = full_depth(k, seen, LIMIT)
    ids = [f"i{n}" for n in range(depth)]
    met = ids[:seen] if data.draw(st.booleans()) else data.draw(st.randoms()).sample(ids, seen)
    scores = np.arange(depth, 0, -1, dtype=np.float32)
    found = candidates(ids, scores, k=k, seen=hashes(*met), excluded=NONE, deleted=Deleted())
    assert len(found.item_ids) == k
