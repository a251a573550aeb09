"""The story of one user: a list, after clicks, filtered, merged; a brand-new item, a click on it, its deletion."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.datasets import Dataset
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.recall import MAX_K, CandidateList, FilterClause, Reason, RecallRequest, Status
from workers.client import RecallClient
from workers.clock import SystemClock
from workers.errors import RecallError
from workers.live.sender import Sender

WITHIN_S = 20.0
AHEAD_MS = 60_000  # every list of the story is asked as of one time, so that only events make a difference
NEW_ITEM = "demo-new-item"
TOP = 10
MERGED_SCENE = "home"
SCENES: dict[str, dict[str, object]] = {
    MERGED_SCENE: {
        "sources": {
            "tower": {},
            "session": {"weight": 0.5},
            "popular": {"weight": 0.5, "at_least": 3, "at_most": 20},
        }
    }
}
"""What the demo's workers are set to, beside the default scene."""

Show = Callable[[str, Sequence[tuple[float, str]]], None]
"""Shows a heading and the head of a list: scores and titles."""


@dataclass(frozen=True)
class Story:
    """What was seen. Times run from Kafka's acknowledgement of the event to the first answer that shows its effect.

    `filtered`: candidates for which the filter held; `merged`: candidates of the merged list by where they came from.
    """

    user: str
    click_to_change_ms: float
    filtered: int
    merged: dict[str, int]
    item_to_retrievable_ms: float
    new_item_click_changes_list: bool
    new_item_click_to_change_ms: float
    delete_to_gone_ms: float


class Teller:
    """Tells the story for one user of a data set."""

    def __init__(self, dataset: Dataset, user: int, client: RecallClient, sender: Sender, show: Show) -> None:
        self._dataset = dataset
        self._user_id = dataset.user_ids[user]
        self._client = client
        self._sender = sender
        self._show = show
        self._index = {item_id: n for n, item_id in enumerate(dataset.item_ids)}
        self._as_of_ms = SystemClock().now_ms() + AHEAD_MS

    async def tell(self) -> Story:
        """Raises RecallError when an effect does not show within 20 s, or the first list is not `ok`."""
        before = await self._ask()
        if before.status is not Status.OK:
            raise RecallError(f"a list came back {before.status}: {', '.join(before.reasons)}")
        self._shown(f"what {self._user_id} is shown", before)

        liked = [item_id for item_id in before.item_ids if self._attributes(item_id)][20:23]
        after, click_ms = await self._click(liked)
        self._shown(f"after liking {self._titles(liked)} ({click_ms:.0f} ms)", after)
        if after.item_ids == before.item_ids:
            raise RecallError("the list did not change after the clicks")

        filtered = await self._filtered(after)
        merged = await self._ask(scene=MERGED_SCENE)
        self._shown(f"merged from several sources, scene {MERGED_SCENE!r}", merged)

        new = self._new_item(self._attributes(after.item_ids[0]))
        await self._sender.item(new)
        retrievable_ms = await self._until(lambda answer: NEW_ITEM in answer.item_ids, new)
        shown = await self._ask()
        clicked, new_click_ms = await self._click([NEW_ITEM])
        changed = [i for i in shown.item_ids if i != NEW_ITEM][:TOP] != clicked.item_ids[:TOP]
        title = (new.attributes or {}).get("title")
        self._shown(f"after liking the brand-new {title!r} ({new_click_ms:.0f} ms)", clicked)

        fresh = self._new_item(self._attributes(clicked.item_ids[0]), f"{NEW_ITEM}-2")
        await self._sender.item(fresh)
        await self._until(lambda answer: fresh.item_id in answer.item_ids, fresh)
        now_ms = SystemClock().now_ms()
        await self._sender.item(ItemUpdate(item_id=fresh.item_id, op="delete", timestamp_ms=now_ms))
        gone_ms = await self._until(lambda answer: fresh.item_id not in answer.item_ids, fresh)
        sources = dict(Counter(merged.sources).most_common())
        return Story(self._user_id, click_ms, filtered, sources, retrievable_ms, changed, new_click_ms, gone_ms)

    async def _ask(self, k: int = 100, **fields: Any) -> CandidateList:
        return await self._client.ask(
            RecallRequest(
                request_id=str(uuid.uuid4()),
                user_id=self._user_id,
                timestamp_ms=self._as_of_ms,
                k=k,
                timeout_ms=5000,
                **fields,
            )
        )

    async def _filtered(self, before: CandidateList) -> int:
        """The list again, of one kind and no older than most: how many candidates it has, all of which must fit."""
        attributes = [self._attributes(item_id) for item_id in before.item_ids]
        field = "genres" if any("genres" in each for each in attributes) else "tags"
        kind = Counter(kind for each in attributes for kind in each.get(field, ())).most_common(1)[0][0]
        clauses = [FilterClause(field=field, op="contains", value=kind)]
        years = sorted(each["year"] for each in attributes if "year" in each)
        if years:
            clauses.append(FilterClause(field="year", op="ge", value=years[len(years) // 4]))
        answer = await self._ask(filter=clauses)
        told = " and ".join(f"{clause.field} {clause.op} {clause.value}" for clause in clauses)
        self._shown(f"only where {told}", answer)
        for each in map(self._attributes, answer.item_ids):
            if kind not in each.get(field, ()) or (years and each.get("year", 0) < clauses[-1].value):
                raise RecallError(f"an item came back that does not fit the filter {told}")
        return len(answer.item_ids)

    async def _click(self, item_ids: list[str]) -> tuple[CandidateList, float]:
        """Like some items; the first list that knows it, and how long that took."""
        spec_action, value = self._dataset.actions[-1], 5.0 if self._dataset.spec == "movielens" else None
        now_ms = SystemClock().now_ms()
        clicks = [
            UserActivity(
                event_id=str(uuid.uuid4()),
                user_id=self._user_id,
                action=spec_action,
                timestamp_ms=now_ms + n,
                item_id=item_id,
                value=value,
            )
            for n, item_id in enumerate(item_ids)
        ]
        await self._sender.activities(clicks)
        started = time.perf_counter()

        async def known() -> CandidateList | None:
            answer = await self._ask(after_event_id=clicks[-1].event_id)
            return None if Reason.FEATURES_STALE in answer.reasons else answer

        return await _poll(known), _elapsed_ms(started)

    async def _until(self, holds: Callable[[CandidateList], bool], item: ItemUpdate) -> float:
        """Ask for items like this one until it holds. Among all, a list of 1,000 may be too short to hold it."""
        attributes = item.attributes or {}
        clauses = [FilterClause(field="year", op="eq", value=attributes["year"])] if "year" in attributes else []
        started = time.perf_counter()

        async def look() -> CandidateList | None:
            answer = await self._ask(k=MAX_K, filter=clauses)
            return answer if holds(answer) else None

        await _poll(look)
        return _elapsed_ms(started)

    def _attributes(self, item_id: str) -> Mapping[str, Any]:
        index = self._index.get(item_id)
        return {} if index is None else self._dataset.attributes[index]

    def _titles(self, item_ids: Sequence[str]) -> str:
        return ", ".join(repr(self._title(item_id)) for item_id in item_ids)

    def _title(self, item_id: str) -> str:
        """Title, year and genres, as far as an item has them."""
        attributes = self._attributes(item_id)
        year = f" ({attributes['year']})" if "year" in attributes else ""
        kinds = attributes.get("genres") or attributes.get("tags") or []
        return f"{attributes.get('title', item_id)}{year}" + (f" [{', '.join(kinds)}]" if kinds else "")

    def _shown(self, heading: str, answer: CandidateList) -> None:
        head = zip(answer.scores[:TOP], answer.item_ids[:TOP], answer.sources[:TOP], strict=True)
        mixed = len(set(answer.sources)) > 1
        rows = [(score, self._title(item) + (f"  <- {source}" if mixed else "")) for score, item, source in head]
        self._show(heading, rows)

    def _new_item(self, like: Mapping[str, Any], item_id: str = NEW_ITEM) -> ItemUpdate:
        """An item that nobody has ever seen, with the attributes of another."""
        attributes = {**like, "title": f"New: a film like {like.get('title', 'others')}"}
        return ItemUpdate(item_id=item_id, op="upsert", timestamp_ms=SystemClock().now_ms(), attributes=attributes)


async def _poll(look: Callable[[], Awaitable[CandidateList | None]]) -> CandidateList:
    end = time.monotonic() + WITHIN_S
    while (answer := await look()) is None:
        if time.monotonic() > end:
            raise RecallError(f"an event had no effect on the answers within {WITHIN_S:.0f} s")
        await asyncio.sleep(0.002)
    return answer


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)
