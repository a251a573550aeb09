"""Any adapter, ours or not, held to its port: nothing but errors of ours comes out, and one row for each user."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from workers.errors import ConfigurationError, DependencyError, DependencyTimeout, DependencyUnavailable
from workers.ports import FeatureSource


class GuardedSource:
    """FeatureSource on another one. Whatever goes wrong inside is an error of the dependency, and ends no worker."""

    def __init__(self, dependency: str, source: FeatureSource) -> None:
        self.source = source
        self._dependency = dependency

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """See FeatureSource."""
        async with self._guarded():
            rows: Any = await self.source.values(user_ids, names)
        if not isinstance(rows, list) or len(rows) != len(user_ids) or not all(isinstance(r, Mapping) for r in rows):
            line = f"its adapter does not give a list of {len(user_ids)} mappings, one for each user"
            raise DependencyUnavailable(self._dependency, line)
        return rows

    async def check(self, names: Sequence[str], /) -> str | None:
        """See FeatureSource."""
        async with self._guarded():
            return await self.source.check(names)

    async def ping(self) -> None:
        """See FeatureSource."""
        async with self._guarded():
            await self.source.ping()

    async def close(self) -> None:
        """See FeatureSource."""
        await self.source.close()

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        try:
            yield
        except ConfigurationError:
            raise
        except DependencyError as error:
            if error.dependency == self._dependency:
                raise
            kind = DependencyTimeout if isinstance(error, DependencyTimeout) else DependencyUnavailable
            raise kind(self._dependency, str(error)) from error
        except TimeoutError as error:
            raise DependencyTimeout(self._dependency, "no answer in time") from error
        except Exception as error:  # whatever an adapter raises
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise DependencyUnavailable(self._dependency, line) from error
