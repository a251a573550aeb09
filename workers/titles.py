"""Readable names of items, for people: read from the item table of the active view."""

from collections.abc import Sequence

from schemas import codec
from schemas.records import hash64_each
from workers import views
from workers.errors import DependencyError
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable


async def read_titles(settings: Settings, item_ids: Sequence[str]) -> dict[str, str]:
    """Item id -> its `title` attribute, for those that have one. Empty when the tables do not answer."""
    try:
        view = await views.read_active(settings)
        if view is None:
            return {}
        table = RedisItemTable(connect(settings), settings, view.collection)
        try:
            records = await table.read(hash64_each(item_ids))
        finally:
            await table.close()
    except DependencyError:
        return {}
    titles = {}
    for record in records:
        if record is not None and record.update:
            title = (codec.decode_item(record.update, None).attributes or {}).get("title")
            if isinstance(title, str) and title != record.item_id:
                titles[record.item_id] = title
    return titles
