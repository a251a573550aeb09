"""Where the history of `item-updates` ends for a view: the ends of its partitions when it was first fed, in Redis."""

from collections.abc import Mapping

from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, translated


async def note_ends(client: Client, settings: Settings, collection: str, ends: Mapping[int, int]) -> dict[int, int]:
    """Partition -> offset as they were noted first; what is noted stays. `ends` are the present ones. Idempotent.

    Raises DependencyError.
    """
    key = keys.item_ends(settings, collection)
    pipeline = client.pipeline(transaction=False)
    for partition, end in ends.items():
        pipeline.hsetnx(key, str(partition), end)
    pipeline.hgetall(key)
    with translated():
        noted = (await pipeline.execute())[-1]
    return {int(partition): int(end) for partition, end in noted.items()}
