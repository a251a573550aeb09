"""Sequence numbers of an idempotent producer, one more for each record to a partition: behind the last comes 0.

aiokafka goes on below 0, as Java would with another type, and no broker takes such a record batch: from its 2^31st
record on a partition would take nothing more of this process.
"""

from typing import Any

from aiokafka.producer.transaction_manager import TransactionManager

NUMBERS = 2**31


def wrap() -> None:
    """For every producer of this process. May be called twice."""
    TransactionManager.increment_sequence_number = _increment


def _increment(manager: Any, tp: Any, increment: int) -> None:
    manager._sequence_numbers[tp] = (manager._sequence_numbers[tp] + increment) % NUMBERS
