"""JSON over HTTP/1.1 with kept connections, and the translation of what can go wrong with it."""

import asyncio
import json
import math
import ssl
from typing import Any

import httpx
import orjson

from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.feature_sources import FeatureSourceSettings
from workers.resets import is_reset

CONNECTIONS = 32
KEPT_OPEN_S = 60.0
SHOWN = 200  # characters of a refusal


class Refused(DependencyUnavailable):
    """The server answered, and said no: a `status` of 400 or more."""

    def __init__(self, dependency: str, message: str, status: int) -> None:
        super().__init__(dependency, message)
        self.status = status


class JsonHttp:
    """One server, asked within `timeout_ms`. Opens connections when they are needed."""

    def __init__(self, dependency: str, source: FeatureSourceSettings) -> None:
        self._dependency = dependency
        self._timeout_s = source.timeout_ms / 1000
        self._url = source.url.get_secret_value().rstrip("/")
        self._client = httpx.AsyncClient(
            headers={name: value.get_secret_value() for name, value in source.headers.items()},
            timeout=None,  # noqa: S113  # every call has its own
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT_OPEN_S
            ),
            trust_env=False,  # no proxy of the environment's: sources are near
            verify=ssl.create_default_context(),  # the machine's authorities; SSL_CERT_FILE names others
        )

    async def post(self, path: str, body: Any) -> Any:
        """The decoded answer. A connection that the server closed meanwhile is opened again, once.

        Raises DependencyTimeout, DependencyUnavailable and its child Refused.
        """
        return _decoded(self._dependency, await self._sent("POST", path, orjson.dumps(body)))

    async def get(self, path: str) -> bytes:
        """The answer's bytes. Raises as `post` does."""
        return await self._sent("GET", path, None)

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def _sent(self, method: str, path: str, content: bytes | None) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    answer = await self._request(method, path, content)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    answer = await self._request(method, path, content)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DependencyTimeout(self._dependency, f"no answer in {self._timeout_s * 1000:.0f} ms") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise DependencyUnavailable(self._dependency, f"{type(error).__name__}: {error}") from error
        except RuntimeError as error:
            if not is_reset(error):
                raise
            raise DependencyUnavailable(self._dependency, "the connection was reset") from error
        if answer.status_code >= httpx.codes.BAD_REQUEST:
            text = " ".join(answer.text[:SHOWN].split())
            line = f"{method} {path} is answered with {answer.status_code}: {text}"
            raise Refused(self._dependency, line, answer.status_code)
        return answer.content

    async def _request(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        kind = {} if content is None else {"content-type": "application/json"}
        return await self._client.request(method, f"{self._url}{path}", content=content, headers=kind)


def _decoded(dependency: str, content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:  # NaN and Infinity are no JSON, but Python's servers write them
        return json.loads(content, parse_constant=lambda _: math.nan)
    except ValueError as error:
        raise DependencyUnavailable(dependency, f"its answer is no JSON: {error}") from error
