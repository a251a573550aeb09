"""The proxy hands on what it gets, late when it is told to, and ends a connection when either side does."""

import asyncio
import time
from contextlib import suppress

from tests.chaos.proxy import Proxy
from workers.local.process import free_ports


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
    writer.close()


async def test_what_goes_in_comes_out_and_late_is_late() -> None:
    port, target = free_ports(2)
    server = await asyncio.start_server(echo, "127.0.0.1", target)
    proxy = Proxy(port, target)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = [b"%06d" % n for n in range(2000)]
    began = time.monotonic()
    for n, piece in enumerate(sent):
        proxy.delay_s = 0.2 if n == 1000 else proxy.delay_s
        writer.write(piece)
        await asyncio.sleep(0)
    assert await reader.readexactly(6 * len(sent)) == b"".join(sent)
    assert time.monotonic() - began >= 0.2
    server.close()
    await proxy.stop()
    assert await reader.read() == b""
    writer.close()


async def test_nobody_behind_it_is_nobody() -> None:
    port, target = free_ports(2)
    proxy = Proxy(port, target)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    await proxy.stop()
