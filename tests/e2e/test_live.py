"""What a user of the system sees: events in over Kafka, candidate lists out."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from schemas import codec
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, FilterClause, RecallRequest
from schemas.records import UserRecord, hash64
from tests.e2e.conftest import Live
from workers.client import RecallClient
from workers.dead_letter_topic import read_dead_letters
from workers.kafka_client import produce
from workers.live.sender import Sender
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable

WITHIN_S = 60.0


def new(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def request(user_id: str, **fields: Any) -> RecallRequest:
    return RecallRequest(**({"request_id": new("r"), "user_id": user_id, "k": 20, "timeout_ms": 20_000} | fields))


def click(user_id: str, item_id: str, **fields: Any) -> UserActivity:
    values = {"event_id": new("e"), "action": "rate", "value": 5.0, "timestamp_ms": now_ms()}
    return UserActivity(user_id=user_id, item_id=item_id, **(values | fields))


def film(item_id: str, **fields: Any) -> ItemUpdate:
    attributes = {"title": item_id, "genres": ["Horror"], "year": 1999}
    return ItemUpdate(
        **({"item_id": item_id, "op": "upsert", "timestamp_ms": now_ms(), "attributes": attributes} | fields)
    )


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """The first true result of `look`."""
    async with asyncio.timeout(WITHIN_S):
        while not (found := await look()):
            await asyncio.sleep(0.01)
    return found


async def known(client: RecallClient, user_id: str, event_id: str, **fields: Any) -> CandidateList:
    """The first list made from a record that holds this event."""

    async def look() -> CandidateList | None:
        answer = await client.ask(request(user_id, after_event_id=event_id, **fields))
        return None if "features_stale" in answer.reasons else answer

    return await until(look)


async def listed(client: RecallClient, user_id: str, item_id: str, present: bool = True) -> None:
    async def look() -> bool:
        return (item_id in (await client.ask(request(user_id, k=1000))).item_ids) is present

    await until(look)


async def ask_patiently(client: RecallClient, request_id: str, value: bytes, key: bytes | None = None) -> CandidateList:
    """Wait for an answer for longer than the request says."""
    record = await client._exchange(request_id, value, key, (), 60_000)
    return codec.decode_candidates(record.value)


async def dead_letter(live: Live, holds: Callable[[Any], bool]) -> Any:
    async def look() -> Any:
        return next((letter for letter in await read_dead_letters(live.settings) if holds(letter)), None)

    return await until(look)


async def send_raw(live: Live, topic: str, key: bytes | None, value: bytes | None) -> None:
    await produce(live.settings, live.settings.topic(topic), [(key, value, ())])


async def test_an_unknown_user_gets_a_full_cold_start_list(live: Live, client: RecallClient) -> None:
    answer = await client.ask(request(new("u")))
    assert (answer.status, answer.reasons) == ("ok", ["cold_start"])
    assert len(answer.item_ids) == len(set(answer.item_ids)) == len(answer.scores) == 20
    assert answer.scores == sorted(answer.scores, reverse=True)
    assert set(answer.sources) == {"tower"}
    assert (answer.model_version, answer.feature_age_ms) == (live.bundle.version, None)
    assert answer.timings_ms.total >= answer.timings_ms.search > 0


async def test_a_click_changes_the_list_and_is_not_shown_again(client: RecallClient, sender: Sender) -> None:
    user = new("u")
    before = await client.ask(request(user))
    event = click(user, before.item_ids[5])
    await sender.activities([event])
    after = await known(client, user, event.event_id)
    assert after.item_ids != before.item_ids
    assert before.item_ids[5] not in after.item_ids
    assert after.feature_age_ms is not None
    shown = await client.ask(request(user, exclude_seen=False, k=400))
    assert before.item_ids[5] in shown.item_ids


async def test_a_new_item_is_retrievable_and_a_click_on_it_changes_the_list(
    client: RecallClient, sender: Sender
) -> None:
    user, item = new("u"), new("film")
    as_of_ms = now_ms() + 60_000  # one time for both lists: only the click can make a difference
    await sender.item(film(item))
    await listed(client, user, item)
    before = await client.ask(request(user, timestamp_ms=as_of_ms))
    event = click(user, item)
    await sender.activities([event])
    after = await known(client, user, event.event_id, timestamp_ms=as_of_ms)
    assert [i for i in after.item_ids if i != item] != [i for i in before.item_ids if i != item][: len(after.item_ids)]


async def test_a_deleted_item_is_gone_and_may_come_back(client: RecallClient, sender: Sender) -> None:
    user, item = new("u"), new("film")
    await sender.item(film(item))
    await listed(client, user, item)
    await sender.item(ItemUpdate(item_id=item, op="delete", timestamp_ms=now_ms()))
    await listed(client, user, item, present=False)
    await sender.item(film(item))
    await listed(client, user, item)


async def test_a_tombstone_deletes(live: Live, client: RecallClient, sender: Sender) -> None:
    user, item = new("u"), new("film")
    await sender.item(film(item))
    await listed(client, user, item)
    await send_raw(live, "item-updates", item.encode(), None)
    await listed(client, user, item, present=False)


async def test_redelivered_activity_counts_once(live: Live, client: RecallClient, sender: Sender) -> None:
    user = new("u")
    events = [click(user, f"film-{n}") for n in range(5)]
    await sender.activities([*events, *reversed(events), events[2]])
    last = click(user, "film-9")
    await sender.activities([last])
    await known(client, user, last.event_id)
    table = RedisUserTable(connect(live.settings), live.settings)
    (data,) = await table.records([user])
    await table.close()
    assert data is not None
    record = UserRecord.decode(data)
    assert (record.count, len(record.rows())) == (6, 6)
    assert set(record.rows()["item"].tolist()) == {hash64(f"film-{n}") for n in (0, 1, 2, 3, 4, 9)}


@pytest.mark.parametrize(
    ("topic", "value", "code"),
    [
        ("user-activity", b"rubbish", "not_json"),
        (
            "user-activity",
            b'{"event_id":"e","user_id":"u","action":"rate","timestamp_ms":4000000000000}',
            "future_timestamp",
        ),
        ("item-updates", b'{"item_id":"i","op":"patch","timestamp_ms":1}', "unknown_op"),
        ("item-updates", b'{"item_id":"other","op":"delete","timestamp_ms":1}', "key_mismatch"),
        ("recall-requests", b'{"user_id":"u"}', "missing_field"),
        ("recall-requests", None, "unexpected_null"),
    ],
)
async def test_bad_input_is_a_dead_letter_and_the_stream_goes_on(
    live: Live, client: RecallClient, sender: Sender, topic: str, value: bytes | None, code: str
) -> None:
    key = new("key").encode()
    await send_raw(live, topic, key, value)
    letter = await dead_letter(live, lambda letter: letter.key == key)
    assert (letter.topic, letter.code, letter.value) == (live.settings.topic(topic), code, value)
    user, event = new("u"), None
    event = click(user, "film-1")
    await sender.activities([event])
    await known(client, user, event.event_id)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"k": 0}, "invalid_request", "k"),
        ({"k": "many"}, "invalid_request", "k"),
        ({"scene": "checkout"}, "invalid_request", "scene"),
        ({"anchor_items": ["film"] * 11}, "invalid_request", "anchor_items"),
        ({"filter": [{"field": "price", "op": "gt", "value": 1990}]}, "invalid_filter", "filter[0].field"),
        ({"filter": [{"field": "year", "op": "contains", "value": 1990}]}, "invalid_filter", "filter[0].op"),
        ({"filter": [{"field": "year", "op": "gt", "value": "1990"}]}, "invalid_filter", "filter[0].value"),
        ({"filter": [{"field": "year", "op": "near", "value": 1990}]}, "invalid_filter", "filter[0].op"),
    ],
)
async def test_a_request_that_cannot_be_done_is_rejected_with_its_field(
    live: Live, client: RecallClient, fields: dict[str, Any], reason: str, field: str
) -> None:
    value = {"request_id": new("r"), "user_id": "u", "timeout_ms": 60_000} | fields
    answer = await ask_patiently(client, value["request_id"], json.dumps(value).encode())
    assert (answer.status, answer.reasons, answer.error_field) == ("rejected", [reason], field)
    assert answer.item_ids == []


async def test_a_filtered_list_holds_what_fits_and_is_as_long_as_it_can_be(live: Live, client: RecallClient) -> None:
    dataset = live.dataset
    years = {i: a["year"] for i, a in zip(dataset.item_ids, dataset.attributes, strict=True)}
    middle = sorted(years.values())[len(years) // 2]
    where = [FilterClause(field="year", op="ge", value=middle)]

    def known(answer: CandidateList) -> list[str]:
        """Other tests have items of their own."""
        return [item_id for item_id in answer.item_ids if item_id in years]

    fitting = [item_id for item_id in known(await client.ask(request(new("u"), k=1000))) if years[item_id] >= middle]
    assert 20 < len(fitting) < len(years)
    some = await client.ask(request(new("u"), filter=where))
    assert (some.status, len(some.item_ids)) == ("ok", 20)
    assert known(some) == fitting[: len(known(some))]
    every = await client.ask(request(new("u"), k=1000, filter=where))
    assert known(every) == fitting
    assert "short_list" in every.reasons


async def test_an_activity_that_is_not_known_yet_is_said_so(client: RecallClient) -> None:
    answer = await client.ask(request(new("u"), after_event_id="never-sent"))
    assert answer.status == "degraded"
    assert "features_stale" in answer.reasons
    assert len(answer.item_ids) == 20


async def test_excluded_items_are_left_out_and_the_list_stays_full(client: RecallClient) -> None:
    user = new("u")
    full = await client.ask(request(user))
    answer = await client.ask(request(user, exclude_items=full.item_ids[:10]))
    assert answer.item_ids[:10] == full.item_ids[10:]
    assert (len(answer.item_ids), answer.removed.excluded) == (20, 10)


async def test_more_than_there_is_gives_a_short_list(live: Live, client: RecallClient) -> None:
    answer = await client.ask(request(new("u"), k=1000))
    assert answer.status == "ok"
    assert "short_list" in answer.reasons
    assert len(live.dataset.item_ids) <= len(answer.item_ids) < 1000


async def test_forgetting_a_user_empties_the_record_and_keeps_late_copies_out(
    live: Live, client: RecallClient, sender: Sender
) -> None:
    user = new("u")
    event = click(user, "film-3")
    await sender.activities([event])
    await known(client, user, event.event_id)
    await send_raw(live, "user-activity", user.encode(), None)

    async def forgotten() -> bool:
        return "cold_start" in (await client.ask(request(user))).reasons

    await until(forgotten)
    await sender.activities([event])  # a late copy
    other = click(user, "film-4", timestamp_ms=now_ms() + 1000)
    await sender.activities([other])
    answer = await known(client, user, other.event_id, k=400)
    assert "film-3" in answer.item_ids
    assert "film-4" not in answer.item_ids


async def test_headers_come_back_and_the_answer_goes_where_it_is_asked_to(live: Live, client: RecallClient) -> None:
    headers = [("traceparent", b"00-abc-def-01"), ("reply_partition", b"2")]
    record = await client.ask_record(request(new("u")), headers)
    assert record.partition == 2
    copied = dict(record.headers)
    assert copied["traceparent"] == b"00-abc-def-01"
    assert copied["request_id"].decode().startswith("r-")


async def test_as_of_sees_only_what_was_before(client: RecallClient, sender: Sender) -> None:
    user, start_ms = new("u"), now_ms() - 60_000
    start_ms -= start_ms % 1000
    events = [click(user, f"film-{n}", timestamp_ms=start_ms + n * 1000) for n in range(3)]
    await sender.activities(events)
    await known(client, user, events[-1].event_id)
    nothing = await client.ask(request(user, timestamp_ms=start_ms, k=400))
    assert "film-0" in nothing.item_ids
    one = await client.ask(request(user, timestamp_ms=start_ms + 1999, k=400))  # the second event's own second
    assert "film-0" not in one.item_ids
    assert "film-1" in one.item_ids


async def test_one_request_and_the_same_among_sixty_four_get_the_same_list(
    client: RecallClient, sender: Sender
) -> None:
    user = new("u")
    event = click(user, "film-7")
    await sender.activities([event])
    as_of_ms = now_ms() + 60_000
    alone = await known(client, user, event.event_id, timestamp_ms=as_of_ms)
    asked = [request(user if n == 17 else new("u"), timestamp_ms=as_of_ms) for n in range(64)]
    answers = await asyncio.gather(*(client.ask(one) for one in asked))
    assert answers[17].item_ids == alone.item_ids
    assert answers[17].scores == pytest.approx(alone.scores, abs=1e-5)


async def test_a_request_past_its_deadline_is_answered_expired(live: Live, client: RecallClient) -> None:
    hurried = [request(new("u"), timeout_ms=1) for _ in range(50)]
    asking = (ask_patiently(client, one.request_id, codec.encode_event(one), one.user_id.encode()) for one in hurried)
    answers = await asyncio.gather(*asking)
    assert {answer.status for answer in answers} <= {"expired", "ok", "degraded"}
    expired = [answer for answer in answers if answer.status == "expired"]
    assert expired, "a millisecond cannot be enough for fifty requests at once"
    assert all(answer.reasons == ["deadline_exceeded"] and not answer.item_ids for answer in expired)
