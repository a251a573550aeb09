"""Triton, the binary of the wheel nvidia-pytriton, with the bundle's ONNX towers behind its Python backend."""

import os
import shutil
import sysconfig
from pathlib import Path

from models.bundle import Bundle
from models.datasets.generated import generate
from models.signature import Arrays
from models.verify import Side
from tests.backends.environments import environment, site_packages
from tests.backends.served import fit_towers
from tests.backends.server import Server
from workers.local.process import free_ports
from workers.towers.bundled import arrays

MODEL = Path(__file__).with_name("triton_model.py")
VERSION = "1"  # Triton's versions are numbers
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


class Triton:
    """See Backend."""

    name = "triton"
    suites = ("tests/contract/test_towers.py", "tests/e2e/test_remote_towers.py", "tests/backends/demo_suite.py")
    ways = ("kserve-json", "kserve-binary", "kserve-grpc")
    versions = "Triton 2.51 (nvidia-pytriton 0.7.0)"

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
        packages = site_packages(prefix)
        self.bundle = fit_towers(folder / "bundles", generate())  # the demo's data set
        backends, repository = folder / "backends", folder / "repository"
        _python_backend(packages, backends / "python")
        sides: tuple[Side, ...] = ("user", "item")
        for side in sides:
            _write_model(repository, self.bundle, side)
        self._server = Server(self.name, folder / "triton")
        argv = [
            str(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            f"--http-port={self._rest}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._grpc}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self._metrics}",
        ]
        libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        path = f"{prefix / 'bin'}:{os.environ['PATH']}"  # by which the Python backend finds its packages
        env = os.environ | {"LD_LIBRARY_PATH": libraries, "PATH": path}
        self._server.start(argv, f"http://127.0.0.1:{self._rest}/v2/health/ready", env)

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        url = f"grpc://127.0.0.1:{self._grpc}" if way == "kserve-grpc" else f"http://127.0.0.1:{self._rest}"
        return {"tower": "kserve", "tower_url": url, "tower_binary": way == "kserve-binary"}

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()


def _python_backend(packages: Path, folder: Path) -> None:
    """The backend with the stub of this Python version beside it, as Triton wants it."""
    server = packages / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    shutil.copytree(server / "backends" / "python", folder)
    shutil.copy(stub, folder)


def _write_model(repository: Path, bundle: Bundle, side: Side) -> None:
    name = f"{side}_tower"
    folder = repository / name / VERSION
    folder.mkdir(parents=True)
    shutil.copy(MODEL, folder / "model.py")
    shutil.copy(bundle.user_tower if side == "user" else bundle.item_tower, folder / "tower.onnx")
    inputs, outputs = arrays(bundle, side)
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 256",
        "dynamic_batching { }",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        *_tensors("input", inputs),
        *_tensors("output", outputs),
    ]
    (folder.parent / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _tensors(kind: str, declared: Arrays) -> list[str]:
    """One value a row is a column for Triton, which its model sees without the second axis."""
    return [
        f'{kind} {{ name: "{name}" data_type: {TYPES[array.type]} dims: {list(array.shape) or [1]}'
        f"{'' if array.shape else ' reshape { shape: [] }'} }}"
        for name, array in declared.items()
    ]
