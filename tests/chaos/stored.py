"""What stands in Redis and in Milvus: all of it, read with the vendors' clients alone."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from pymilvus import MilvusClient

from tests.chaos.formats import Item, User, hash64, read_item, read_user

MAX_ROWS = 16_384  # of one Milvus query


@dataclass(frozen=True)
class Row:
    """An item in the collection."""

    vector: list[float]
    attributes: dict[str, Any]
    item_hash: int


@dataclass(frozen=True)
class Stored:
    """Users by id, items by id; of the collection every row, repeated ids included."""

    users: dict[str, User]
    items: dict[str, Item]
    rows: dict[str, list[Row]]
    unreadable: list[str]
    popular: dict[tuple[int, int, str], dict[int, int]] = field(default_factory=dict)
    """(partition, epoch, segment) -> item hash -> count"""
    complete: dict[str, set[int]] | None = None
    """consumer group -> partitions of which everything retained is in Redis; -1 = of all; None = not looked at"""
    popular_next: dict[int, int] | None = None
    """partition -> the offset that its popular counts expect next; None = not looked at"""
    lives_ms: dict[str, int] = field(default_factory=dict)
    """every key, without its namespace -> how long it lives; -1 = for ever"""


def read_all(redis_url: str, milvus_uri: str, namespace: str, collection: str) -> Stored:
    """Everything of one namespace."""
    unreadable: list[str] = []
    client = redis.Redis.from_url(redis_url)
    with client:
        users = _users(client, namespace, unreadable)
        items = _items(client, f"{namespace}:item:{collection}:", unreadable)
        popular = _popular(client, namespace)
        complete = _complete(client, namespace)
        expects, lives = _popular_next(client, namespace), _lives(client, namespace)
    rows = _rows(milvus_uri, collection)
    return Stored(users, items, rows, unreadable, popular, complete, expects, lives)


def _users(client: "redis.Redis[bytes]", namespace: str, unreadable: list[str]) -> dict[str, User]:
    users = {}
    prefix = f"{namespace}:user:"
    pattern = f"{prefix}{{{'?' * 16}}}:record:*"  # an id may look like part of a key
    found = client.scan_iter(match=pattern, count=1000, _type="string")
    while keys := [key.decode().removeprefix(prefix) for key in islice(found, 500)]:
        records = client.mget([f"{prefix}{key}" for key in keys])
        seen = client.mget([f"{prefix}{key.replace(':record:', ':seen:', 1)}" for key in keys])
        for key, record, items in zip(keys, records, seen, strict=True):
            tag, _, user_id = key.partition(":record:")
            try:
                users[user_id] = read_user(record or b"", items or b"")
            except Exception as error:
                unreadable.append(f"record of user {user_id}: {error}")
            if tag != f"{{{hash64(user_id):016x}}}":
                unreadable.append(f"user {user_id} stands under the tag {tag}")
    return users


def _items(client: "redis.Redis[bytes]", prefix: str, unreadable: list[str]) -> dict[str, Item]:
    items = {}
    for key in client.scan_iter(match=f"{prefix}*", count=1000):
        try:
            item = read_item(client.get(key) or b"")
        except Exception as error:
            unreadable.append(f"record {key!r}: {error}")
            continue
        items[item.item_id] = item
        if key.decode() != f"{prefix}{hash64(item.item_id):016x}":
            unreadable.append(f"item {item.item_id} stands under {key!r}")
    return items


def _popular(client: "redis.Redis[bytes]", namespace: str) -> dict[tuple[int, int, str], dict[int, int]]:
    """`popular:{RULE:PARTITION}:EPOCH:SEGMENT`; there is one rule."""
    sets = {}
    for key in client.scan_iter(match=f"{namespace}:popular:{{*}}:*", count=1000):
        tag, _, name = key.decode().partition("}:")
        epoch, _, segment = name.partition(":")
        rows = client.zrange(key, 0, -1, withscores=True)
        place = int(tag.rpartition(":")[2]), int(epoch), segment
        sets[place] = {int.from_bytes(member, "big"): int(score) for member, score in rows}
    return sets


def _complete(client: "redis.Redis[bytes]", namespace: str) -> dict[str, set[int]]:
    """`filled:{GROUP}`: a field for each complete partition; `:whole` behind it when all are."""
    found: dict[str, set[int]] = {}
    for key in client.scan_iter(match=f"{namespace}:filled:{{*}}", count=1000):
        group = key.decode().partition("{")[2].removesuffix("}")
        found[group] = {int(name) for name in client.hkeys(key) if name.isdigit()}
        if client.exists(key + b":whole"):
            found[group].add(-1)
    return found


def _popular_next(client: "redis.Redis[bytes]", namespace: str) -> dict[int, int]:
    """Of the hash of each partition."""
    hashes = client.scan_iter(match=f"{namespace}:popular:{{*}}", count=1000)
    return {
        int(key.decode().rpartition(":")[2].removesuffix("}")): int(client.hget(key, "next") or 0) for key in hashes
    }


def _lives(client: "redis.Redis[bytes]", namespace: str) -> dict[str, int]:
    """How long every key lives."""
    found: dict[str, int] = {}
    scan = client.scan_iter(match=f"{namespace}:*", count=1000)
    while keys := list(islice(scan, 500)):
        asking = client.pipeline(transaction=False)
        for key in keys:
            asking.pttl(key)
        names = [key.decode().removeprefix(f"{namespace}:") for key in keys]
        found |= dict(zip(names, asking.execute(), strict=True))
    return found


def _rows(uri: str, collection: str) -> dict[str, list[Row]]:
    client = MilvusClient(uri)
    try:
        found = client.query(
            collection,
            filter='item_id != ""',
            output_fields=["item_id", "item_hash", "embedding", "attributes"],
            limit=MAX_ROWS,
            consistency_level="Strong",
        )
    finally:
        client.close()
    if len(found) >= MAX_ROWS:
        raise AssertionError(f"{collection} holds more rows than one query returns")
    rows: dict[str, list[Row]] = {}
    for each in found:
        row = Row([float(value) for value in each["embedding"]], dict(each["attributes"]), each["item_hash"])
        rows.setdefault(each["item_id"], []).append(row)
    return rows
