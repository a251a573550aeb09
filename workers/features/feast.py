"""Values about users from Feast's online store, asked over HTTP as `feast serve` answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.errors import DependencyUnavailable
from workers.feature_sources import FeatureSourceSettings
from workers.features.given import Given
from workers.features.json_http import JsonHttp, Refused

PATH = "/get-online-features"
PROBE = "recall-check"  # a user whom nobody knows
NOT_FOUND = 404
NEVER_WORKS = ("not found", "Missing join key")  # in a 500, which elsewhere says that it cannot work now
NEVER = "1970-01-01"  # the time of a value that was never written, although its status may be PRESENT


class FeastFeatureSource:
    """FeatureSource on a feature service, or on the features of one view."""

    def __init__(self, dependency: str, http: JsonHttp, source: FeatureSourceSettings) -> None:
        self._dependency = dependency
        self._http = http
        self._service = source.feature_service
        self._view = source.feature_view
        self._entity = source.entity

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """One request. What is not PRESENT, null or of no time is absent."""
        if not user_ids or not names:
            return [{} for _ in user_ids]
        rows: list[dict[str, Any]] = [{} for _ in user_ids]
        for name, column in (await self._columns(user_ids, names)).items():
            if name in names:  # a service may have more
                for row, value in zip(rows, column, strict=True):
                    if value is not None:
                        row[name] = value
        return list(rows)

    async def check(self, names: Sequence[str], /) -> str | None:
        """Asks for the features of nobody, and looks which there are."""
        where = f"feature service {self._service!r}" if self._service else f"feature view {self._view!r}"
        try:
            known = await self._columns([PROBE], names)
        except Refused as error:
            if error.status != NOT_FOUND and not any(words in str(error) for words in NEVER_WORKS):
                raise
            return f"{where} cannot give {', '.join(names)}: {str(error).removeprefix(f'{self._dependency}: ')}"
        missing = [name for name in names if name not in known]
        return f"{where} has no feature {', '.join(missing)}" if missing else None

    async def ping(self) -> None:
        """GET /health."""
        await self._http.get("/health")

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def _columns(self, user_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
        """Feature -> its value for each user, None where there is none; in the server's order, not as asked."""
        body: dict[str, Any] = {"entities": {self._entity: list(user_ids)}, "full_feature_names": False}
        if self._service:
            body["feature_service"] = self._service
        else:
            body["features"] = [f"{self._view}:{name}" for name in names]
        answer = await self._http.post(PATH, body)
        try:
            known, results = answer["metadata"]["feature_names"], answer["results"]
            columns = {name: _present(column) for name, column in zip(known, results, strict=True)}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            line = f"its answer is not what feast serve answers: {type(error).__name__}: {error}"
            raise DependencyUnavailable(self._dependency, line) from error
        if any(len(column) != len(user_ids) for column in columns.values()):
            raise DependencyUnavailable(self._dependency, f"its answer is not about {len(user_ids)} users")
        return columns


def _present(column: Mapping[str, Sequence[Any]]) -> list[Any]:
    cells = zip(column["values"], column["statuses"], column["event_timestamps"], strict=True)
    return [value if status == "PRESENT" and not str(time).startswith(NEVER) else None for value, status, time in cells]


def open_feast(given: Given) -> FeastFeatureSource:
    """Connects at the first call."""
    return FeastFeatureSource(given.dependency, JsonHttp(given.dependency, given.source), given.source)
