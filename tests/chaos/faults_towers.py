"""Faults of the towers, which run inside the workers: see tests/chaos/patches/towers.py."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.chaos.processes import all_ended
from tests.chaos.rig import RECOVERED_WITHIN_S, Rig

STEPS = 50
MODEL_UNAVAILABLE = "degraded model_unavailable"


@contextmanager
def ordered(rig: Rig, order: str) -> Iterator[None]:
    """The towers of all workers, or of those named behind the word, misbehave meanwhile."""
    new = rig.workers.towers.with_suffix(".new")
    new.write_text(order)
    new.replace(rig.workers.towers)
    try:
        yield
    finally:
        rig.workers.towers.unlink()


def misbehave(how: str) -> Callable[[Rig], Awaitable[None]]:
    """Every tower of every worker, for some seconds: requests say so and items wait."""

    async def fault(rig: Rig) -> None:
        with ordered(rig, how):
            await rig.answered(MODEL_UNAVAILABLE)
            await rig.feeder.steps_more(STEPS)

    return fault


async def hang(rig: Rig) -> None:
    """A tower that is never done, in every worker that has one: each ends by itself, and comes again without it."""
    workers = [*rig.workers.of("recall"), *rig.workers.of("items")]
    for worker in workers:
        worker.hangs = True
    with ordered(rig, " ".join(["hangs", *(str(worker.process.pid) for worker in workers)])):
        await rig.answered(MODEL_UNAVAILABLE)
        await rig.until(partial(all_ended, workers), RECOVERED_WITHIN_S, "a worker whose tower hangs lives on")


TOWER_FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "tower_raises": misbehave("raises"),
    "tower_nan": misbehave("nan"),
    "tower_wrong_shape": misbehave("wrong_shape"),
    "tower_hangs": hang,
}
