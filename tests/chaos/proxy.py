"""What stands between the workers and Milvus: hands bytes on, at once or late."""

import asyncio
from contextlib import suppress

CHUNK_BYTES = 65_536


class Proxy:
    """A TCP proxy on loopback, in this loop: from `port` to `target`. What comes later than `delay_s` was set waits.

    While `cuts` is set, a connection ends when the first byte of an answer comes.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.delay_s = 0.0
        self.cuts = False
        self.taken = 0  # bytes that came from clients, handed on or not yet
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            with suppress(OSError, asyncio.CancelledError):  # asyncio would report it
                await self._between(reader, writer)
        finally:
            writer.transport.abort()

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it: then the other is cut too."""
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [
            asyncio.create_task(self._hand_on(reader, behind_writer)),
            asyncio.create_task(self._hand_on(behind_reader, writer, late=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            behind_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool = True) -> None:
        """One way of a connection: each piece by the delay later than it came, the next one read meanwhile."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def write() -> None:
            with suppress(OSError):  # the other way ends the connection
                while True:
                    due_s, piece = await pieces.get()
                    await asyncio.sleep(max(0.0, due_s - loop.time()))
                    writer.write(piece)
                    await writer.drain()

        writing = asyncio.create_task(write())
        try:
            while (piece := await reader.read(CHUNK_BYTES)) and (late or not self.cuts):
                self.taken += len(piece) if late else 0
                pieces.put_nowait((loop.time() + (self.delay_s if late else 0.0), piece))
        finally:
            writing.cancel()
