"""Faults of the towers, which run inside the workers: see tests/chaos/patches/towers.py."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from tests.chaos.rig import STUCK_AFTER_MS, Rig

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
    with ordered(rig, " ".join(["hangs", *(str(worker.process.pid) for worker in workers)])):
        await rig.answered(MODEL_UNAVAILABLE)
        within_s = STUCK_AFTER_MS / 1000 + 60.0
        await rig.until(lambda: all(worker.ended() for worker in workers), within_s, "a worker whose tower hangs lives")


TOWER_FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "tower_raises": misbehave("raises"),
    "tower_nan": misbehave("nan"),
    "tower_wrong_shape": misbehave("wrong_shape"),
    "tower_hangs": hang,
}
