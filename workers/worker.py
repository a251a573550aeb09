"""One agent kind of a worker process: what it holds open, whether it is alive and ready, and what must go on in it."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from workers.dependencies import Dependencies, Probe
from workers.health import Condition
from workers.index.opening import Indexes
from workers.liveness import Liveness, liveness, oldest_batch, poll_turns
from workers.local.ready import READING
from workers.metrics import Metrics
from workers.ports import Tower
from workers.settings import AgentKind, Settings
from workers.watchdog import Watched

LIVE_WITHIN_S = 60.0
PATIENCE = 10  # a batch may be in hand, and a start take, so many times as long as the loop may stand still


@dataclass
class Worker:
    """One agent kind with everything it holds open. `app` is None until what it needs at start is there."""

    kind: AgentKind
    settings: Settings
    metrics: Metrics
    dependencies: Dependencies
    opened: AsyncExitStack
    indexes: Indexes
    app: Any = None
    tower: Tower | None = None
    probes: dict[str, Probe] = field(default_factory=dict)
    background: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    waiting: Callable[[], str | None] = lambda: None
    paused: Callable[[], str | None] = lambda: None
    filling: Callable[[], str | None] = lambda: None
    missed_deletions: Callable[[], bool] = lambda: False
    redis_checked: bool = False

    def facts(self) -> Liveness:
        """What the engine knows of itself; nothing before it runs."""
        return Liveness() if self.app is None else liveness(self.app)

    def live(self) -> Condition:
        """Fails when the poll loop has not turned for a minute."""
        idle_s = self.facts().idle_s
        return Condition(idle_s < LIVE_WITHIN_S, f"{self.kind}: the poll loop last turned {idle_s:.0f} s ago")

    def ready(self) -> Condition:
        """Fails when it cannot work, and while it reads what an emptied Redis has lost."""
        able = self._able()
        if able.well and (reading := self.filling()) is not None:
            return Condition(False, f"{self.kind}: {READING} {reading}")
        return able

    def _able(self) -> Condition:
        """Fails while partitions or a dependency are missing, and while dead letters are paused."""
        missing = self.dependencies.missing() or self.waiting() or self.paused()
        if missing is not None:
            return Condition(False, f"{self.kind}: waiting for {missing}")
        if not self.facts().assigned:
            return Condition(False, f"{self.kind}: waiting for partitions")
        return Condition(True, "ready")

    def watched(self) -> list[Watched]:
        """What must go on: while no dependency is away; a tower that hangs in this process does not come back."""
        limit_s = self.settings.stuck_after_ms / 1000
        return [
            Watched(
                f"{self.kind}: the poll loop has not turned",
                limit_s,
                lambda: None if self.dependencies.missing() or self.waiting() else poll_turns(self.app) or None,
            ),
            Watched(  # a group waits for a member that was killed until its session is over
                f"{self.kind}: the poll loop has not begun to turn",
                limit_s * PATIENCE,
                lambda: None if self.dependencies.missing() or self.waiting() or poll_turns(self.app) else "waiting",
            ),
            Watched(
                f"{self.kind}: the same batch has been in hand",
                limit_s * PATIENCE,
                lambda: oldest_batch(self.app) if self._able().well else None,
            ),
            Watched(
                f"{self.kind}: the tower has been in the same run",
                limit_s,
                lambda: getattr(self.tower, "running", None),  # of one that runs in this process
            ),
        ]

    def measure(self) -> None:
        """Set the gauges to what is so now."""
        facts = self.facts()
        self.metrics.assigned.labels(self.kind).set(facts.assigned)
        self.metrics.lag.labels(self.kind).set(facts.lag)
        self.metrics.lag_age_ms.labels(self.kind).set(facts.lag_age_ms)
        self.metrics.in_flight.labels(self.kind).set(facts.in_flight)
        self.metrics.ready.labels(self.kind).set(self.ready().well)
        if self.kind == "items":
            self.metrics.missed_deletions.set(self.missed_deletions())
