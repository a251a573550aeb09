"""What is remembered: for equal questions only, for its time, and bounded."""

from itertools import combinations

import numpy as np

from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.recall import FilterClause, RecallRequest
from schemas.records import UserRecord
from workers.pipelines.admission import Asked, Incoming, View, admit
from workers.plans import plans
from workers.remembered import MAX_ITEMS, MAX_RESULTS, LastLists, Results, list_key, result_key
from workers.scenes import SceneSettings

SPEC = load_spec(builtin_spec("marketplace"))
VIEW = View(Encoding(SPEC, Vocabularies({}, [])), 64, "v", "c", plans({"home": SceneSettings()}, SPEC))


def asked(user_id: str = "u", **fields: object) -> Asked:
    admitted = admit(Incoming(RecallRequest(request_id="r", user_id=user_id, **fields), 0), VIEW, 0)
    assert isinstance(admitted, Asked)
    return admitted


RECORD = UserRecord().encode()


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


QUESTIONS = [
    asked(),
    asked(k=5),
    asked(scene="home"),
    asked(exclude_seen=False),
    asked(timestamp_ms=5),
    asked(context={"hour": 3}),
    asked(context={"hour": 4}),
    asked(exclude_items=["a"]),
    asked(exclude_items=["b"]),
    asked(anchor_items=["a"]),
    asked(filter=[FilterClause(field="price", op="lt", value=9)]),
    asked(filter=[FilterClause(field="price", op="lt", value=8)]),
]


def test_whatever_changes_an_answer_changes_the_key() -> None:
    for one, other in combinations(QUESTIONS, 2):
        assert result_key(one, b"token") != result_key(other, b"token")
    assert result_key(QUESTIONS[0], b"token") != result_key(QUESTIONS[0], b"nekot")


def test_equal_questions_have_one_key_whatever_their_ids_and_the_order_of_their_context() -> None:
    one = asked(context={"hour": 3, "device": "tv"})
    other = admit(
        Incoming(RecallRequest(request_id="other", user_id="u", timeout_ms=5, context={"device": "tv", "hour": 3}), 1),
        VIEW,
        1,
    )
    assert isinstance(other, Asked)
    assert result_key(one, b"t") == result_key(other, b"t")
    assert hash(result_key(one, b"t")) == hash(result_key(other, b"t"))


def test_keys_are_small_whatever_is_asked() -> None:
    large = asked(
        filter=[FilterClause(field="price", op="not_in", value=[float(n) for n in range(100)])] * 16,
        exclude_items=["x" * 256] * 1000,
        context={"device": "x" * 100_000},
    )
    for key in (result_key(large, b"token"), list_key(large, None)):
        assert len(repr(key)) < 200


def test_results_live_for_their_time() -> None:
    time = Time()
    results: Results[str] = Results(1000, time)
    results.put("key", "found")
    time.now_s += 0.6
    found = results.get("key")
    assert found is not None
    assert found[0] == "found"
    assert abs(found[1] - 600) < 1
    time.now_s += 0.5
    assert results.get("key") is None


def test_results_are_bounded_and_can_be_turned_off() -> None:
    results: Results[int] = Results(1000)
    for number in range(MAX_RESULTS + 10):
        results.put(number, number)
    assert results.get(0) is None
    assert results.get(MAX_RESULTS + 9) is not None
    off: Results[int] = Results(0)
    off.put("key", 1)
    assert off.get("key") is None


def test_what_is_too_old_goes_though_nobody_asks() -> None:
    time = Time()
    results: Results[str] = Results(1000, time)
    last = LastLists(max_lists=2, ttl_ms=1000, now_s=time)
    for elapsed_s, kept in ((0.9, True), (1.1, False)):
        results.put("key", "found")
        last.put("key", ["a"], np.zeros(1, dtype=np.float32))
        time.now_s += elapsed_s
        results.expire()
        last.expire()
        time.now_s -= elapsed_s  # it would count again
        assert (results.get("key") is not None, bool(last.get("key")[0])) == (kept, kept)
    Results(0).expire()
    LastLists(0, 0).expire()


def test_last_lists_are_a_users_own_and_live_for_their_time() -> None:
    time = Time()
    last = LastLists(max_lists=2, ttl_ms=60_000, now_s=time)
    scores = np.array([2, 1], dtype=np.float32)
    last.put(list_key(asked("u"), RECORD), ["é", "b\0"], scores)
    item_ids, found = last.get(list_key(asked("u", k=7, exclude_items=["x"]), RECORD))
    assert item_ids == ["é", "b\0"]
    np.testing.assert_array_equal(found, scores)
    assert last.get(list_key(asked("v"), RECORD))[0] == []
    assert last.get(list_key(asked("u", anchor_items=["a"]), RECORD))[0] == []
    forgotten = UserRecord(forget_taken_ms=5).encode()
    assert last.get(list_key(asked("u"), forgotten))[0] == []
    time.now_s += 61
    assert last.get(list_key(asked("u"), RECORD))[0] == []


def test_last_lists_are_bounded_and_can_be_turned_off() -> None:
    scores = np.zeros(1, dtype=np.float32)
    last = LastLists(max_lists=2, ttl_ms=60_000)
    for user in "abc":
        last.put(user, [user], scores)
    assert last.get("a")[0] == []
    assert last.get("c")[0] == ["c"]
    last.put("long", [str(n) for n in range(1000)], np.zeros(1000, dtype=np.float32))
    assert [len(part) for part in last.get("long")] == [MAX_ITEMS, MAX_ITEMS]
    off = LastLists(max_lists=0, ttl_ms=60_000)
    off.put("a", ["a"], scores)
    assert off.get("a")[0] == []
