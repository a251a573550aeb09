"""MLServer, from its package, with the bundle's ONNX towers behind a runtime of our own."""

import json
import os
import shutil
from pathlib import Path

from models.bundle import Bundle
from models.signature import Arrays
from models.verify import Side
from tests.backends.environments import environment
from tests.backends.served import fit_towers
from tests.backends.server import Server
from workers.local.process import free_ports
from workers.towers.bundled import arrays
from workers.towers.kserve import DATATYPES

RUNTIME = Path(__file__).with_name("mlserver_model.py")


class MLServer:
    """See Backend."""

    name = "mlserver"
    suites = ("tests/contract/test_towers.py", "tests/e2e/test_remote_towers.py")
    ways = ("kserve-json", "kserve-grpc")
    versions = "MLServer 1.7.1"

    def __init__(self) -> None:
        self.bundle: Bundle | None = None
        self._rest, self._grpc, self._metrics = free_ports(3)
        self._server: Server | None = None

    def install(self) -> Path:
        """See Backend."""
        return environment(self.name)

    def start(self, folder: Path) -> None:
        """See Backend."""
        prefix = self.install()
        self.bundle = fit_towers(folder / "bundles")
        repository = folder / "repository"
        sides: tuple[Side, ...] = ("user", "item")
        for side in sides:
            _write_model(repository, self.bundle, side)
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": self._rest,
            "grpc_port": self._grpc,
            "metrics_port": self._metrics,
            "parallel_workers": 0,
        }
        (repository / "settings.json").write_text(json.dumps(settings))
        self._server = Server(self.name, folder / "mlserver")
        argv = [str(prefix / "bin" / "mlserver"), "start", str(repository)]
        runtime = folder / "runtime"
        runtime.mkdir()
        shutil.copy(RUNTIME, runtime)
        env = os.environ | {"PYTHONPATH": str(runtime)}
        self._server.start(argv, f"http://127.0.0.1:{self._rest}/v2/health/ready", env)

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        url = f"grpc://127.0.0.1:{self._grpc}" if way == "kserve-grpc" else f"http://127.0.0.1:{self._rest}"
        return {"tower": "kserve", "tower_url": url}

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()


def _write_model(repository: Path, bundle: Bundle, side: Side) -> None:
    folder = repository / f"{side}_tower"
    folder.mkdir(parents=True)
    shutil.copy(bundle.user_tower if side == "user" else bundle.item_tower, folder / "tower.onnx")
    inputs, outputs = arrays(bundle, side)
    model = {
        "name": folder.name,
        "implementation": f"{RUNTIME.stem}.OnnxTower",
        "parameters": {"uri": "./tower.onnx", "version": bundle.version},
        "inputs": _tensors(inputs),
        "outputs": _tensors(outputs),
    }
    (folder / "model-settings.json").write_text(json.dumps(model))


def _tensors(declared: Arrays) -> list[dict[str, object]]:
    return [
        {"name": name, "datatype": DATATYPES[array.type], "shape": [-1, *array.shape]}
        for name, array in declared.items()
    ]
