"""HTTP to a model server: connections that stay open, and the translation of what can go wrong."""

import json
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from workers.errors import DependencyError, DependencyTimeout, DependencyUnavailable
from workers.settings import Settings
from workers.towers.server import DEPENDENCY, Missing, Refused, Words, meaning

CONNECTIONS = 16
KEPT_OPEN_S = 60.0
REFUSED = {400, 413, 422, 500}  # of these rows, or of whatever is asked: see RemoteTower
CLOSED_BY_SERVER = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
JSON_HEADERS = {"content-type": "application/json"}
LINE = 300  # characters of a server's message


class Rest:
    """Requests to one server. A call's time bounds each of its steps; callers bound the whole."""

    def __init__(self, settings: Settings, words: Words | None = None) -> None:
        self._words = words or {}
        self.url = settings.tower_url.rstrip("/")
        token = settings.tower_token.get_secret_value()
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT_OPEN_S
            ),
            timeout=settings.tower_timeout_ms / 1000,
            trust_env=False,  # no proxy of the environment's: model servers are near
            verify=ssl.create_default_context(),  # the machine's authorities; SSL_CERT_FILE names others
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
        await self._client.aclose()


def to_json(value: object) -> bytes:
    """JSON of something that may hold arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def read_arrays(answer: Mapping[str, Any], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """float32 of nested lists by name; null is NaN. Raises DependencyUnavailable for what is none."""
    try:
        return {name: np.array(answer[name], dtype=np.float32) for name in names if name in answer}
    except (TypeError, ValueError) as error:
        raise DependencyUnavailable(DEPENDENCY, f"its answer cannot be read: {error}") from error


def read_json(content: bytes) -> Any:
    """Raises DependencyUnavailable for what is no JSON. NaN and Infinity, which JSON does not have, are read too."""
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
