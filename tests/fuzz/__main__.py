"""`python -m tests.fuzz filters|codecs|merge|stream --inputs 1000000 --seed 1`: too long for every test run.

One JSON object on standard output, progress on standard error. Exit code 0 when nothing was found, else 1.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
from contextlib import redirect_stdout

from tests.chaos.rig import fit_bundle
from tests.chaos.run import own_stack
from tests.fuzz import codecs, filters, merges, stream
from tests.fuzz.stream import FuzzRig

IN_PROCESS = {"filters": filters.run, "codecs": codecs.run, "merge": merges.run}


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", choices=(*IN_PROCESS, "stream"))
    parser.add_argument("--inputs", "--events", type=int, default=1_000_000, help="filters, messages or events")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of the stream: feed no longer than that")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for."""
    asked = arguments()
    seed = random.SystemRandom().randint(1, 10**6) if asked.seed is None else asked.seed
    if asked.what in IN_PROCESS:
        print(json.dumps(IN_PROCESS[asked.what](seed, asked.inputs)))  # raises with what shows a difference
        return 0
    with redirect_stdout(sys.stderr), own_stack() as stack:
        bundle = fit_bundle(stack.data_dir / "bundles")
        report = asyncio.run(stream.run(FuzzRig(stack, bundle, seed), asked.inputs, asked.minutes * 60))
    print(json.dumps(report.as_dict()))
    return 0 if report.clean else 1


if __name__ == "__main__":
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    sys.exit(main())
