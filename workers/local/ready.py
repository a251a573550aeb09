"""Whether workers are ready: their own /readyz pages."""

import time
import urllib.error
import urllib.request

from workers.errors import RecallError
from workers.local.process import tail
from workers.local.state import WorkerState
from workers.local.workers import WorkerProcesses

READING = "reading"  # says a worker that is not ready because it reads what an emptied Redis has lost


open_page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Of a worker: a proxy of the environment would know nothing of this machine."""


def health(worker: WorkerState) -> str:
    """`ready`, `starting` with what is missing, or `down`."""
    try:
        with open_page(f"http://{worker.web_host}:{worker.web_port}/readyz", timeout=1) as page:
            return "ready" if page.status == 200 else "starting"
    except urllib.error.HTTPError as error:
        return f"starting: {error.read().decode(errors='replace').strip()}"
    except OSError:
        return "down"


def wait_ready(workers: WorkerProcesses, within_s: float = 60.0) -> None:
    """Wait until every worker is ready, and look after them meanwhile.

    Raises what supervising raises, and RecallError with the end of the log of one that is too slow; but for one that
    reads what an emptied Redis has lost: it works, and may do so for hours.
    """
    end = time.monotonic() + within_s
    for position in range(len(workers.states)):
        while (found := health(state := workers.states[position])) != "ready":
            workers.supervise()
            if time.monotonic() > end:
                if f": {READING} " in found:
                    break
                raise RecallError(
                    f"worker {state.kind} is {found}; the end of its log:\n{tail(workers.log(state.kind))}"
                )
            time.sleep(0.05)
