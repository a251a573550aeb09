"""The Milvus server of the `milvus` wheel, started directly: the wheel's wrapper hides a dead child and moves ports."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workers.errors import ConfigurationError, ExtraMissing, RecallError
from workers.local.service import Say, Service
from workers.signals import held_back

VERSION = "2.3.5"
# Visible sooner, growing segments exact and cheaper, restarts quicker; see docs/storage.md.
TUNING = {
    "proxy.timeTickInterval": 50,
    "queryNode.segcore.chunkRows": 8192,
    "queryNode.segcore.interimIndex.enableIndex": False,
    "dataCoord.segment.maxSize": 512,
    "dataCoord.segment.sealProportion": 0.03,
    "common.gracefulStopTimeout": 3,
}
ETCD = """\
listen-client-urls: http://127.0.0.1:{clients}
advertise-client-urls: http://127.0.0.1:{clients}
listen-peer-urls: http://127.0.0.1:{peers}
initial-advertise-peer-urls: http://127.0.0.1:{peers}
initial-cluster: default=http://127.0.0.1:{peers}
"""


def server_runs_here() -> bool:
    """Whether this machine can run the server's package, and has it."""
    fits = sys.platform == "linux" and platform.machine() == "x86_64"
    return fits and find_spec("milvus") is not None


class Milvus(Service):
    """The standalone server. Ports: clients, metrics, etcd's peers, then those of its configuration."""

    name = "milvus"
    port_count = 14
    ready_within_s = 120.0
    patience_s = 20.0

    @property
    def address(self) -> str:
        """URI."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def version(self) -> str:
        """Version of Milvus."""
        return VERSION

    @property
    def _binaries(self) -> Path:
        return self.cache / f"milvus-{VERSION}"

    def prepare(self, say: Say) -> None:
        """Unpack the wheel's binaries (250 MB) into the cache, once."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            here = f"{sys.platform} {platform.machine()}"
            line = f"the Milvus server's package runs on Linux x86-64 only, this is {here}"
            raise ConfigurationError(f'{line}; Milvus Lite runs here: local_milvus = "lite"')
        if (self._binaries / "complete").exists():
            return
        milvus = _wheel()
        say(f"unpacking the Milvus {VERSION} server (250 MB, Apache License 2.0)")
        temporary = self.cache / f"milvus-{VERSION}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        # The wheel's unpacker prints and logs; it runs as a child so that our output stays ours.
        code = f"import {milvus.__name__} as m; m._initialize_data_files({str(temporary)!r})"
        unpacked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if unpacked.returncode != 0:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = unpacked.stderr.strip().rpartition("\n")[2]
            raise RecallError(f"the Milvus server cannot be unpacked into {self.cache}: {reason}")
        (temporary / "complete").touch()
        shutil.rmtree(self._binaries, ignore_errors=True)
        temporary.rename(self._binaries)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Write Milvus' and etcd's configuration."""
        configuration = _wheel().MilvusServerConfig(data_dir=str(self.data))
        names = sorted(name for name in configuration.configurable_items if name.endswith("_port"))
        names.remove("proxy_port")
        client_port, metrics_port, peer_port, *rest = self.ports
        ports = dict(zip(names, rest, strict=False)) | {"proxy_port": client_port}
        for name, port in ports.items():
            configuration.configurable_items[name][1] = port
        for key, value in (TUNING | {"common.session.ttl": self.session_s}).items():
            configuration.set(key, value)
        configuration.resolve_storage()
        configuration.write_config()
        etcd = self.data / "configs" / "etcd.yaml"
        etcd.write_text(ETCD.format(clients=ports["etcd_port"], peers=peer_port))
        binaries = self._binaries / "bin"
        env = os.environ | {
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(metrics_port),
            "MILVUS_RUN_DIR": str(self.data / "run"),
            "ETCD_CONFIG_PATH": str(etcd),
            "LD_LIBRARY_PATH": str(binaries),
        }
        return [str(binaries / "milvus"), "run", "standalone"], env

    def probe(self) -> bool:
        """Whether it calls itself healthy."""
        from workers.local.probes import milvus_answers

        return milvus_answers(f"127.0.0.1:{self.ports[0]}")


def _wheel() -> Any:
    try:
        with held_back():  # it makes a server object, which complains when it is not finished
            import milvus
    except ImportError as error:
        raise ExtraMissing("the local stack", "local") from error
    return milvus
