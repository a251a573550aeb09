"""HTTP/1.1 to a backend: connections that stay open, and the translation of what can go wrong with them."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from workers.errors import DependencyTimeout, DependencyUnavailable

CONNECTIONS = 32
KEPT_OPEN_S = 60.0
CLOSED_BY_SERVER = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
OK = 200
SHOWN = 300  # characters of what a server says


class HttpClient:
    """One server, asked within `timeout_s`. Opens connections when they are needed."""

    def __init__(self, dependency: str, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._dependency = dependency
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **headers},  # vectors hardly get smaller, and that takes time
            timeout=None,  # noqa: S113  # every call has its own
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT_OPEN_S
            ),
            trust_env=False,  # no proxy of the environment's: backends are near
            verify=ssl.create_default_context(),  # the machine's authorities; SSL_CERT_FILE names others
        )

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, whatever its status. Raises DependencyTimeout, DependencyUnavailable.

        A connection that the server closed meanwhile is opened again, once: what is asked here changes no server.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._request(method, path, body, headers)
                except CLOSED_BY_SERVER:
                    return await self._request(method, path, body, headers)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DependencyTimeout(self._dependency, f"no answer in {self._timeout_s * 1000:.0f} ms") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            line = f"{self.url}: {type(error).__name__}: {in_one_line(str(error))}".removesuffix(": ")
            raise DependencyUnavailable(self._dependency, line) from error
        except RuntimeError as error:  # of a client that is closed, and of a connection that was just reset
            raise DependencyUnavailable(self._dependency, "the connection is closed") from error

    async def close(self) -> None:
        """Close connections. May be called twice."""
        await self._client.aclose()

    async def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        return await self._client.request(method, f"{self.url}{path}", content=body, headers=headers)


def read_json(dependency: str, content: bytes) -> Any:
    """Raises DependencyUnavailable for what is no JSON; NaN and Infinity, which Python's servers write, are read."""
    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:
        return json.loads(content)
    except ValueError as error:
        raise DependencyUnavailable(dependency, f"its answer is no JSON: {error}") from error


def in_one_line(text: str) -> str:
    """What somebody else says, so that it fits into a line of ours."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
