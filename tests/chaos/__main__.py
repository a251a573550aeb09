"""`python -m tests.chaos`: break the system while it works, then hold everything it stored and said against the model.

One JSON object a run on standard output, progress on standard error. Exit code 0 when every promise held (and every
mutant was caught), else 1.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass

from models.bundle import Bundle
from models.datasets import Dataset, load
from tests.chaos.faults import FAULTS, SHORT, grouped
from tests.chaos.mutant_runs import MUTANTS, caught
from tests.chaos.rig import DATASET, Rig, fit_bundle, say
from tests.chaos.run import Report, keep_logs, own_stack, run
from workers.local.stack import LocalStack

WORKLOADS = ("generated", "movielens-100k", "movielens-1m")
UNREACHABLE_S = 60.0
SHORT_UNREACHABLE_S = 15.0  # still longer than a session


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
    parser.add_argument("--workload", choices=WORKLOADS, default="generated", help="what the users do")
    parser.add_argument("--in-time", action="store_true", help="a recovery that takes too long breaks a promise")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="N runs, each with the next seed, until one is red"
    )
    chosen = parser.parse_args()
    if not (chosen.short or chosen.kills or chosen.faults or chosen.mutants is not None):
        parser.error("one of --short, --kills N, --faults NAME..., --mutants")
    return chosen


def main() -> int:
    """Run what was asked for."""
    asked = arguments()
    seed = random.SystemRandom().randint(1, 10**6) if asked.seed is None else asked.seed
    data = DATASET if asked.workload == "generated" else load(asked.workload, say)
    for number in range(asked.repeat):
        say(f"run {number + 1} of {asked.repeat}, seed {seed + number}")
        with redirect_stdout(sys.stderr), own_stack() as stack:
            bundle = fit_bundle(stack.data_dir / "bundles", data)
            report, well = asyncio.run(everything(asked, seed + number, Ground(stack, bundle, data)))
            if not well:
                keep_logs(stack)
        print(json.dumps(report.as_dict()), flush=True)
        say("every promise held" if well else "a promise was broken, see above")
        if not well:
            return 1
    return 0


@dataclass(frozen=True)
class Ground:
    """What a run stands on: servers, a bundle, and the data that it was fitted to."""

    stack: LocalStack
    bundle: Bundle
    data: Dataset


async def everything(asked: argparse.Namespace, seed: int, ground: Ground) -> tuple[Report, bool]:
    """Faults, then mutants; the report, and whether all is well."""
    groups: list[tuple[str, ...]] = [(name,) for name in asked.faults]
    if asked.short:
        groups += grouped(SHORT, random.Random(seed))
    report, well = Report(seed), True
    if groups or asked.kills:
        unreachable_s = SHORT_UNREACHABLE_S if asked.short else UNREACHABLE_S
        own = {"unreachable_s": unreachable_s, "data": ground.data, "in_time": asked.in_time}
        report, found = await run(Rig(ground.stack, ground.bundle, seed, **own), groups, asked.kills)
        well = not found
    if asked.mutants is not None:
        names = asked.mutants or list(MUTANTS)
        report.mutants_caught = 0
        for name in names:
            report.mutants_caught += await caught(ground.stack, ground.bundle, name, seed, report)
        well = well and report.mutants_caught == len(names)
    return report, well


if __name__ == "__main__":
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    sys.exit(main())
