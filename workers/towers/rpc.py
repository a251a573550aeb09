"""gRPC to a model server: one channel, a deadline for each call, and the translation of what can go wrong."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import grpc

from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.grpc_options import OPTIONS
from workers.settings import Settings
from workers.towers.server import DEPENDENCY, Missing, Refused, Words, meaning

REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}  # of these rows, or of whatever is asked: see RemoteTower
DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
TOO_LARGE = "larger than max"  # how gRPC's own servers say that a message is; no waiting mends it
LINE = 300  # characters of a server's message


class Rpc:
    """Calls by full name, `package.Service/Method`. To be made in a running loop; connects at the first call."""

    def __init__(self, settings: Settings, words: Words | None = None) -> None:
        self._words = words or {}
        parts = urlsplit(settings.tower_url)
        self.url = settings.tower_url
        if parts.scheme == "grpcs":
            self._channel = grpc.aio.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options=OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(parts.netloc, options=OPTIONS)
        token = settings.tower_token.get_secret_value()
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._methods: dict[str, Any] = {}
        self._closed = False

    async def call(self, method: str, request: Any, response: Any, timeout_s: float) -> Any:
        """The answer, a `response`. Raises DependencyUnavailable, DependencyTimeout, Refused."""
        if method not in self._methods:
            self._methods[method] = self._channel.unary_unary(
                f"/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
        try:
            answer = await self._methods[method](request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, timeout_s) from error
        except grpc.aio.UsageError as error:
            raise DependencyUnavailable(DEPENDENCY, "the connection is closed") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():  # by the channel's end, and by nobody else
                raise DependencyUnavailable(DEPENDENCY, "the connection is closed") from error
            raise
        if answer is None:  # what cannot be read is logged by the library, and given as nothing
            raise DependencyUnavailable(DEPENDENCY, f"{self.url}: its answer to {method} cannot be read")
        return answer

    def _failure(self, error: Any, timeout_s: float) -> Exception:
        code, said = error.code(), " ".join(str(error.details()).split())[:LINE]
        meant = meaning(self._words, said)
        too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in said
        if meant == "refused" or too_large or (meant is None and code in REFUSED):
            return Refused(f"{code.name}: {said}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DependencyTimeout(DEPENDENCY, f"{self.url}: no answer in {timeout_s * 1000:.0f} ms")
        if meant == "missing" or code is grpc.StatusCode.NOT_FOUND:
            return Missing(DEPENDENCY, f"{self.url}: it has no such model, or not this version: {said}")
        if code in DENIED:
            return DependencyUnavailable(DEPENDENCY, f"{self.url}: it wants another tower_token: {code.name}: {said}")
        return DependencyUnavailable(DEPENDENCY, f"{self.url}: {code.name}: {said}")

    async def close(self) -> None:
        """Close the channel; calls in flight end as unavailable."""
        self._closed = True
        await self._channel.close()
