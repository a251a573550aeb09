"""The comparison sees each kind of difference, and none in what is as it must be."""

import json
from dataclasses import replace

import pytest

from tests.chaos.answers import TakenIn, View, Watched, read_answers, uncommitted
from tests.chaos.compare import _compaction, compare
from tests.chaos.difference import Difference
from tests.chaos.formats import Item, User, hash64
from tests.chaos.log import ACTIVITY, CANDIDATES, DEAD_LETTERS, ITEMS, REQUESTS, Entry
from tests.chaos.rig import fit_bundle
from tests.chaos.stored import Row, Stored
from tests.chaos.test_model import NOW_MS, activity, after, update
from tests.chaos.vectors import ItemTower


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ItemTower:
    return ItemTower(fit_bundle(tmp_path_factory.mktemp("bundles")).path)


def test_what_compaction_leaves_must_be_the_winner() -> None:
    log = [update(0, 5), update(1, 3)]
    [difference] = _compaction(after(*log), log)
    assert (difference.kind, "compaction leaves item-updates/0@1" in difference.line) == ("lost", True)
    copy = replace(log[0], offset=2, headers=(("recall.after", b"1"),))
    assert [*_compaction(after(*log, copy), [*log, copy])] == []
    elsewhere, unreadable = update(3, partition=1), replace(update(4), value=b"{")
    assert [*_compaction(after(*log, copy, elsewhere), [*log, copy, elsewhere])] == []
    assert [*_compaction(after(*log, unreadable), [*log, unreadable])] == []


UPDATE = update(0, attributes={"year": 1950})
ASKED = Entry(REQUESTS, 0, 0, NOW_MS, b"u", b'{"request_id":"r","user_id":"u","k":2}')
BAD = Entry(ACTIVITY, 0, 9, NOW_MS, b"u", b"{")
LETTER = Entry(
    DEAD_LETTERS, 0, 0, NOW_MS, b"u", b"{",
    (("dlq.topic", b"x.user-activity"), ("dlq.partition", b"0"), ("dlq.offset", b"9"), ("dlq.error.code", b"not_json")),
)  # fmt: skip


VIEW = View("v", "items_v")
CATALOGUE = ("a", "b", "c", "i")


def answer(**fields: object) -> Entry:
    value = {"request_id": "r", "user_id": "u", "status": "ok", "reasons": [], "item_ids": ["a", "b"]}
    value |= {"scores": [2.0, 1.0], "timestamp_ms": NOW_MS, **VIEW._asdict()} | fields
    value.setdefault("sources", ["tower"] * len(value["item_ids"]))
    return Entry(CANDIDATES, 0, 0, NOW_MS, b"u", json.dumps(value).encode())


class World:
    """One event, one item, one request, one dead letter, and all as it must be, to be spoiled."""

    def __init__(self, tower: ItemTower) -> None:
        self.tower = tower
        self.activity = [activity(0, "a"), BAD]
        self.must = after(*self.activity, UPDATE, ASKED)
        self.must.first_upserts_ms = dict.fromkeys(CATALOGUE, NOW_MS)
        user, item = self.must.users["u"], self.must.items["i"]
        indexed, history = tower.embed(["i"], [{"year": 1950}])
        self.user = User(1, 0, 0, (0, 0), list(user.history.values()), {}, dict(user.seen))
        self.item = Item("i", 0, 0, False, None, tuple(map(float, history[0])), item.entry.value or b"")
        self.rows = [Row(list(map(float, indexed[0])), {"year": 1950, "_f": ["year:n"]}, hash64("i"))]
        self.answers = [answer()]
        self.popular: dict[tuple[int, int, str], dict[int, int]] = {}
        self.popular_next = {0: 10}
        self.lives_ms = {f"item:items_v:{hash64('i'):016x}": -1}
        self.letters = [LETTER]
        self.taken_in: list[TakenIn] = []
        self.refilled: list[tuple[int, int]] = []

    def known(self, until_ms: int) -> None:
        """All activity until then was in Redis before the request; and now the user is called new."""
        self.taken_in.append(TakenIn(until_ms, NOW_MS - 1))
        self.answers[0] = answer(reasons=["cold_start"])

    def asks_after(self, event_id: str) -> None:
        """The request is for a list after that activity."""
        value = json.dumps(json.loads(ASKED.value or b"") | {"after_event_id": event_id}).encode()
        self.must.requests[ASKED.place] = replace(ASKED, value=value), "", "r"

    def row(self, **fields: object) -> None:
        """The item's row in the collection is another one."""
        self.rows[0] = replace(self.rows[0], **fields)

    def asks_later(self, *, refilled: bool = False, forgotten: bool = False, **fields: object) -> None:
        """The request comes once the activity, on item `i`, is in Redis for certain; perhaps not for good."""
        self.taken_in.append(TakenIn(NOW_MS + 1001, NOW_MS + 2000))
        self.refilled += [(NOW_MS + 2001, NOW_MS + 2002)] * refilled
        self.must.users["u"].tombstones_ms += [NOW_MS + 2500] * forgotten
        self.must.requests[ASKED.place] = replace(ASKED, taken_ms=NOW_MS + 3000), "", "r"
        self.answers[0] = replace(answer(timestamp_ms=NOW_MS + 3000, **fields), taken_ms=NOW_MS + 3001)

    def differences(self) -> list[Difference]:
        users = {} if self.user is None else {"u": self.user}
        items = {} if self.item is None else {"i": self.item}
        rows = {"i": self.rows} if self.rows else {}
        stored = Stored(users, items, rows, [], self.popular, None, self.popular_next, self.lives_ms)
        topics = {ACTIVITY: self.activity, ITEMS: [UPDATE], CANDIDATES: self.answers, DEAD_LETTERS: self.letters}
        return compare(self.must, stored, topics, self.tower, Watched(self.taken_in, self.refilled, VIEW))


NOTHING: dict[str, object] = {"model_version": None, "collection": None}
EMPTY: dict[str, object] = {"item_ids": [], "scores": []}
SPOILED = {
    "nothing": (lambda w: None, []),
    "no user": (lambda w: setattr(w, "user", None), ["lost"]),
    "no event": (lambda w: setattr(w, "user", replace(w.user, history=[])), ["lost"]),
    "not counted": (lambda w: setattr(w, "user", replace(w.user, count=0)), ["lost"]),
    "counted twice": (lambda w: setattr(w, "user", replace(w.user, count=2)), ["double_effects"]),
    "twice there": (lambda w: w.user.history.append(w.user.history[0]), ["double_effects"]),
    "not seen": (lambda w: w.user.seen.clear(), ["lost"]),
    "seen by nobody": (lambda w: w.user.seen.update({5: 5}), ["wrong_state"]),
    "floor": (lambda w: setattr(w, "user", replace(w.user, floor=(1, 1))), ["wrong_state"]),
    "counted as liked": (lambda w: w.popular.update({(0, 1, ""): {5: 1024}}), ["double_effects"]),
    "no item": (lambda w: setattr(w, "item", None), ["lost"]),
    "an older item": (lambda w: setattr(w, "item", replace(w.item, offset=7)), ["lost"]),
    "other bytes": (lambda w: setattr(w, "item", replace(w.item, update=b"")), ["wrong_state"]),
    "history vector": (lambda w: setattr(w, "item", replace(w.item, vector=(0.0,) * 32)), ["wrong_state"]),
    "not indexed": (lambda w: w.rows.clear(), ["lost"]),
    "indexed twice": (lambda w: w.rows.append(w.rows[0]), ["double_effects"]),
    "vector": (lambda w: w.row(vector=[0.5] * 32), ["wrong_state"]),
    "attributes": (lambda w: w.row(attributes={"year": 1, "_f": ["year:n"]}), ["wrong_state"]),
    "an attribute more": (lambda w: w.row(attributes={"year": 1950, "q": 1, "_f": ["year:n"]}), ["wrong_state"]),
    "an attribute less": (lambda w: w.row(attributes={"_f": []}), ["wrong_state"]),
    "says that it has more": (
        lambda w: w.row(attributes={"year": 1950, "_f": ["bogus:q", "year:n"]}),
        ["wrong_state"],
    ),
    "says that it has less": (lambda w: w.row(attributes={"year": 1950, "_f": []}), ["wrong_state"]),
    "does not say what it has": (lambda w: w.row(attributes={"year": 1950}), ["wrong_state"]),
    "another's hash": (lambda w: w.row(item_hash=hash64("j")), ["wrong_state"]),
    "its hash as a signed number": (lambda w: w.row(item_hash=hash64("i") - 2**64), []),
    "popular counts that lack the last activity": (lambda w: w.popular_next.update({0: 0}), ["wrong_state"]),
    "popular counts up to the last that can be read": (lambda w: w.popular_next.update({0: 1}), []),
    "popular counts of what has not come": (lambda w: w.popular_next.update({0: 11}), ["wrong_state"]),
    "a key of no kind": (lambda w: w.lives_ms.update({"lists:u": 5}), ["wrong_state"]),
    "no answer": (lambda w: w.answers.clear(), ["unanswered"]),
    "two answers": (lambda w: w.answers.append(answer()), []),
    "another's answer": (lambda w: w.answers.append(answer(request_id="q")), ["wrong_state"]),
    "too many items": (lambda w: w.answers.append(answer(item_ids=["a", "b", "c"], scores=[3, 2, 1])), ["wrong_state"]),
    "too few scores": (lambda w: w.answers.append(answer(scores=[3])), ["wrong_state"]),
    "too few sources": (lambda w: w.answers.append(answer(sources=["tower"])), ["wrong_state"]),
    "no number": (lambda w: w.answers.append(answer(scores=[2.0, None])), ["wrong_state"]),
    "not finite": (lambda w: w.answers.append(answer(scores=[float("inf"), 1.0])), ["wrong_state"]),
    "another version": (lambda w: w.answers.append(answer(model_version="w")), ["wrong_state"]),
    "another collection": (lambda w: w.answers.append(answer(collection="items_w")), ["wrong_state"]),
    "a list of nothing": (lambda w: w.answers.append(answer(**NOTHING)), ["wrong_state"]),
    "degraded before anything is open": (
        lambda w: w.answers.append(answer(status="degraded", reasons=["model_unavailable"], **NOTHING, **EMPTY)),
        [],
    ),
    "ok before anything is open": (
        lambda w: w.answers.append(answer(reasons=["short_list"], **NOTHING, **EMPTY)),
        ["wrong_state"],
    ),
    "rejected": (lambda w: w.answers.append(answer(status="rejected", reasons=["overloaded"], **EMPTY)), []),
    "rejected with a list": (
        lambda w: w.answers.append(answer(status="rejected", reasons=["overloaded"])),
        ["wrong_state"],
    ),
    "an item that never was": (lambda w: w.answers.append(answer(item_ids=["a", "z"])), ["wrong_state"]),
    "an item that came later": (lambda w: w.must.first_upserts_ms.update(b=NOW_MS + 51), ["wrong_state"]),
    "an item whose first update may be compacted": (
        lambda w: (w.must.first_upserts_ms.update(b=NOW_MS + 51), setattr(w.must, "whole_items", False)),
        [],
    ),
    "an item that was seen": (lambda w: w.asks_later(item_ids=["a", "i"]), ["wrong_state"]),
    "others than what was seen": (lambda w: w.asks_later(), []),
    "an item that was seen, degraded": (
        lambda w: w.asks_later(item_ids=["a", "i"], status="degraded", reasons=["index_unavailable"]),
        [],
    ),
    "an item that was seen, before redis was emptied": (lambda w: w.asks_later(refilled=True, item_ids=["a", "i"]), []),
    "an item that was seen, and forgotten": (lambda w: w.asks_later(forgotten=True, item_ids=["a", "i"]), []),
    "an item that was seen a moment ago": (lambda w: w.answers.append(answer(item_ids=["a", "i"])), []),
    "ok too late": (lambda w: w.answers.append(answer(timestamp_ms=NOW_MS + 2100)), ["wrong_state"]),
    "expired in time": (
        lambda w: w.answers.append(answer(status="expired", reasons=["deadline_exceeded"], **EMPTY)),
        ["wrong_state"],
    ),
    "expired": (
        lambda w: w.answers.append(
            answer(status="expired", reasons=["deadline_exceeded"], timestamp_ms=NOW_MS + 2000, **EMPTY)
        ),
        [],
    ),
    "expired with a list": (
        lambda w: w.answers.append(answer(status="expired", reasons=["deadline_exceeded"], timestamp_ms=NOW_MS + 2000)),
        ["wrong_state"],
    ),
    "ok, and too short": (lambda w: w.answers.append(answer(item_ids=["a"], scores=[1])), ["wrong_state"]),
    "short, and not": (lambda w: w.answers.append(answer(reasons=["short_list"])), ["wrong_state"]),
    "ok without its features": (
        lambda w: w.answers.append(answer(reasons=["features_unavailable"])),
        ["wrong_state"],
    ),
    "degraded by nothing": (lambda w: w.answers.append(answer(status="degraded")), ["wrong_state"]),
    "degraded": (lambda w: w.answers.append(answer(status="degraded", reasons=["model_unavailable"])), []),
    "a user who may be new": (lambda w: w.known(NOW_MS), []),
    "a known user called new": (lambda w: w.known(NOW_MS + 1), ["wrong_state"]),
    "a user who was forgotten": (lambda w: (w.known(NOW_MS + 1), w.must.users["u"].tombstones_ms.append(NOW_MS)), []),
    "after an activity that came": (lambda w: w.asks_after("a"), []),
    "after an activity that came later": (
        lambda w: (
            w.asks_after("a"),
            w.must.users["u"].sources.update({hash64("a"): replace(activity(0, "a"), taken_ms=NOW_MS + 51)}),
        ),
        ["wrong_state"],
    ),
    "after an activity that never came": (lambda w: w.asks_after("b"), ["wrong_state"]),
    "no dead letter": (lambda w: w.letters.clear(), ["lost"]),
    "no dead letter while redis is filled": (
        lambda w: (w.letters.clear(), w.refilled.append((0, 2 * NOW_MS))),
        ["lost"],
    ),
    "a dead letter of the same place in an earlier log": (
        lambda w: w.letters.__setitem__(0, replace(LETTER, log=1)),
        ["lost", "wrong_state"],
    ),
    "other dead letter": (lambda w: w.letters.__setitem__(0, replace(LETTER, value=b"[")), ["wrong_state"]),
    "needless dead letter": (
        lambda w: w.letters.append(
            replace(LETTER, headers=(*LETTER.headers[:2], ("dlq.offset", b"0"), LETTER.headers[3]))
        ),
        ["wrong_state"],
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_every_kind_of_difference_is_seen(case: str, tower: ItemTower) -> None:
    spoil, kinds = SPOILED[case]
    world = World(tower)
    spoil(world)
    assert [difference.kind for difference in world.differences()] == kinds


def test_a_request_that_was_taken_twice_needs_two_answers_and_each_is_right_for_one(tower: ItemTower) -> None:
    """Its first answer comes too late, its producer has not heard of the first and sends again after that answer."""
    world = World(tower)
    again = replace(ASKED, offset=1, taken_ms=NOW_MS + 2500)
    world.must.requests[again.place] = again, "", "r"
    assert [difference.kind for difference in world.differences()] == ["unanswered"]
    world.answers.append(answer(status="expired", reasons=["deadline_exceeded"], timestamp_ms=NOW_MS + 2200, **EMPTY))
    assert world.differences() == []


def test_answers_that_may_come_again() -> None:
    entries = [
        replace(answer(request_id=f"r{n}"), taken_ms=taken_ms) for n, taken_ms in enumerate((1500, 0, 900, 1000))
    ]
    assert (taken_ms := read_answers(entries).taken_ms()) == [0, 900, 1000, 1500]
    assert uncommitted(taken_ms, [(1000, 1.0)], 100) == 2
    assert uncommitted(taken_ms, [(1000, 0.5), (1500, 1.0), (5000, 1.0)], 500) == 3
    assert uncommitted(taken_ms, [], 500) == 0
