"""What an item index of another package registers, and what ours are: how to make one ready, and how to open it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workers.index.schema import Collection
from workers.ports import ItemIndex
from workers.settings import Settings


@dataclass(frozen=True, slots=True)
class IndexAdapter:
    """An entry point of the group `recall.item_indexes` is one of these.

    `prepare(settings, collection, rows)` makes a collection that is to hold about so many rows, unless it is there, and
    opens it for writing. `open(settings, collection)` opens one that is there; DependencyUnavailable while it is not.
    `exists(settings, collection)`, if it is given, says whether it is there; where it is not, it is filled again.
    All raise DependencyError with the adapter's name as `dependency`, and ConfigurationError for what cannot work.

    `in_process`: the rows live in the process, and are gone with it. Only `prepare` is used then, once, and its index
    is shared by all agents of the process and filled again from the topic.
    """

    prepare: Callable[[Settings, Collection, int], Awaitable[ItemIndex]]
    open: Callable[[Settings, Collection], Awaitable[ItemIndex]] | None = None
    in_process: bool = False
    exists: Callable[[Settings, Collection], Awaitable[bool]] | None = None
