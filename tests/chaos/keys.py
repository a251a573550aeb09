"""Which keys may stand in Redis, and for how long each lives, by the table in docs/storage.md."""

import re
from collections.abc import Iterator, Mapping

from tests.chaos.formats import Item, hash64
from tests.chaos.workload import WRONGED

HASH = "[0-9a-f]{16}"
RULE = r"[^:{}]+"
EXPIRES = (
    rf"user:\{{{HASH}\}}:(record|seen):.+",
    rf"popular:\{{{RULE}:\d+\}}(:\d+:.*)?",
)
LIVES = (
    "active-view",
    r"filled:\{.+\}(:whole)?",
    "item-ends:.+",
)
EITHER = (  # when they are not renewed, or how long who writes lives between two commands
    f"popular:{RULE}:partitions",
    "item-(feed|intents):.+",
)
ITEM = re.compile(f"item:.+:({HASH})")


def wrong_keys(lives_ms: Mapping[str, int], items: Mapping[str, Item]) -> Iterator[str]:
    """Keys of no known kind, keys that must expire and live for ever, and the other way round. A line each."""
    deleted = {f"{hash64(item_id):016x}" for item_id, item in items.items() if item.deleted}
    for name, life_ms in lives_ms.items():
        item = ITEM.fullmatch(name)
        if item is not None:
            expires: bool | None = item[1] in deleted
        elif _is(name, EXPIRES):
            expires = True
        elif _is(name, LIVES):
            expires = False
        else:
            expires = None
            if not _is(name, EITHER):
                yield f"redis has a key of no known kind: {name}"
        if expires is not None and expires != (life_ms >= 0) and not name.endswith(f":record:{WRONGED}"):
            yield f"redis has {name}, which {'never expires' if expires else f'expires in {life_ms} ms'}"


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name, re.DOTALL) for pattern in patterns)
