"""A connection that was reset a moment ago, under uvloop: client libraries expect an OSError, and get a RuntimeError.

A closed transport of uvloop refuses writes like that, until whoever reads from it has had a turn and found its end.
aiokafka's producer would send nothing ever after, and an agent that reads from Redis would end.
"""

from functools import wraps
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

HANDLE_CLOSED = "the handler is closed"


def is_reset(error: RuntimeError) -> bool:
    """Whether that is what it says."""
    return HANDLE_CLOSED in str(error)


def expect_in_kafka_client() -> None:
    """Have aiokafka take it for what it is: a broken connection, which is opened again. May be called twice."""
    if not hasattr(AIOKafkaConnection.send, "__wrapped__"):
        AIOKafkaConnection.send = _expecting(AIOKafkaConnection.send)


def _expecting(send: Any) -> Any:
    @wraps(send)
    def sent(connection: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return send(connection, *arguments, **named)
        except RuntimeError as error:
            if not is_reset(error):
                raise
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"{connection.host}:{connection.port} has reset the connection") from error

    return sent
