"""Where the history of `item-updates` ends for a view, in Redis: what came before it was first fed.

Noted again after Redis was emptied, it is what the view's group had done by then: see history_ends in kafka_client.py.
"""

from collections.abc import Mapping

from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, translated


async def note_ends(client: Client, settings: Settings, collection: str, ends: Mapping[int, int]) -> dict[int, int]:
    """Partition -> offset as they were noted first; what is noted stays. `ends`: where it ends as of now. Idempotent.

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
