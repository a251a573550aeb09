"""Values about users from a server that speaks the protocol of docs/features.md: one POST a batch, JSON both ways."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.errors import DependencyUnavailable
from workers.features.given import Given
from workers.features.json_http import JsonHttp


class HttpFeatureSource:
    """FeatureSource on POST {"user_ids": [...], "features": [...]} -> {"values": [{...}, ...]}."""

    def __init__(self, dependency: str, http: JsonHttp, path: str) -> None:
        self._dependency = dependency
        self._http = http
        self._path = path

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """One request."""
        return await self._asked(user_ids, names) if user_ids else []

    async def check(self, _names: Sequence[str], /) -> str | None:
        """The protocol has no word for a feature that nobody has."""
        await self.ping()
        return None

    async def ping(self) -> None:
        """The same question about nobody."""
        await self._asked([], [])

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def _asked(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        answer = await self._http.post(self._path, {"user_ids": list(user_ids), "features": list(names)})
        rows = answer.get("values") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or len(rows) != len(user_ids):
            line = f'its answer has no list "values" of {len(user_ids)} objects, one for each user'
            raise DependencyUnavailable(self._dependency, line)
        rows = [row if isinstance(row, dict) else {} for row in rows]
        return [{name: row[name] for name in names if row.get(name) is not None} for row in rows]


def open_http(given: Given) -> HttpFeatureSource:
    """Connects at the first call."""
    return HttpFeatureSource(given.dependency, JsonHttp(given.dependency, given.source), given.source.path)
