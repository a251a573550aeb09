"""Our own test server: the bundle's ONNX towers behind every protocol, in a thread of the tests' process."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from models.bundle import Bundle
from tests.backends.ours_rest import application
from tests.backends.ours_rpc import add_services
from tests.backends.served import Models, fit_towers
from workers.local.process import free_ports

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
WITHIN_S = 30.0


class OurServer:
    """REST and gRPC at two ports of loopback; may be stopped and started again."""

    def __init__(self, bundle: Bundle) -> None:
        self.rest_port, self.grpc_port = free_ports(2)
        self._models = Models(bundle)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._rpc: Any = None

    def start(self) -> None:
        """Listen."""
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="our model server", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), loop).result(WITHIN_S)
        self._rpc = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
        add_services(self._rpc, self._models)
        self._rpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self._rpc.start()

    async def _listen(self) -> None:
        self._runner = web.AppRunner(application(self._models), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.rest_port, reuse_address=True).start()

    @staticmethod
    async def _end(runner: web.AppRunner) -> None:
        await runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def stop(self) -> None:
        """Listen no more, and cut every connection."""
        if self._loop is None or self._thread is None or self._runner is None:
            return
        self._rpc.stop(None).wait(WITHIN_S)
        asyncio.run_coroutine_threadsafe(self._end(self._runner), self._loop).result(WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN_S)
        self._loop.close()
        self._loop = None


class Ours:
    """Every adapter by every protocol, and ONNX in the process itself."""

    name = "ours"
    suites = ("tests/contract/test_towers.py", "tests/e2e/test_remote_towers.py")
    ways = (
        "onnx",
        "kserve-json",
        "kserve-binary",
        "kserve-grpc",
        "torchserve-rest",
        "torchserve-grpc",
        "tf_serving-rest",
        "tf_serving-grpc",
    )
    versions = "our test server"

    def __init__(self) -> None:
        self.bundle: Bundle | None = None
        self._server: OurServer | None = None

    def install(self) -> Path:
        """See Backend."""
        return Path(sys.prefix)

    def start(self, folder: Path) -> None:
        """See Backend."""
        self.bundle = fit_towers(folder / "bundles")
        self._server = OurServer(self.bundle)
        self._server.start()

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        assert self._server is not None
        tower, _, protocol = way.partition("-")
        if tower == "onnx":
            return {"tower": tower}
        rpc = protocol == "grpc"
        url = f"grpc://127.0.0.1:{self._server.grpc_port}" if rpc else f"http://127.0.0.1:{self._server.rest_port}"
        return {"tower": tower, "tower_url": url, "tower_binary": protocol == "binary"}

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()
