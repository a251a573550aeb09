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
from tests.chaos.formats import ITEM_HEAD, ROW, SEEN, USER_HEAD, Item, hash64, read_item, read_user
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS, Entry
from tests.chaos.model import HISTORY, Expected, Rules, expected
from tests.chaos.replayed import Replayed
from tests.chaos.rig import DATASET, fit_bundle
from tests.chaos.vectors import ItemTower
from tests.chaos.workload import GENRES, REFUSED_BY_INDEX, WRONGED, Message, Workload, one_of_each_partition
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


async def test_the_tower_gives_what_the_product_gives(tmp_path: Path) -> None:
    bundle = fit_bundle(tmp_path)
    ids, attributes = ["film-1", "new"], [{"genres": ["War", "None"], "year": 1950}, {}]
    indexed, history = ItemTower(bundle.path).embed(ids, attributes)
    product = open_tower(bundle, "item", 1000)
    outputs = product.run(item_inputs(ids, attributes, bundle.encoding))
    await product.close()
    assert abs(indexed - outputs["item_embedding"]).max() < 1e-6
    assert abs(history - outputs["history_embedding"]).max() < 1e-6


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


@pytest.mark.parametrize("partitions", [1, 4, 6, 12])
def test_a_user_of_each_partition_is_asked(partitions: int) -> None:
    users = one_of_each_partition(partitions)
    assert sorted((murmur2(user.encode()) & 0x7FFFFFFF) % partitions for user in users) == [*range(partitions)]


def test_half_of_those_who_wait_name_what_they_did_a_moment_ago() -> None:
    last: dict[str, str] = {}
    waits: list[bool] = []
    for message in steps(3):
        try:
            event = json.loads(message.value or b"")
            user = event["user_id"]
        except (ValueError, KeyError, TypeError):
            continue
        if message.topic == ACTIVITY and message.partition is not None:
            last[user] = max(last.get(user, ""), event["event_id"], key=lambda name: int(name[2:] or 0))
        elif message.topic == REQUESTS and "after_event_id" in event and user in last:
            waits.append(event["after_event_id"] == last[user])
    assert 0.35 < sum(waits) / len(waits) < 0.65


def test_items_exist_from_their_first_update_that_was_accepted_on() -> None:
    first = replace(update(3, 9), taken_ms=NOW_MS + 3)
    log = [update(0, attributes={"genres": list(GENRES)}), update(1, op="delete"), first, update(4, 9)]
    assert after(*log).first_upserts_ms == {"i": NOW_MS + 3}
    assert not after(*log).whole_items
    assert after(*log[:2], update(0, partition=1)).whole_items
    assert not after(update(1)).whole_items


def test_items_are_seen_from_the_activity_that_is_new_to_the_history_on() -> None:
    events = [activity(n, f"e{n}", NOW_MS - 1000 + n, action="view") for n in range(HISTORY + 1)]
    rated = [activity(100, "r"), activity(101, "r"), activity(102, "late", NOW_MS - 5000, item_id="j")]
    user = after(*events, *(replace(entry, taken_ms=NOW_MS + entry.offset) for entry in rated)).users["u"]
    assert user.seen_at_ms == {hash64("i"): [NOW_MS + 100], hash64("j"): []}
