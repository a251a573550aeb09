"""Child processes that die with their parent, and what belongs to them: logs, ports, ends."""

import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from workers.errors import RecallError

PR_SET_PDEATHSIG = 1
CLUSTER_BUS = 10_000  # a Redis Cluster node also listens at its port + 10000
HIGHEST_PORT = 65_000 - CLUSTER_BUS
LOWEST_PORT = 10_000
MAX_CLAIMS = 256  # of one process, the last ones: whoever was given the others listens by now


def spawn(argv: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a child whose output goes to `log`, in a session of its own (Ctrl-C reaches only the parent).

    On Linux the kernel kills it when this process ends, however it ends.
    """
    try:
        cwd.mkdir(parents=True, exist_ok=True)
        with _appended(log) as output:
            return subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(os.environ if env is None else env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # a supervisor starts its children from its only thread
            )
    except OSError as error:
        raise RecallError(f"{argv[0]} cannot be started: {error.strerror}: {error.filename}") from error


def _appended(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        raise RecallError(f"{log} cannot be written: {error.strerror}") from error


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: "subprocess.Popen[bytes]", patience_s: float) -> int:
    """SIGTERM, then SIGKILL when it takes longer than `patience_s`; returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


_claims: deque[socket.socket] = deque()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 16_384))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens at now, all different.

    None that the kernel gives to connections where there are others: it might, before a server has come to listen. Nor
    one that this process or another one of ours was given a while ago: its server may not have come to listen yet.
    """
    end = _lowest_given() - CLUSTER_BUS
    chance = random.SystemRandom()
    sockets: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            candidate = socket.socket()
            sockets.append(candidate)
            wanted = chance.randrange(LOWEST_PORT, end) if end >= 2 * LOWEST_PORT else 0
            try:
                candidate.bind(("127.0.0.1", wanted))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            port = candidate.getsockname()[1]
            if port <= HIGHEST_PORT and _claim(port):
                ports.append(port)
    finally:
        for held in sockets:
            held.close()
    return ports


def _claim(port: int) -> bool:
    """Whether no process of ours has claimed it. A claim is a name without a file, and goes with its process."""
    if sys.platform != "linux":  # which alone has such names
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0recall-worker port {port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    while len(_claims) > MAX_CLAIMS:
        _claims.popleft().close()
    return True


def _lowest_given() -> int:
    """The lowest port that the kernel gives to a connection."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 0


def is_free(port: int) -> bool:
    """Whether a server could listen at this port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def alive(pid: int, started: float) -> bool:
    """Whether the process that had this pid when it was noted (kernel start time) still runs."""
    return start_time(pid) == started


def start_time(pid: int) -> float:
    """When a process started, in clock ticks since boot; 0 when there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return 0.0 if fields[0] in "ZX" else float(fields[19])
