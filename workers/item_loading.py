"""A catalogue as item updates, and the wait until the active view has taken it in."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from schemas import codec
from schemas.items import ItemUpdate
from workers import views
from workers.errors import ConfigurationError, RecallError
from workers.kafka_client import Message, group_standing
from workers.settings import Settings
from workers.stores import keys


def item_messages(updates: Iterable[ItemUpdate]) -> Iterator[Message]:
    """Item updates as Kafka messages, keyed by item id."""
    for update in updates:
        yield update.item_id.encode(), codec.encode_event(update), ()


async def wait_for_items(
    settings: Settings, waiting: Callable[[int], None] = lambda _: None, within_s: float = 300.0
) -> None:
    """Wait until the active view has taken in all item updates; `waiting` is told how many are still to come.

    Raises RecallError when nothing was taken in for `within_s`.
    """
    view = await views.read_active(settings)
    if view is None:
        raise ConfigurationError("no bundle is active, so nobody takes items in; make one: recall model fit")
    group = settings.group(keys.items_group(view.collection))
    before, since_s = -1, 0.0
    while True:
        lag, committed = await group_standing(settings, group, settings.topic("item-updates"))
        if not lag:
            return
        if committed != before:
            before, since_s = committed, time.monotonic()
        elif time.monotonic() > since_s + within_s:
            raise RecallError(f"{lag} item updates are still waiting; is an items worker running? (`recall status`)")
        waiting(lag)
        await asyncio.sleep(0.2)
