"""`python -m tests.backends`: adapters against real servers, from packages, each in an environment of its own.

Every suite of every backend runs, and nothing is skipped: what a server cannot do is a failure, and stands in the
matrix of cases and ways. `--json` prints one object on standard output, progress goes to standard error. Exit code 0
when every case passed. `--cost` prints what a request to each tower costs beside ONNX Runtime in the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.backends import cost, matrix
from tests.backends.registry import BACKENDS, REAL, backend
from workers.errors import RecallError

ROOT = Path(__file__).parents[2]
BUDGET_S = 900.0  # of all together


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.backends", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BACKENDS)}; else all real ones")
    parser.add_argument("--cost", action="store_true", help="measure what requests cost, in place of the suites")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = parser.parse_args()
    for name in set(chosen.names) - set(BACKENDS):
        parser.error(f"{name} is none of {', '.join(BACKENDS)}")
    return chosen


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run what was asked for."""
    asked = arguments()
    names = asked.names or list(REAL)
    if asked.cost:
        figures = cost.measure(names, say)
        print(json.dumps(figures) if asked.json else cost.table(figures))
        return 0
    end_s = time.monotonic() + BUDGET_S
    with ThreadPoolExecutor(1) as installing:  # the next ones while suites run
        environments = {name: installing.submit(backend(name).install) for name in names}
        results = [run(name, environments[name], end_s) for name in names]
    if asked.json:
        print(json.dumps({"backends": results}))
    else:
        for result in results:
            print(matrix.table(result), end="\n\n")
    well = all(result["well"] for result in results)
    say("every case passed" if well else "cases failed, see above")
    return 0 if well else 1


def run(name: str, environment: Future[Path], end_s: float) -> dict[str, Any]:
    """One backend's suites in a process of their own, once it is installed; what came of each case."""
    found = backend(name)
    say(f"{name}: {found.versions}")
    with suppress(RecallError, TimeoutError):  # the suites say so
        environment.result(max(1.0, end_s - time.monotonic()))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="recall-backends-") as folder:
        report = Path(folder) / "report.xml"
        options = ["--backend", name, f"--junitxml={report}", "--basetemp", f"{folder}/made", "-q", "--tb=short"]
        argv = [sys.executable, "-m", "pytest", *found.suites, *options]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=sys.stderr, stderr=sys.stderr)
        try:
            code = child.wait(max(1.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.terminate()  # pytest ends its servers
            code = child.wait(60)
            say(f"{name}: ended, all together may take {BUDGET_S:.0f} s")
        cases = matrix.read(report) if report.exists() else {}
    figures = {"name": name, "versions": found.versions, "ways": list(found.ways), "cases": cases}
    return figures | {"seconds": round(time.monotonic() - began_s, 1), "well": code == 0 and matrix.all_ok(cases)}


if __name__ == "__main__":
    sys.exit(main())
