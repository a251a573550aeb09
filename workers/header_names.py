"""Headers whose name is no UTF-8: aiokafka raises at them, so that nobody would ever read past such a record.

Brokers do not look at names, and clients in C or Go may write any bytes. A fetch that holds one is read again, by
aiokafka's parser in Python, with `\\xff` in place of a byte that does not fit; every other fetch is read as ever.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

HEADERS_SINCE = 2  # the format of a batch


class _Kept(fetcher.MemoryRecords):
    """The batches of one partition's fetch, which can be read once more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _Again(_MemoryRecordsPy):
    """The same batches for the second reading; the oldest formats have no headers."""

    def next_batch(self) -> Any:
        data = self._next_slice
        batch = super().next_batch()
        return batch if batch is None or data[self.MAGIC_OFFSET] < HEADERS_SINCE else _Batch(data)


class _Batch(_DefaultRecordBatchPy):
    def __iter__(self) -> Any:
        super().__iter__()
        self._buffer: bytearray = _Lenient(self._buffer)  # uncompressed by now
        return self


class _Lenient(bytearray):
    """Of a batch nothing but the names of headers is decoded."""

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return _Lenient(part) if isinstance(at, slice) else part

    def decode(self, encoding: str = "utf-8", _: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


_unpack = fetcher.PartitionRecords._unpack_records


def _unpacked(partition: Any) -> Iterator[Any]:
    """Records of a fetch, each once: the end of an earlier batch would put `next_fetch_offset` back there."""
    try:
        yield from _unpack(partition)
    except UnicodeDecodeError:
        reached = partition.next_fetch_offset
        partition._records = _Again(partition._records.data)
        yield from (record for record in _unpack(partition) if record.offset >= reached)


def expect_any_in_kafka_client() -> None:
    """Have every consumer of aiokafka in this process read them. May be called twice."""
    fetcher.MemoryRecords = _Kept
    fetcher.PartitionRecords._unpack_records = _unpacked
