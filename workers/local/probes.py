"""Whether a server answers its clients: one short question each."""

import asyncio
import socket


def kafka_answers(bootstrap: str) -> bool:
    """One metadata request."""
    host, _, port = bootstrap.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False  # spares the client library's error log while the server starts
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

    async def ask() -> bool:
        client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=1000)
        try:
            await client.bootstrap()
        except (KafkaError, OSError):
            return False
        finally:
            await client.close()
        return True

    return asyncio.run(ask())


def milvus_answers(target: str) -> bool:
    """One health check."""
    import grpc

    from workers.grpc_options import OPTIONS
    from workers.index.milvus_protocol import milvus_pb2, milvus_pb2_grpc

    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        try:
            state = milvus_pb2_grpc.MilvusServiceStub(channel).CheckHealth(milvus_pb2.CheckHealthRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(state.isHealthy)
