"""TensorFlow Serving's protocols by servers of ours: no registry has it. gRPC is spoken by its official stubs."""

import os
import socket
from pathlib import Path

from models.bundle import Bundle
from tests.backends.environments import environment
from tests.backends.ours import OurServer
from tests.backends.served import fit_towers
from tests.backends.server import Server
from workers.local.process import free_ports

SCRIPT = Path(__file__).with_name("tf_serving_server.py")


class TfServing:
    """See Backend."""

    name = "tf_serving"
    suites = ("tests/contract/test_towers.py", "tests/e2e/test_remote_towers.py")
    ways = ("tf_serving-grpc", "tf_serving-rest")
    versions = "servers of ours; gRPC on the stubs of tensorflow-protobuf 2.11.0"

    def __init__(self) -> None:
        self.bundle: Bundle | None = None
        (self._grpc,) = free_ports(1)
        self._server: Server | None = None
        self._rest: OurServer | None = None

    def install(self) -> Path:
        """See Backend."""
        return environment(self.name)

    def start(self, folder: Path) -> None:
        """See Backend."""
        prefix = self.install()
        self.bundle = fit_towers(folder / "bundles")
        self._rest = OurServer(self.bundle)
        self._rest.start()
        self._server = Server(self.name, folder / "tf_serving")
        paths = [f"{path.stem}={path}" for path in (self.bundle.user_tower, self.bundle.item_tower)]
        argv = [str(prefix / "bin" / "python"), str(SCRIPT), str(self._grpc), *paths]
        self._server.start(argv, self._listens, {k: v for k, v in os.environ.items() if k != "PYTHONPATH"})

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._grpc), timeout=1).close()
        except OSError:
            return False
        return True

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        assert self._rest is not None
        rest = f"http://127.0.0.1:{self._rest.rest_port}"
        return {
            "tower": "tf_serving",
            "tower_url": f"grpc://127.0.0.1:{self._grpc}" if way == "tf_serving-grpc" else rest,
        }

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()
        if self._rest is not None:
            self._rest.stop()
