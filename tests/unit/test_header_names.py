"""A fetch of several record batches, in one of which the name of a header is no UTF-8: every record is read once."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from workers import header_names

SIZE = 10  # records of a batch
BATCHES = 4
MARK, UNREADABLE = b"mark", b"\xff\xfe\xff\xfe"
CRC = 17  # its place in a batch


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "MemoryRecords", fetcher.MemoryRecords)
    monkeypatch.setattr(PartitionRecords, "_unpack_records", PartitionRecords._unpack_records)
    header_names.expect_any_in_kafka_client()


def fetched(misnamed: set[int]) -> Any:
    data = b"".join(batch(n * SIZE, misnamed) for n in range(BATCHES))
    records = fetcher.MemoryRecords(data)
    return PartitionRecords(TopicPartition("t", 0), records, [], 0, None, None, True, READ_UNCOMMITTED)


def batch(first: int, misnamed: set[int]) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 100_000)
    for n in range(SIZE):
        name = MARK if first + n in misnamed else b"name"
        builder.append(n, 1, b"k", b"v", headers=[(name.decode(), b"value")])
    data = bytearray(builder.build().replace(MARK, UNREADABLE))
    struct.pack_into(">q", data, 0, first)
    struct.pack_into(">I", data, CRC, calc_crc32c(bytes(data[CRC + 4 :])))
    return bytes(data)


def offsets(records: Iterator[Any]) -> list[int]:
    return [record.offset for record in records]


@pytest.mark.parametrize("misnamed", [{0}, {5}, {10}, {15}, {19}, {25, 26, 31}, {39}])
def test_every_record_is_read_once(misnamed: set[int]) -> None:
    assert offsets(fetched(misnamed)) == list(range(SIZE * BATCHES))


def test_who_pauses_before_the_record_goes_on_with_it() -> None:
    partition = fetched({15})
    assert [next(partition).offset for _ in range(15)] == list(range(15))
    assert partition.next_fetch_offset == 15
    assert next(partition).offset == 15
    assert partition.next_fetch_offset == 16
    assert offsets(partition) == list(range(16, SIZE * BATCHES))
    assert partition.next_fetch_offset == SIZE * BATCHES


def test_names_are_told_with_what_does_not_fit_written_out() -> None:
    names = [record.headers[0][0] for record in fetched({25})]
    assert names[24:27] == ["name", r"\xff\xfe\xff\xfe", "name"]
