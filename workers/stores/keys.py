"""Every Redis key of the project.

Ids may contain anything, braces included, so a key never puts one where Redis Cluster would look for a hash tag: the
tag is the id's 64-bit hash in hexadecimal, and the id itself stands behind it.
"""

from schemas.records import hash64
from workers.settings import Settings


def user_record(settings: Settings, user_id: str) -> bytes:
    """The user's record; in one slot with the seen set."""
    return f"{settings.key('user')}:{{{hash64(user_id):016x}}}:record:{user_id}".encode()


def user_seen(settings: Settings, user_id: str) -> bytes:
    """The user's seen set."""
    return f"{settings.key('user')}:{{{hash64(user_id):016x}}}:seen:{user_id}".encode()


def item_record(settings: Settings, collection: str, item_hash: int) -> bytes:
    """One item in one view; looked up by hash, because histories hold nothing else."""
    return item_records(settings, collection) + f"{item_hash:016x}".encode()


def item_records(settings: Settings, collection: str) -> bytes:
    """What the keys of all items of one view begin with; behind it stands the hash in hexadecimal."""
    return f"{settings.key('item')}:{collection}:".encode()


def item_feed(settings: Settings, collection: str) -> bytes:
    """The stream of one view's recent item changes."""
    return f"{settings.key('item-feed')}:{collection}".encode()


def item_ends(settings: Settings, collection: str) -> bytes:
    """Where the history of `item-updates` ends for one view."""
    return f"{settings.key('item-ends')}:{collection}".encode()


def item_intents(settings: Settings, collection: str) -> bytes:
    """Which items of one view are being written, and by whom."""
    return f"{settings.key('item-intents')}:{collection}".encode()


def popular_counts(settings: Settings, definition: str, partition: int) -> bytes:
    """What a partition has counted; its sorted sets are named after it and stand in the same slot."""
    return f"{settings.key('popular')}:{{{definition}:{partition}}}".encode()


def popular_partitions(settings: Settings, definition: str) -> bytes:
    """Which partitions have counted anything."""
    return f"{settings.key('popular')}:{definition}:partitions".encode()


def filled(settings: Settings, group: str) -> bytes:
    """Which partitions' retained events a consumer group has put in here, all of them."""
    return f"{settings.key('filled')}:{{{group}}}".encode()


def filled_whole(settings: Settings, group: str) -> bytes:
    """There while that is so of every partition of the group's topic; in one slot with `filled`."""
    return filled(settings, group) + b":whole"


def items_group(collection: str) -> str:
    """The consumer group that feeds a view, without the namespace; its markers tell whether the item table is whole."""
    return f"recall-items.{collection}"


def active_view(settings: Settings) -> bytes:
    """Which bundle and collection answer requests."""
    return settings.key("active-view").encode()
