"""An environment for each server, made once of its locked requirements and kept in the cache."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from workers.errors import ConfigurationError, RecallError
from workers.local.stack import cache_dir

LOCKS = Path(__file__).with_name("locks")
HASH_DIGITS = 12
DONE = "complete"


def environment(name: str, *locks: Path) -> Path:
    """The folder of an environment with what the lock files name, by default `locks/NAME.txt`: installed at first use.

    Raises ConfigurationError without uv, RecallError when it cannot be installed.
    """
    files = locks or (LOCKS / f"{name}.txt",)
    content = b"".join(path.read_bytes() for path in files) + sys.version.encode()
    folder = cache_dir() / "backends" / f"{name}-{hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}"
    if not (folder / DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False)
        command = [_uv(), "--quiet", "pip", "sync", "--python", str(folder / "bin" / "python"), "--require-hashes"]
        done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RecallError(f"the environment of {name} cannot be installed: {' '.join(done.stderr.split())}")
        (folder / DONE).touch()
    return folder


def site_packages(folder: Path) -> Path:
    """Where an environment's packages are."""
    (found,) = (folder / "lib").glob("python3.*/site-packages")
    return found


def _uv() -> str:
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        raise ConfigurationError("uv is not installed: make setup")
    return found
