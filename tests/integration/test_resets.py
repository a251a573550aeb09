"""A connection that was reset a moment ago is a broken connection to whoever writes to it under uvloop."""

import asyncio

import pytest
import uvloop
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from tests.conftest import Stack
from workers.errors import DependencyUnavailable
from workers.resets import expect_in_kafka_client
from workers.settings import Settings
from workers.stores.connect import connect, ping, translated


def test_what_uvloop_raises_is_an_error_of_redis(settings: Settings) -> None:
    async def write_after_reset() -> None:
        client = connect(settings)
        await ping(client)
        connection = await client.connection_pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # closed now, and nobody who reads there has noticed
        await client.connection_pool.release(connection)
        with pytest.raises(DependencyUnavailable, match="reset"):
            await ping(client)
        await ping(client)
        await client.aclose()

    uvloop.run(write_after_reset())


def test_other_mistakes_at_run_time_are_none_of_redis() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), translated():
        raise RuntimeError("a mistake")


def test_the_kafka_client_opens_such_a_connection_again(stack: Stack) -> None:
    async def send_after_reset() -> None:
        host, port = stack.kafka_bootstrap.split(":")
        connection = await create_conn(host, int(port))
        await connection.send(MetadataRequest([]))
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # closed now, and nobody who reads there has noticed
        with pytest.raises(KafkaConnectionError, match="reset"):
            connection.send(MetadataRequest([]))
        assert not connection.connected(), "the client opens another one where this is so"

    expect_in_kafka_client()
    expect_in_kafka_client()
    uvloop.run(asyncio.wait_for(send_after_reset(), 30))
