"""Lists that know a click which comes after the request for them: `after_event_id`."""

import asyncio
import time

from schemas.recall import CandidateList
from tests.e2e.test_live import click, new, request
from workers.client import RecallClient
from workers.live.sender import Sender


async def test_a_click_that_comes_after_its_request_is_in_the_answer(client: RecallClient, sender: Sender) -> None:
    """The request is sent first, each time; a machine that takes 500 ms between the two is told the truth, too."""
    known: list[CandidateList] = []
    async with asyncio.timeout(60):
        while len(known) < 5:
            user = new("u")
            first = (await client.ask(request(user))).item_ids[0]
            event = click(user, first)
            asking = asyncio.create_task(client.ask(request(user, after_event_id=event.event_id)))
            await asyncio.sleep(0.05)
            await sender.activities([event])
            answer = await asking
            if answer.status == "ok":
                assert first not in answer.item_ids
                assert answer.feature_age_ms is not None
                known.append(answer)
            else:
                assert answer.reasons == ["features_stale"]
    assert all(answer.timings_ms.queue > 0 for answer in known)


async def test_a_click_that_never_comes_is_said_in_time_and_nobody_else_waits_for_it(client: RecallClient) -> None:
    """That the deadline may end it earlier is told by `tests/unit/test_waiting.py`."""
    async with asyncio.timeout(60):
        while not await overtakes(client):  # a busy machine may take the 500 ms for the other request
            pass


async def overtakes(client: RecallClient) -> bool:
    """Whether others of its partition are answered while a request waits."""
    user = new("u")  # one user is one partition
    waiting = request(user, after_event_id="never-sent", timeout_ms=20_000)
    asking = asyncio.create_task(client.ask(waiting))
    overtaken = 0
    while not asking.done():
        answer = await client.ask(request(user))
        assert answer.status == "ok"
        overtaken += not asking.done()
    late = await asking
    assert (late.status, len(late.item_ids)) == ("degraded", 20)
    assert "features_stale" in late.reasons
    assert late.timings_ms.total < waiting.timeout_ms
    return overtaken > 0


async def test_requests_that_wait_hold_no_slot(client: RecallClient) -> None:
    """A hundred that wait for half a second each, one after another, would take the better part of a minute."""
    began_s = time.perf_counter()
    waiting = [client.ask(request(new("u"), after_event_id="never-sent", timeout_ms=20_000)) for _ in range(100)]
    answers = await asyncio.gather(*waiting)
    assert {answer.status for answer in answers} == {"degraded"}
    assert time.perf_counter() - began_s < 20
