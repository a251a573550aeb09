"""Each mutant with the traffic and the fault that expose it: the run must turn red, and for the right reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.bundle import Bundle
from tests.chaos.difference import Difference, Kind
from tests.chaos.rig import Rig, say
from tests.chaos.run import Report, run
from tests.chaos.workload import Rates
from workers.local.stack import LocalStack

ROUNDS = 3  # some show only when two workers meet


@dataclass(frozen=True)
class Exposure:
    """What brings a mutant to light, and what is seen then: a difference whose line says so."""

    faults: tuple[str, ...]
    shows: Kind
    says: str
    rates: Rates = field(default_factory=Rates)

    def seen_in(self, found: Sequence[Difference]) -> bool:
        """Not in a run that did not come to its end, or in which a worker ended: that proves nothing."""
        if any(difference.of_run for difference in found):
            return False
        return any(difference.kind == self.shows and self.says in difference.line for difference in found)


MUTANTS = {
    "event_ids": Exposure(("quiet",), "double_effects", "rows of"),
    "floor": Exposure(("quiet",), "double_effects", "events counted"),
    "write_token": Exposure(("quiet",), "lost", "the history has not", Rates(burst=1.0)),
    "item_fence": Exposure(("freeze_items",), "lost", "stands, and not"),
    "ordered_commit": Exposure(("milvus_slow_and_kill",), "unanswered", "request r-"),
    "acknowledgement": Exposure(("kill_recall",), "unanswered", "request r-"),
    "deadline": Exposure(("milvus_slow",), "wrong_state", "after the deadline"),
    "markers": Exposure(("redis_emptied",), "wrong_state", "calls a user new"),
    "seen_items": Exposure(("freeze_activity", "quiet"), "wrong_state", "which the user had seen"),
    "durability": Exposure(("redis_tail_lost",), "lost", "stands, and not"),
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
        if exposure.seen_in(found):
            return True
    say(f"mutant {name} was NOT caught")
    return False
