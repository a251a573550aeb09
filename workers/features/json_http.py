"""JSON over HTTP to a feature source."""

from typing import Any

import orjson

from workers.errors import DependencyUnavailable
from workers.feature_sources import FeatureSourceSettings
from workers.http_client import HttpClient, in_one_line, read_json

JSON_HEADERS = {"content-type": "application/json"}
BAD_REQUEST = 400


class Refused(DependencyUnavailable):
    """The server answered, and said no: a `status` of 400 or more."""

    def __init__(self, dependency: str, message: str, status: int) -> None:
        super().__init__(dependency, message)
        self.status = status


class JsonHttp:
    """One server, asked within `timeout_ms`."""

    def __init__(self, dependency: str, source: FeatureSourceSettings) -> None:
        self._dependency = dependency
        headers = {name: value.get_secret_value() for name, value in source.headers.items()}
        self._client = HttpClient(dependency, source.url.get_secret_value(), headers, source.timeout_ms / 1000)

    async def post(self, path: str, body: Any) -> Any:
        """The decoded answer. Raises DependencyTimeout, DependencyUnavailable and its child Refused."""
        return read_json(self._dependency, await self._sent("POST", path, orjson.dumps(body)))

    async def get(self, path: str) -> bytes:
        """The answer's bytes. Raises as `post` does."""
        return await self._sent("GET", path, None)

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _sent(self, method: str, path: str, body: bytes | None) -> bytes:
        answer = await self._client.ask(method, path, body, None if body is None else JSON_HEADERS)
        if answer.status_code >= BAD_REQUEST:
            line = f"{method} {path} is answered with {answer.status_code}: {in_one_line(answer.text)}"
            raise Refused(self._dependency, line, answer.status_code)
        content: bytes = answer.content
        return content
