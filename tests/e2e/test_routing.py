"""Where answers go and which headers they carry, whatever the request's headers are."""

from typing import Any

import pytest

from tests.e2e.conftest import Live
from tests.e2e.test_live import new, request
from workers.agents import MAX_COPIED_HEADERS_BYTES
from workers.client import RecallClient
from workers.publisher import header_bytes

TRACEPARENT = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

Headers = list[tuple[str, bytes | None]]


async def answered(client: RecallClient, headers: Headers) -> tuple[Any, Headers]:
    """The answer's record, and its headers but for the id, which is the request's."""
    asked: Any = headers  # aiokafka writes a null as null
    wanted = request(new("u"))
    record = await client.ask_record(wanted, asked)
    ids = [value for name, value in record.headers if name == "request_id"]
    assert ids == [wanted.request_id.encode()]
    return record, [header for header in record.headers if header[0] != "request_id"]


async def test_headers_come_back_in_their_order(client: RecallClient) -> None:
    headers: Headers = [
        TRACEPARENT,
        ("tracestate", b"a=1"),
        ("ü", "🎬".encode()),
        ("null", None),
        ("tracestate", b"b=2"),
    ]
    assert (await answered(client, headers))[1] == headers


async def test_an_id_among_the_headers_is_not_believed(client: RecallClient) -> None:
    assert (await answered(client, [("request_id", b"another")]))[1] == []


@pytest.mark.parametrize(
    ("sizes_bytes", "kept"),
    [
        ([MAX_COPIED_HEADERS_BYTES], [0]),
        ([MAX_COPIED_HEADERS_BYTES + 1], []),
        ([5000, 100, 90_000, 200], [1, 3]),
        ([3000, 1000, 97, 96], [0, 1, 3]),
    ],
)
async def test_four_kib_of_headers_are_copied(client: RecallClient, sizes_bytes: list[int], kept: list[int]) -> None:
    own_bytes = header_bytes("0", None)
    headers: Headers = [(str(n), b"x" * (size_bytes - own_bytes)) for n, size_bytes in enumerate(sizes_bytes)]
    assert (await answered(client, headers))[1] == [headers[n] for n in kept]


async def test_one_that_is_too_large_does_not_keep_the_trace_out(client: RecallClient) -> None:
    assert (await answered(client, [("baggage", b"x" * 100_000), TRACEPARENT]))[1] == [TRACEPARENT]


@pytest.mark.parametrize("partition", range(4))
async def test_the_answer_goes_to_the_partition_that_is_named(live: Live, client: RecallClient, partition: int) -> None:
    headers: Headers = [("baggage", b"x" * 100_000), ("reply_partition", str(partition).encode())]
    assert (await answered(client, headers))[0].partition == partition


@pytest.mark.parametrize(
    "value", [None, b"", b"4", b"-1", b"1.0", b" 1", b"one", b"\xff", "１".encode(), b"9" * 10, b"9" * 5000], ids=repr
)
async def test_what_names_no_partition_goes_to_the_requests_own(client: RecallClient, value: bytes | None) -> None:
    wanted = request("the same user")  # its key: every answer to it goes to one partition
    own = (await client.ask_record(wanted)).partition
    asked: Any = [("reply_partition", value)]
    assert (await client.ask_record(request("the same user"), asked)).partition == own
