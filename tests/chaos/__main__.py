"""`python -m tests.chaos`: break the system while it works, then hold everything it stored and said against the model.

One JSON object on standard output, progress on standard error. Exit code 0 when every promise held (and every mutant
was caught), else 1.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
from contextlib import redirect_stdout

from models.bundle import Bundle
from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.mutant_runs import MUTANTS, caught
from tests.chaos.rig import Rig, fit_bundle, say
from tests.chaos.run import Report, own_stack, run
from workers.local.stack import LocalStack


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="every fault once")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill -9 of workers under load, N times")
    parser.add_argument("--faults", nargs="+", choices=sorted(FAULTS), default=[], help="these faults, in this order")
    parser.add_argument(
        "--mutants",
        nargs="*",
        choices=list(MUTANTS),
        default=None,
        help="workers with one promise broken: these, or all",
    )
    parser.add_argument("--in-time", action="store_true", help="a recovery that takes too long breaks a promise")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    if not (chosen.short or chosen.kills or chosen.faults or chosen.mutants is not None):
        parser.error("one of --short, --kills N, --faults NAME..., --mutants")
    return chosen


def main() -> int:
    """Run what was asked for."""
    asked = arguments()
    seed = random.SystemRandom().randint(1, 10**6) if asked.seed is None else asked.seed
    with redirect_stdout(sys.stderr), own_stack() as stack:
        bundle = fit_bundle(stack.data_dir / "bundles")
        report, well = asyncio.run(everything(asked, seed, stack, bundle))
    print(json.dumps(report.as_dict()))
    say("every promise held" if well else "a promise was broken, see above")
    return 0 if well else 1


async def everything(asked: argparse.Namespace, seed: int, stack: LocalStack, bundle: Bundle) -> tuple[Report, bool]:
    """Faults, then mutants; the report, and whether all is well."""
    faults = list(asked.faults)
    if asked.short:
        faults += random.Random(seed).sample(SHORT, len(SHORT))
    report, well = Report(seed), True
    if faults or asked.kills:
        report, found = await run(Rig(stack, bundle, seed, in_time=asked.in_time), faults, asked.kills)
        well = not found
    if asked.mutants is not None:
        names = asked.mutants or list(MUTANTS)
        report.mutants_caught = 0
        for name in names:
            report.mutants_caught += await caught(stack, bundle, name, seed, report)
        well = well and report.mutants_caught == len(names)
    return report, well


if __name__ == "__main__":
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    sys.exit(main())
