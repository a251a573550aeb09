"""One place that opens item indexes, by the setting `index`: ours, and those that other packages register."""

from contextlib import AbstractContextManager, AsyncExitStack, nullcontext

from workers.adapters import Builtin, find
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.index.adapter import IndexAdapter
from workers.index.in_process import FOLDER, HeldIndex, held_alone
from workers.index.schema import Collection
from workers.ports import ItemIndex
from workers.settings import Settings

GROUP = "recall.item_indexes"
BUILTINS = {
    "milvus": Builtin("workers.index.milvus_collection:ADAPTER"),
    "faiss": Builtin("workers.index.faiss:ADAPTER", "faiss"),
    "memory": Builtin("workers.index.memory:ADAPTER"),
}
TOGETHER = "recall worker all --one-process"


def adapter(settings: Settings) -> IndexAdapter:
    """The one that `index` names. Raises ConfigurationError: there is none, or it cannot be imported."""
    found = find("index", settings.index, BUILTINS, GROUP)
    if not isinstance(found, IndexAdapter):
        raise ConfigurationError(f"index = {settings.index!r}: it is no IndexAdapter, but {type(found).__name__}")
    return found


def of_one_process(settings: Settings, *, together: bool) -> AbstractContextManager[None]:
    """While it lasts, workers of this process, `together` all that there are, may use an index that lives in it.

    Raises ConfigurationError, one line: they are not together, or another process of this namespace has such an index.
    """
    if not adapter(settings).in_process:
        return nullcontext()
    if not together:
        line = f"index = {settings.index!r} keeps the items in the process of the workers, and there is one for all"
        raise ConfigurationError(f"{line}: {TOGETHER}")
    return held_alone(settings)


async def open_index(settings: Settings, collection: Collection) -> ItemIndex:
    """Open a collection that is there, from any process.

    Raises DependencyError while it is not, ConfigurationError: it is another one, or only its worker can look inside.
    """
    chosen = adapter(settings)
    if chosen.in_process or chosen.open is None:
        line = f"index = {settings.index!r} keeps the items in the process of the workers"
        raise ConfigurationError(f"{line}: nothing outside it can look at them")
    return await chosen.open(settings, collection)


async def prepare_index(settings: Settings, collection: Collection, rows: int) -> ItemIndex:
    """Make a collection that is to hold about so many rows, unless it is there, and open it for writing.

    Raises DependencyError, ConfigurationError.
    """
    return await adapter(settings).prepare(settings, collection, rows)


class Indexes:
    """The item indexes of one process. What lives in the process is made once, and shared by all its agents."""

    def __init__(self, settings: Settings, opened: AsyncExitStack) -> None:
        """`opened` ends with the process, and gives back what the agents share."""
        self._settings = settings
        self._opened = opened
        self._held: dict[str, HeldIndex] = {}

    async def gone(self, collection: Collection) -> bool:
        """Whether it is not there: never was, or was lost. Raises DependencyError, ConfigurationError."""
        exists = adapter(self._settings).exists
        return exists is not None and not await exists(self._settings, collection)

    async def prepare(self, collection: Collection, rows: int) -> tuple[ItemIndex, HeldIndex | None]:
        """For who writes. The second: the same, where it lives in this process and is to be filled.

        Raises DependencyError, ConfigurationError.
        """
        index = await prepare_index(self._settings, collection, rows)
        self._opened.push_async_callback(index.close)
        if not adapter(self._settings).in_process:
            return index, None
        held = HeldIndex(self._settings.index, index, collection, self._settings.data_dir / FOLDER)
        self._held[collection.name] = held
        return index, held

    async def open(self, collection: Collection) -> ItemIndex:
        """For who searches. Raises DependencyError while it is not there, ConfigurationError."""
        if not adapter(self._settings).in_process:
            return await open_index(self._settings, collection)
        held = self._held.get(collection.name)
        if held is None:
            line = f"collection {collection.name} does not exist yet: the items worker of this process makes it"
            raise DependencyUnavailable(self._settings.index, line)
        return held.searched
