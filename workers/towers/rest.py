"""HTTP to a model server: connections that stay open, and the translation of what can go wrong."""

from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from workers.errors import DependencyError, DependencyTimeout, DependencyUnavailable
from workers.settings import Settings
from workers.towers.server import DEPENDENCY, NO_SUCH_MODEL, Refused

CONNECTIONS = 16
KEPT_OPEN_S = 60.0
REFUSED = {400, 413, 422, 500}  # of these rows, or of whatever is asked: see RemoteTower
CLOSED_BY_SERVER = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
LINE = 300  # characters of a server's message


class Rest:
    """Requests to one server. A call's time bounds each of its steps; callers bound the whole."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.tower_url.rstrip("/")
        token = settings.tower_token.get_secret_value()
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT_OPEN_S
            ),
            timeout=settings.tower_timeout_ms / 1000,
            trust_env=False,
        )

    async def get(self, path: str) -> Any:
        """The JSON of a page. Raises DependencyUnavailable, Refused."""
        return read_json((await self.send("GET", path)).content)

    async def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, its status 200. Raises DependencyUnavailable, DependencyTimeout, Refused.

        A connection that the server has closed meanwhile is opened again, once: nothing here changes a server.
        """
        try:
            try:
                response = await self._client.request(method, self.url + path, content=body, headers=headers)
            except CLOSED_BY_SERVER:
                response = await self._client.request(method, self.url + path, content=body, headers=headers)
        except httpx.TimeoutException as error:
            raise DependencyTimeout(DEPENDENCY, f"{self.url}: no answer in time") from error
        except httpx.HTTPError as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise DependencyUnavailable(DEPENDENCY, f"{self.url}: {line}") from error
        except RuntimeError as error:  # httpx' of a closed client
            raise DependencyUnavailable(DEPENDENCY, "the connection is closed") from error
        if response.status_code != 200:
            raise self._failure(response)
        return response

    def _failure(self, response: httpx.Response) -> DependencyError | Refused:
        status, said = response.status_code, message(response.content)
        if status in REFUSED or _failed_in_handler(response):
            return Refused(f"{status}: {said}")
        if status == 404:
            return DependencyUnavailable(DEPENDENCY, f"{self.url}: {NO_SUCH_MODEL}: {said}")
        if status in {401, 403}:
            return DependencyUnavailable(DEPENDENCY, f"{self.url}: {status}: it wants another tower_token: {said}")
        return DependencyUnavailable(DEPENDENCY, f"{self.url}: {status}: {said}")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def read_json(content: bytes) -> Any:
    """Raises DependencyUnavailable for what is no JSON. NaN and Infinity, which JSON does not have, are read too."""
    import json

    try:
        return orjson.loads(content)
    except ValueError:
        try:
            return json.loads(content)
        except ValueError as error:
            raise DependencyUnavailable(DEPENDENCY, f"its answer is no JSON: {error}") from error


def message(content: bytes) -> str:
    """What a server says of an error, in one line."""
    try:
        found = orjson.loads(content)
        text = str(next(found[key] for key in ("error", "message", "detail") if key in found))
    except (ValueError, TypeError, StopIteration):
        text = content.decode(errors="replace")
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[:LINE]}..."


def _failed_in_handler(response: httpx.Response) -> bool:
    """TorchServe says 503 of a model that fails too; its type tells it from overload."""
    return response.status_code == 503 and b'"InternalServerException"' in response.content
