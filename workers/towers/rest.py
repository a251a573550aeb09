"""REST to a model server: what its answers and refusals mean."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from workers import http_client
from workers.errors import DependencyError, DependencyUnavailable
from workers.http_client import OK, HttpClient, in_one_line
from workers.settings import Settings
from workers.towers.server import DEPENDENCY, Missing, Refused, Words, meaning

REFUSED = {400, 413, 422, 500}  # of these rows, or of whatever is asked: see RemoteTower
JSON_HEADERS = {"content-type": "application/json"}

read_json = partial(http_client.read_json, DEPENDENCY)


class Rest:
    """Requests to one server, each within `tower_timeout_ms`."""

    def __init__(self, settings: Settings, words: Words | None = None) -> None:
        self._words = words or {}
        token = settings.tower_token.get_secret_value()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = HttpClient(DEPENDENCY, settings.tower_url, headers, settings.tower_timeout_ms / 1000)
        self.url = self._client.url

    async def get(self, path: str) -> Any:
        """The JSON of a page. Raises DependencyUnavailable, Refused."""
        return read_json((await self.send("GET", path)).content)

    async def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, its status 200. Raises DependencyUnavailable, DependencyTimeout, Refused."""
        response = await self._client.ask(method, path, body, headers)
        if response.status_code != OK:
            raise self._failure(response)
        return response

    def _failure(self, response: httpx.Response) -> DependencyError | Refused:
        status, said = response.status_code, message(response.content)
        meant = meaning(self._words, response.text)
        if meant == "refused" or (meant is None and status in REFUSED):
            return Refused(f"{status}: {said}")
        if meant == "missing" or status == 404:
            return Missing(DEPENDENCY, f"{self.url}: it has no such model, or not this version: {said}")
        if status in {401, 403}:
            return DependencyUnavailable(DEPENDENCY, f"{self.url}: {status}: it wants another tower_token: {said}")
        return DependencyUnavailable(DEPENDENCY, f"{self.url}: {status}: {said}")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()


def to_json(value: object) -> bytes:
    """JSON of something that may hold arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def read_arrays(answer: Mapping[str, Any], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """float32 of nested lists by name; null is NaN. Raises DependencyUnavailable for what is none."""
    try:
        return {name: np.array(answer[name], dtype=np.float32) for name in names if name in answer}
    except (TypeError, ValueError) as error:
        raise DependencyUnavailable(DEPENDENCY, f"its answer cannot be read: {error}") from error


def message(content: bytes) -> str:
    """What a server says of an error, in one line."""
    try:
        found = orjson.loads(content)
        text = str(next(found[key] for key in ("error", "message", "detail") if key in found))
    except (ValueError, TypeError, StopIteration):
        text = content.decode(errors="replace")
    return in_one_line(text)
