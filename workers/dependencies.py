"""What a worker knows of the backends it needs: which fail now, since when, and why. For readiness, metrics and logs.

Whoever calls a dependency tells here how it went. One that fails for long is one log line at first, one every ten
seconds, and one when it is back, however many calls fail.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import structlog

from workers.breaker import Breaker
from workers.errors import DependencyError, DependencyTimeout
from workers.metrics import Metrics
from workers.settings import AgentKind

SAY_EVERY_S = 10.0
PROBE_EVERY_S = 2.0
PROBE_TIMEOUT_S = 2.0
SETTLED_S = 10.0  # longer than work that failed waits before it is tried again

Probe = Callable[[], Awaitable[None]]
"""One short question to a backend; raises DependencyError when it does not answer."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Outage:
    """A dependency that fails: since when, when the last call failed, when it was last said, and calls since then."""

    error: str
    since_s: float
    last_s: float
    said_s: float
    unsaid: int = 0


class Dependencies:
    """Those of one worker kind. Nothing here waits or raises, except `watch`."""

    def __init__(self, kind: AgentKind, metrics: Metrics, now_s: Callable[[], float] = monotonic) -> None:
        self._kind = kind
        self._metrics = metrics
        self.now_s = now_s
        self._outages: dict[str, _Outage] = {}
        self._breakers: dict[str, Breaker] = {}
        self._spared: set[str] = set()

    def can_do_without(self, name: str) -> None:
        """One whose outage is told, and does not make the worker unready."""
        self._spared.add(name)

    def breaker(self, name: str) -> Breaker:
        """The one that calls to a dependency share, where somebody waits for them. `worked` closes it."""
        breaker = self._breakers.get(name)
        if breaker is None:
            gauge = self._metrics.breaker_open.labels(self._kind, name)
            breaker = self._breakers[name] = Breaker(self.now_s, gauge.set)
        return breaker

    def failed(self, error: DependencyError) -> None:
        """A call failed or took too long."""
        self._metrics.failures.labels(self._kind, error.dependency).inc()
        self._note(error)

    def worked(self, name: str) -> None:
        """A call to it went well."""
        if name in self._breakers:
            self._breakers[name].worked()
        outage = self._outages.pop(name, None)
        if outage is not None:
            log.info("dependency is back", dependency=name, after_s=round(self.now_s() - outage.since_s, 1))

    def missing(self) -> str | None:
        """One line on a dependency that fails now and is needed, with its error; None when none does."""
        for name, outage in self._outages.items():
            if name in self._spared:
                continue
            line = f"{outage.error} (for {self.now_s() - outage.since_s:.0f} s)"
            opened_s = self._breakers[name].open_since_s if name in self._breakers else None
            if opened_s is not None:
                line += f"; its breaker is open for {self.now_s() - opened_s:.0f} s: requests do not wait for it"
            return line
        return None

    async def watch(self, probes: Mapping[str, Probe]) -> None:
        """Ask each backend every two seconds, until cancelled: a worker without work notices an outage, and its end.

        An answer does not end an outage while real calls still fail: a server may answer and yet refuse to work.
        """
        while True:
            await asyncio.gather(*(self._probe(name, probe) for name, probe in probes.items()))
            await asyncio.sleep(PROBE_EVERY_S)

    async def _probe(self, name: str, probe: Probe) -> None:
        asked_s = self.now_s()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await probe()
        except DependencyError as error:
            self._note(error, of_work=False)
            answered = not isinstance(error, DependencyTimeout)
        except TimeoutError:
            self._note(DependencyTimeout(name, f"no answer in {PROBE_TIMEOUT_S:g} s"), of_work=False)
            answered = False
        else:
            answered = True
            outage = self._outages.get(name)
            if outage is not None and asked_s - outage.last_s > SETTLED_S:
                self.worked(name)
        if name in self._breakers:
            self._breakers[name].probed(answered)

    def _note(self, error: DependencyError, *, of_work: bool = True) -> None:
        now_s = self.now_s()
        outage = self._outages.get(error.dependency)
        if outage is None:
            last_s = now_s if of_work else now_s - SETTLED_S  # a probe alone may take back what only a probe has said
            self._outages[error.dependency] = _Outage(str(error), now_s, last_s, now_s)
            log.warning("dependency failed", dependency=error.dependency, error=str(error))
            return
        outage.error, outage.unsaid = str(error), outage.unsaid + 1
        if of_work:
            outage.last_s = now_s
        if now_s - outage.said_s >= SAY_EVERY_S:
            log.warning(
                "dependency still fails",
                dependency=error.dependency,
                error=str(error),
                for_s=round(now_s - outage.since_s, 1),
                failures=outage.unsaid,
            )
            outage.said_s, outage.unsaid = now_s, 0
