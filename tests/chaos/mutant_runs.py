"""Each mutant with the traffic and the fault that expose it: the run must turn red, and for the right reason."""

from collections import Counter
from dataclasses import dataclass, field

from models.bundle import Bundle
from tests.chaos.difference import Kind
from tests.chaos.rig import Rig, say
from tests.chaos.run import Report, run
from tests.chaos.workload import Rates
from workers.local.stack import LocalStack

ROUNDS = 3  # some show only when two workers meet


@dataclass(frozen=True)
class Exposure:
    """What brings a mutant to light, and what is seen then."""

    faults: tuple[str, ...]
    shows: Kind
    rates: Rates = field(default_factory=Rates)


MUTANTS = {
    "event_ids": Exposure(("quiet",), "double_effects"),
    "floor": Exposure(("quiet",), "double_effects"),
    "write_token": Exposure(("quiet",), "lost", Rates(burst=1.0)),
    "item_fence": Exposure(("freeze_items",), "lost"),
    "ordered_commit": Exposure(("milvus_slow_and_kill",), "unanswered"),
    "acknowledgement": Exposure(("kill_recall",), "unanswered"),
    "deadline": Exposure(("milvus_slow",), "wrong_state"),
    "markers": Exposure(("redis_emptied",), "wrong_state"),
    "durability": Exposure(("redis_tail_lost",), "lost"),
}


async def caught(stack: LocalStack, bundle: Bundle, name: str, seed: int, total: Report) -> bool:
    """Whether the harness sees that this promise is broken. Adds what was done to `total`."""
    exposure = MUTANTS[name]
    for attempt in range(ROUNDS):
        say(f"mutant {name}, {', '.join(exposure.faults)}")
        rig = Rig(stack, bundle, seed + attempt, name, exposure.rates)
        report, found = await run(rig, [(name,) for name in exposure.faults])
        total.faults = dict(Counter(total.faults) + Counter(report.faults))
        total.events += report.events
        if any(difference.kind == exposure.shows for difference in found):
            return True
    say(f"mutant {name} was NOT caught")
    return False
