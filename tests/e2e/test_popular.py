"""Popular items live: activities in over Kafka, each twice, and what a recall worker holds of them."""

from collections.abc import Sequence

from schemas.activity import UserActivity
from schemas.records import hash64
from tests.e2e.conftest import Live
from tests.e2e.test_live import click, film, new, until
from workers import views
from workers.live.sender import Sender
from workers.popularity import EVERYBODY, UNIT, Popularity, forward_weight
from workers.ports import PopularTable
from workers.sources.popular import PopularLists
from workers.stores.connect import connect
from workers.stores.item_facts import ItemFacts
from workers.stores.item_redis import RedisItemTable
from workers.stores.popular_redis import RedisPopularTable

FANS = 40


async def amounts(popular: PopularTable, segment: str, *item_ids: str) -> list[int]:
    """What was added up of each item in the newest epoch."""
    [top] = await popular.top([segment], 1000)
    found = dict(zip(top.hashes.tolist(), (top.scores * UNIT).tolist(), strict=True))
    return [round(found.get(hash64(item_id), 0)) for item_id in item_ids]


def added(events: Sequence[UserActivity], half_life_ms: int) -> int:
    return sum(forward_weight(event.timestamp_ms, half_life_ms)[1] for event in events)


async def test_what_women_like_is_popular_among_them_and_each_event_counts_once(live: Live, sender: Sender) -> None:
    liked, last = film(new("film")), film(new("film"))
    fans = [new("u") for _ in range(FANS)]
    likes = [click(user, liked.item_id, attributes={"gender": "F"}) for user in fans]
    bored = [click(user, liked.item_id, value=1.0) for user in fans]
    ends = [click(user, last.item_id) for user in fans]  # behind everything else of their users
    for item in (liked, last):
        await sender.item(item)
    await sender.activities([*likes, *bored, *likes, *ends])

    view = await views.read_active(live.settings)
    assert view is not None
    client, popularity = connect(live.settings), Popularity(live.bundle.encoding)
    popular = RedisPopularTable(client, live.settings, popularity.definition)
    half_life_ms = live.bundle.spec.popular.half_life_ms

    async def all_are_counted() -> bool:
        return await amounts(popular, "F", last.item_id) == [added(ends, half_life_ms)]

    await until(all_are_counted)
    expected = [added(likes, half_life_ms), added(ends, half_life_ms)]
    for segment, counted in (("F", expected), ("M", [0, 0]), (EVERYBODY, expected)):
        assert await amounts(popular, segment, liked.item_id, last.item_id) == counted

    items = RedisItemTable(client, live.settings, view.collection)
    lists = PopularLists(popular, ItemFacts(items, tuple(live.bundle.spec.filterable)), popularity.segments)

    async def listed() -> bool:
        await lists.refresh()
        return all({liked.item_id, last.item_id} <= set(lists.best(segment, ())[0]) for segment in ("F", "M"))

    await until(listed)  # the items worker is another process; M's list is filled up from everybody's
    await client.aclose()
