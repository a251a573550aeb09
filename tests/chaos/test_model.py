"""The model's own rules, and that the comparison sees each kind of difference."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiokafka.partitioner import murmur2

from models.tensors import item_inputs
from schemas import codec
from tests.chaos.answers import TakenIn, read_answers, uncommitted
from tests.chaos.compare import _compaction, compare
from tests.chaos.difference import Difference
from tests.chaos.formats import ITEM_HEAD, ROW, SEEN, USER_HEAD, Item, User, hash64, read_item, read_user
from tests.chaos.log import ACTIVITY, CANDIDATES, DEAD_LETTERS, ITEMS, REQUESTS, Entry
from tests.chaos.model import HISTORY, Expected, Rules, expected
from tests.chaos.replayed import Replayed
from tests.chaos.rig import DATASET, fit_bundle
from tests.chaos.stored import Row, Stored
from tests.chaos.vectors import ItemTower
from tests.chaos.workload import GENRES, REFUSED_BY_INDEX, WRONGED, Message, Workload
from workers.towers.onnx import open_tower

NOW_MS = 1_700_000_000_000
RULES = Rules(frozenset({"rate"}), "rate", 4.0, 1000, "gender", frozenset("FM"))
EPOCH = NOW_MS // 16_000


def activity(offset: int, event: str, at_ms: int = NOW_MS, partition: int = 0, **fields: object) -> Entry:
    value = {"event_id": event, "user_id": "u", "action": "rate", "timestamp_ms": at_ms, "item_id": "i"} | fields
    return Entry(ACTIVITY, partition, offset, NOW_MS, b"u", json.dumps(value).encode())


def update(offset: int, version: int | None = None, partition: int = 0, **fields: object) -> Entry:
    value = {"item_id": "i", "op": "upsert", "timestamp_ms": 1, "version": version} | fields
    return Entry(ITEMS, partition, offset, NOW_MS + offset, b"i", json.dumps(value).encode())


def after(*entries: Entry) -> Expected:
    topics: dict[str, list[Entry]] = {topic: [] for topic in (ACTIVITY, ITEMS, REQUESTS)}
    for entry in entries:
        topics[entry.topic].append(entry)
    return expected(topics, RULES)


def test_a_copy_counts_once() -> None:
    user = after(activity(0, "a"), activity(1, "b"), activity(2, "a")).users["u"]
    assert (user.count, len(user.history)) == (2, 2)


def test_what_was_pushed_out_does_not_come_back() -> None:
    events = [activity(n, f"e{n}", NOW_MS - 1000 + n) for n in range(HISTORY + 3)]
    user = after(*events, activity(100, "e0", NOW_MS - 1000)).users["u"]
    assert (user.count, len(user.history)) == (HISTORY + 3, HISTORY)
    assert user.floor == (NOW_MS - 1000 + 2, hash64("e2"))
    late = after(*events, activity(100, "late", NOW_MS - 5000, item_id="j", attributes={"age": "3"})).users["u"]
    assert late.count == HISTORY + 3
    assert late.seen[hash64("j")] == NOW_MS - 5000
    assert late.profile == {"age": ("3", NOW_MS - 5000)}


def test_users_of_several_partitions_may_not_outgrow_the_history() -> None:
    with pytest.raises(AssertionError, match="several partitions"):
        after(*(activity(n, f"e{n}", partition=n % 2) for n in range(HISTORY + 1)))


def test_forgetting_ends_what_came_before_and_not_what_comes_after() -> None:
    tombstone = Entry(ACTIVITY, 0, 1, NOW_MS, b"u", None)
    user = after(activity(0, "a", NOW_MS - 5), tombstone, activity(2, "a", NOW_MS - 5), tombstone).users["u"]
    assert (user.count, user.history, user.seen, user.forgotten_ms) == (0, {}, {}, NOW_MS)
    assert after(activity(0, "a"), tombstone, activity(2, "b", NOW_MS + 1)).users["u"].count == 1


def test_profiles_keep_the_newest_and_of_equal_times_the_greater() -> None:
    events = [activity(n, f"e{n}", at_ms, attributes={"g": value}) for n, (at_ms, value) in enumerate(TIES)]
    assert after(*events).users["u"].profile == after(*reversed(events)).users["u"].profile == {"g": ("M", NOW_MS)}


def test_what_a_backend_refuses_is_a_dead_letter_and_leaves_nothing() -> None:
    by_tower = update(0, attributes={"genres": list(GENRES)})
    by_index = replace(update(1, item_id=f"{REFUSED_BY_INDEX}1"), key=f"{REFUSED_BY_INDEX}1".encode())
    huge = update(3, attributes={"genres": ["War"]}, embedding=[3e38])
    must = after(by_tower, by_index, huge, update(2, attributes={"genres": ["War"]}), activity(0, "a", user_id=WRONGED))
    assert {entry.offset: code for entry, code in must.letters.values() if entry.topic == ITEMS} == {
        0: "tower_output",
        1: "index_refused",
        3: "invalid_embedding",
    }
    assert [code for entry, code in must.letters.values() if entry.topic == ACTIVITY] == ["record_unreadable"]
    assert (list(must.users), {item_id: item.entry.offset for item_id, item in must.items.items()}) == ([], {"i": 2})


TIES = [(NOW_MS - 1, "X"), (NOW_MS, "F"), (NOW_MS, "M"), (NOW_MS, "A")]


def test_what_is_liked_counts_once_for_everybody_and_in_the_segment() -> None:
    start_ms, item = EPOCH * 16_000, hash64("i")
    events = [
        activity(0, "a", start_ms, value=4),
        activity(1, "a", start_ms, value=4),
        activity(2, "b", start_ms + 1000, value=5, attributes={"gender": "F"}),
        activity(3, "c", start_ms, value=3),
        activity(4, "d", start_ms, value=5, action="view"),
    ]
    assert after(*events).popular == {(0, EPOCH, ""): {item: 1024 + 2048}, (0, EPOCH, "F"): {item: 2048}}


def test_the_later_offset_wins_and_a_lower_version_does_not() -> None:
    result = after(update(0, 5), update(1, 3), update(2, op="delete"), update(3, 1))
    assert result.items["i"].entry.offset == 3
    assert result.letters == {}
    assert set(result.may_be_letters.values()) == {"stale_version"}
    assert after(update(0, 5), update(1, 3)).letters[update(1).place][1] == "stale_version"
    assert after(update(0), update(1, partition=1)).letters[update(1, partition=1).place][1] == "wrong_partition"


def test_a_winner_that_was_produced_again_wins_unless_it_fell_behind() -> None:
    def again(offset: int, of: Entry, behind: int) -> Entry:
        return replace(of, offset=offset, headers=(("recall.after", str(behind).encode()),))

    log = [update(0, 5), update(1, 3), again(2, update(0, 5), 1)]
    assert after(*log).items["i"].entry.offset == 2
    assert after(*log[1:]).items["i"].entry.offset == 2, "also where compaction has left no more"
    gone = [*log[:2], update(2, op="delete"), again(3, log[0], 1)]
    assert after(*gone).items["i"].deleted
    assert after(*gone, again(4, gone[2], 3)).items["i"].entry.offset == 4


def test_what_compaction_leaves_must_be_the_winner() -> None:
    log = [update(0, 5), update(1, 3)]
    [difference] = _compaction(after(*log), log)
    assert (difference.kind, "compaction leaves item-updates/0@1" in difference.line) == ("lost", True)
    copy = replace(log[0], offset=2, headers=(("recall.after", b"1"),))
    assert [*_compaction(after(*log, copy), [*log, copy])] == []
    elsewhere, unreadable = update(3, partition=1), replace(update(4), value=b"{")
    assert [*_compaction(after(*log, copy, elsewhere), [*log, copy, elsewhere])] == []
    assert [*_compaction(after(*log, unreadable), [*log, unreadable])] == []


@pytest.mark.parametrize(
    ("topic", "value", "code"),
    [
        (ACTIVITY, b"{", "not_json"),
        (ACTIVITY, b"\xff", "not_utf8"),
        (ACTIVITY, b"[]", "wrong_type"),
        (ACTIVITY, b'{"event_id":"e","user_id":"","action":"a","timestamp_ms":1}', "invalid_id"),
        (ACTIVITY, b'{"event_id":"e","user_id":"u","action":"a","timestamp_ms":1700000300001}', "future_timestamp"),
        (ACTIVITY, b'{"event_id":"e","user_id":"u","action":null,"timestamp_ms":1}', "missing_field"),
        (ITEMS, b'{"item_id":"i","op":"merge","timestamp_ms":1}', "unknown_op"),
        (ITEMS, b'{"item_id":"other","op":"upsert","timestamp_ms":1}', "key_mismatch"),
        (REQUESTS, b'{"request_id":"r"}', "missing_field"),
        (REQUESTS, None, "unexpected_null"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter(topic: str, value: bytes | None, code: str) -> None:
    assert [each for _, each in after(Entry(topic, 0, 0, NOW_MS, b"i", value)).letters.values()] == [code]


def test_a_request_that_names_itself_is_answered_whatever_is_wrong_with_it() -> None:
    bad = Entry(REQUESTS, 0, 0, NOW_MS, b"u", b'{"request_id":"r","user_id":"u","k":0}')
    assert list(after(bad).requests.values()) == [(bad, "rejected", "r")]


def test_records_are_decoded_by_their_layout() -> None:
    head = USER_HEAD.pack(1, b"12345678", 7, 8, 9, 10, 11, 1)
    data = head + ROW.pack(1, 2, 3, 4, 4.5) + msgspec.msgpack.encode([["g", "F", 5]])
    user = read_user(data, SEEN.pack(3, 1) + SEEN.pack(3, 2))
    assert (user.count, user.forgotten_ms, user.forget_taken_ms, user.floor) == (7, 8, 9, (10, 11))
    assert (user.history[0].value, user.profile, user.seen) == (4.5, {"g": ("F", 5)}, {3: 2})
    item = read_item(ITEM_HEAD.pack(1, 1, 2, 3, -1, 1, 2, 0) + b"i" + struct.pack("<2f", 1, 2) + b"{}")
    assert item == Item("i", 2, 3, True, None, (1.0, 2.0), b"{}")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ItemTower:
    return ItemTower(fit_bundle(tmp_path_factory.mktemp("bundles")).path)


async def test_the_tower_gives_what_the_product_gives(tmp_path: Path) -> None:
    bundle = fit_bundle(tmp_path)
    ids, attributes = ["film-1", "new"], [{"genres": ["War", "None"], "year": 1950}, {}]
    indexed, history = ItemTower(bundle.path).embed(ids, attributes)
    product = open_tower(bundle, "item", 1000)
    outputs = product.run(item_inputs(ids, attributes, bundle.encoding))
    await product.close()
    assert abs(indexed - outputs["item_embedding"]).max() < 1e-6
    assert abs(history - outputs["history_embedding"]).max() < 1e-6


ASKED = Entry(REQUESTS, 0, 0, NOW_MS, b"u", b'{"request_id":"r","user_id":"u","k":2}')
BAD = Entry(ACTIVITY, 0, 9, NOW_MS, b"u", b"{")
LETTER = Entry(
    DEAD_LETTERS, 0, 0, NOW_MS, b"u", b"{",
    (("dlq.topic", b"x.user-activity"), ("dlq.partition", b"0"), ("dlq.offset", b"9"), ("dlq.error.code", b"not_json")),
)  # fmt: skip


def answer(**fields: object) -> Entry:
    value = {"request_id": "r", "user_id": "u", "status": "ok", "reasons": [], "item_ids": ["a", "b"]}
    value |= {"scores": [2.0, 1.0], "timestamp_ms": NOW_MS} | fields
    return Entry(CANDIDATES, 0, 0, NOW_MS, b"u", json.dumps(value).encode())


class World:
    """One event, one item, one request, one dead letter, and all as it must be, to be spoiled."""

    def __init__(self, tower: ItemTower) -> None:
        self.tower = tower
        self.must = after(activity(0, "a"), update(0, year=1950), ASKED, BAD)
        user, item = self.must.users["u"], self.must.items["i"]
        indexed, history = tower.embed(["i"], [{}])
        self.user = User(1, 0, 0, (0, 0), list(user.history.values()), {}, dict(user.seen))
        self.item = Item("i", 0, 0, False, None, tuple(map(float, history[0])), item.entry.value or b"")
        self.rows = [Row(list(map(float, indexed[0])), {})]
        self.answers = [answer()]
        self.popular: dict[tuple[int, int, str], dict[int, int]] = {}
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

    def differences(self) -> list[Difference]:
        users = {} if self.user is None else {"u": self.user}
        items = {} if self.item is None else {"i": self.item}
        stored = Stored(users, items, {"i": self.rows} if self.rows else {}, [], self.popular)
        topics = {ITEMS: [update(0, year=1950)], CANDIDATES: self.answers, DEAD_LETTERS: self.letters}
        return compare(self.must, stored, topics, self.tower, self.taken_in, self.refilled)


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
    "vector": (lambda w: w.rows.__setitem__(0, Row([0.5] * 32, {})), ["wrong_state"]),
    "attributes": (lambda w: w.rows.__setitem__(0, Row(w.rows[0].vector, {"year": 1})), ["wrong_state"]),
    "no answer": (lambda w: w.answers.clear(), ["unanswered"]),
    "two answers": (lambda w: w.answers.append(answer()), []),
    "another's answer": (lambda w: w.answers.append(answer(request_id="q")), ["wrong_state"]),
    "too many items": (lambda w: w.answers.append(answer(item_ids=["a", "b", "c"], scores=[3, 2, 1])), ["wrong_state"]),
    "ok too late": (lambda w: w.answers.append(answer(timestamp_ms=NOW_MS + 2100)), ["wrong_state"]),
    "expired in time": (
        lambda w: w.answers.append(answer(status="expired", reasons=["deadline_exceeded"])),
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
    world.answers.append(
        answer(status="expired", reasons=["deadline_exceeded"], item_ids=[], scores=[], timestamp_ms=NOW_MS + 2200)
    )
    assert world.differences() == []


def product_code(entry: Entry) -> str:
    """What the product's codec says of a record: '' for one that it can read."""
    try:
        if entry.topic == REQUESTS:
            codec.decode_request(entry.value)
        elif entry.value is None:
            codec.decode_key(entry.key)
        elif entry.topic == ACTIVITY:
            codec.decode_activity(entry.value, record_timestamp_ms=entry.taken_ms)
        else:
            codec.decode_item(entry.value, entry.key or b"")
    except codec.DecodeError as error:
        return "" if entry.topic == REQUESTS and codec.identify_request(entry.value) else str(error.code)
    return ""


def test_model_and_codec_agree_on_what_can_be_read() -> None:
    entries = [Entry(m.topic, routed(m), n, NOW_MS, m.key, m.value) for n, m in enumerate(steps(5))]
    result = after(*entries)
    due = {place: code for place, (_, code) in result.letters.items()} | result.may_be_letters
    for entry in entries:
        code = due.get(entry.place, "")
        assert product_code(entry) == ("" if code in {"stale_version", "wrong_partition"} else code), entry


def steps(seed: int) -> list[Message]:
    catalogue = [(update.item_id, update.attributes or {}) for update in DATASET.items(DATASET.test_ms)]
    workload = Workload(seed, 4, catalogue)
    return [*workload.catalogue(NOW_MS), *(message for _ in range(300) for message in workload.step(NOW_MS))]


def routed(message: Message) -> int:
    if message.partition is not None:
        return message.partition
    return (murmur2(message.key) & 0x7FFFFFFF) % 4


def test_the_workload_is_the_same_for_the_same_seed_and_holds_everything() -> None:
    assert steps(3) == steps(3) != steps(4)
    entries = [Entry(m.topic, routed(m), n, NOW_MS, m.key, m.value) for n, m in enumerate(steps(3))]
    result = after(*entries)
    codes = {code for _, code in result.letters.values()} | set(result.may_be_letters.values())
    assert {"not_json", "missing_field", "future_timestamp", "stale_version", "unknown_op", "wrong_partition"} <= codes
    assert any(user.forgotten_ms for user in result.users.values())
    assert any(user.floor > (0, 0) for user in result.users.values())
    assert any(item.deleted for item in result.items.values())
    assert "rejected" in {status for _, status, _ in result.requests.values()}


def test_answers_that_may_come_again() -> None:
    entries = [
        replace(answer(request_id=f"r{n}"), taken_ms=taken_ms) for n, taken_ms in enumerate((1500, 0, 900, 1000))
    ]
    assert (taken_ms := read_answers(entries).taken_ms()) == [0, 900, 1000, 1500]
    assert uncommitted(taken_ms, [(1000, 1.0)], 100) == 2
    assert uncommitted(taken_ms, [(1000, 0.5), (1500, 1.0), (5000, 1.0)], 500) == 3
    assert uncommitted(taken_ms, [], 500) == 0


def test_a_data_set_is_replayed_in_its_order_between_what_is_made_up() -> None:
    catalogue = [(update.item_id, update.attributes or {}) for update in DATASET.items()]
    workload = Replayed(5, 4, catalogue, data=DATASET)
    messages = [message for _ in range(30) for message in workload.step(NOW_MS) if message.topic == ACTIVITY]
    replayed = {event_id: None for message in messages if (event_id := real(message)) is not None}
    events = sorted(
        [*DATASET.profile_activities(), *DATASET.activities(range(600))], key=lambda each: each.timestamp_ms
    )
    assert [*replayed] == [event.event_id for event in events][: len(replayed)]
    assert len(replayed) > 300
    after(*(Entry(m.topic, routed(m), n, NOW_MS, m.key, m.value) for n, m in enumerate(messages)))


def real(message: Message) -> str | None:
    """The event of the data set that it is; None for what is made up."""
    try:
        event_id = json.loads(message.value or b"")["event_id"]
    except (ValueError, TypeError, KeyError):
        return None
    return None if str(event_id).startswith("e-") else str(event_id)
