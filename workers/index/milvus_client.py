"""A channel to Milvus: calls with a deadline, and the translation of what can go wrong with them."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.grpc_options import OPTIONS
from workers.index.milvus_protocol import milvus_pb2_grpc
from workers.settings import Settings

DEPENDENCY = "milvus"
DATABASE_FIELDS = ("db_name", "dbName")
NOT_FOUND = 100
NOT_LOADED = 101
NOT_FOUND_BEFORE_2_3 = 4
INVALID_PARAMETER = range(1100, 1200)
INVALID_PARAMETER_BEFORE_2_3 = (5, 6, 10)  # IllegalArgument, IllegalDimension, IllegalRowRecord


class NotLoaded(DependencyUnavailable):
    """The collection is there, and must be loaded first."""


class MilvusClient:
    """Calls by name on Milvus' gRPC service. To be made inside a running event loop; connects at the first call."""

    def __init__(self, settings: Settings) -> None:
        self._uri = settings.shown("milvus_uri")  # for messages: without a password
        if settings.milvus_file is not None:
            raise ConfigurationError(f"milvus_uri: {self._uri} is a file; only the worker that opened it can use it")
        uri = settings.milvus_uri
        try:
            parts = urlsplit(uri if "://" in uri else f"http://{uri}")
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname  # IPv6
            address = f"{host}:{parts.port or 19530}"
        except ValueError:  # its text may hold a part of a password: not to be shown
            raise ConfigurationError(f"milvus_uri: {self._uri} is not http://host:port or https://host:port") from None
        if parts.scheme not in {"http", "https", "tcp"} or not parts.hostname:
            raise ConfigurationError(f"milvus_uri: {self._uri} is not http://host:port or https://host:port")
        if parts.scheme == "https":
            self._channel = grpc.aio.secure_channel(address, _credentials(settings), options=_options(settings))
        else:
            self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = milvus_pb2_grpc.MilvusServiceStub(self._channel)
        self._database = settings.milvus_database
        token = settings.milvus_token.get_secret_value()
        if settings.milvus_user:
            token = f"{settings.milvus_user}:{settings.milvus_password.get_secret_value()}"
        self._metadata = (("authorization", base64.b64encode(token.encode()).decode()),) if token else ()

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """The response, its status checked.

        Raises DependencyUnavailable (NotLoaded), DependencyTimeout, or RowRefused: the request's values are refused.
        """
        response = await self.call_unchecked(method, request, timeout_s)
        status = response if hasattr(response, "error_code") else response.status
        if status.code or status.error_code:
            raise self._refusal(method, status)
        return response

    async def call_unchecked(self, method: str, request: Any, timeout_s: float) -> Any:
        """The response, whatever its status says."""
        if self._database:
            _name_database(request, self._database)
        try:
            return await getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DependencyTimeout(DEPENDENCY, f"{method}: no answer in {timeout_s:g} s") from error
            raise DependencyUnavailable(
                DEPENDENCY, f"{method} at {self._uri}: {error.code().name}: {error.details()}"
            ) from error
        except grpc.aio.UsageError as error:
            raise DependencyUnavailable(DEPENDENCY, f"{method}: the connection is closed") from error

    async def close(self) -> None:
        """Close the channel; calls in flight end as unavailable."""
        await self._channel.close()

    @staticmethod
    def _refusal(method: str, status: Any) -> DependencyUnavailable | RowRefused:
        line = f"{method}: {status.reason} (code {status.code or status.error_code})"
        old_style = status.code in {0, status.error_code} and status.error_code in INVALID_PARAMETER_BEFORE_2_3
        if status.code in INVALID_PARAMETER or old_style:
            return RowRefused(DEPENDENCY, line)
        if status.code == NOT_LOADED:
            return NotLoaded(DEPENDENCY, line)
        return DependencyUnavailable(DEPENDENCY, line)


def _credentials(settings: Settings) -> grpc.ChannelCredentials:
    """Raises ConfigurationError, one line: a file that cannot be read."""
    files = []
    for name in ("milvus_ca_path", "milvus_key_path", "milvus_cert_path"):
        path = getattr(settings, name)
        try:
            files.append(Path(path).read_bytes() if path else None)
        except OSError as error:
            raise ConfigurationError(f"{name}: {path}: {error.strerror}") from error
    return grpc.ssl_channel_credentials(*files)


def _options(settings: Settings) -> list[tuple[str, Any]]:
    name = settings.milvus_server_name
    return [*OPTIONS, ("grpc.ssl_target_name_override", name)] if name else [*OPTIONS]


def _name_database(request: Any, database: str) -> None:
    """Requests about collections have a field for it, under one of two names."""
    for field in DATABASE_FIELDS:
        if field in request.DESCRIPTOR.fields_by_name:
            setattr(request, field, database)
