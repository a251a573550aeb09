"""Brokers that are all gone: aiokafka asks those that it knows where others are, and no one else ever again.

A cluster that comes back at other addresses is found where it was at first: at those of the settings, by their names.
"""

import asyncio
from functools import wraps
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

ANSWERS_WITHIN_S = 5.0


def bootstrap_again() -> None:
    """Have every client do so when no broker that it knows answers. May be called twice."""
    if not hasattr(AIOKafkaClient._metadata_update, "__wrapped__"):
        AIOKafkaClient._metadata_update = _or_bootstrap(AIOKafkaClient._metadata_update)


def _or_bootstrap(update: Any) -> Any:
    @wraps(update)
    async def updated(client: Any, cluster: Any, topics: Any) -> bool:
        return bool(await update(client, cluster, topics)) or await _bootstrapped(client, cluster, topics)

    return updated


async def _bootstrapped(client: Any, cluster: Any, topics: Any) -> bool:
    request = MetadataRequest(list(topics) if topics else None)
    for host, port, _ in client.hosts:
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                metadata = await _asked(client, host, port, request)
        except (OSError, KafkaError, TimeoutError):
            continue
        if metadata.brokers:
            cluster.update_metadata(metadata)
            return True
    return False


async def _asked(client: Any, host: str, port: int, request: Any) -> Any:
    connection = await create_conn(
        host,
        port,
        client_id=client._client_id,
        request_timeout_ms=client._request_timeout_ms,
        ssl_context=client._ssl_context,
        security_protocol=client._security_protocol,
        max_idle_ms=client._connections_max_idle_ms,
        sasl_mechanism=client._sasl_mechanism,
        sasl_plain_username=client._sasl_plain_username,
        sasl_plain_password=client._sasl_plain_password,
    )
    try:
        return await connection.send(request)
    finally:
        connection.close()
