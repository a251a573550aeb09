"""A view that may list items that are gone: for so long has nobody fed it that deletions have left its topic unread.

A mark in the group's hash (workers/stores/markers_redis.py) says so until a reconciliation has left nothing wrong. What
workers and commands say of it stands here.
"""

from datetime import UTC, datetime

from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import close, connect
from workers.stores.markers_redis import RedisMarkers

MISSED = "nobody has fed this view for longer than its topic keeps deletions: items that are gone may still be listed"
MENDED = "deletions that were missed are mended"
MEND = "recall items reconcile --repair"


async def missed_ms(settings: Settings, collection: str) -> int | None:
    """The mark of a view: when it was noticed, by the clock of Redis. Raises DependencyError, ConfigurationError.

    None for an index in the process of the workers too, which is made of the topic at every start.
    """
    if settings.index != "milvus":
        from workers.index.opening import adapter  # numpy takes a while to load

        if adapter(settings).in_process:
            return None
    client = connect(settings)
    try:
        return await RedisMarkers(client, settings, keys.items_group(collection)).look()
    finally:
        await close(client)


def noticed(missed_ms: int) -> str:
    """The time of a mark, for people."""
    return datetime.fromtimestamp(missed_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def todo(settings: Settings, collection: str) -> str:
    """What mends a view. A file of Milvus Lite only its worker can open, so it is made anew."""
    if settings.milvus_file is None:
        return MEND
    key = keys.filled(settings, keys.items_group(collection)).decode()
    return f"end the workers, delete {settings.milvus_file} and in Redis {key}, and start them: all is read again"
