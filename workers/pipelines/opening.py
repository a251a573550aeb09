"""Answers while what recall needs is not there yet: `degraded` at once, and why."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from schemas.recall import CandidateList, Reason, Status
from workers.dependencies import Dependencies
from workers.errors import DependencyError, DependencyTimeout
from workers.pipelines.admission import Incoming, without_items
from workers.ports import Clock
from workers.retry import pauses

FIRST_TRY_S = 3.0  # an unreachable host must not keep requests waiting


class Answers(Protocol):
    """Requests in, one answer each out."""

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        """See RecallPipeline."""
        ...


class OpeningRecall:
    """`run` answers `degraded` until `opened` gives the pipeline, and is that pipeline's from then on."""

    def __init__(
        self,
        opened: Callable[[], Awaitable[Answers]],
        clock: Clock,
        dependencies: Dependencies,
        index: str = "milvus",
    ) -> None:
        """`index`: the name of the dependency that is searched."""
        self._index = index
        self._reasons = {"redis": Reason.FEATURES_UNAVAILABLE, index: Reason.INDEX_UNAVAILABLE}
        self._opened = opened
        self._clock = clock
        self._dependencies = dependencies
        self._pipeline: Answers | None = None
        self._reason = Reason.MODEL_UNAVAILABLE

    @property
    def is_open(self) -> bool:
        """Whether requests reach the pipeline."""
        return self._pipeline is not None

    async def try_open(self) -> None:
        """Once, for a few seconds. Raises ConfigurationError when what is there cannot work."""
        try:
            async with asyncio.timeout(FIRST_TRY_S):
                self._pipeline = await self._opened()
        except DependencyError as error:
            self._failed(error)
        except TimeoutError:
            self._failed(DependencyTimeout(self._index, f"not open after {FIRST_TRY_S:g} s"))

    async def keep_opening(self) -> None:
        """Until it is open. Raises ConfigurationError when what is there cannot work."""
        again = pauses()
        while self._pipeline is None:
            try:
                self._pipeline = await self._opened()
            except DependencyError as error:
                self._failed(error)
                await asyncio.sleep(next(again))
        for dependency in (*self._reasons, "tower"):
            self._dependencies.worked(dependency)

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        """One answer per request, in input order."""
        if self._pipeline is not None:
            return await self._pipeline.run(batch)
        return [self._unopened(incoming, self._clock.now_ms()) for incoming in batch]

    def _unopened(self, incoming: Incoming, now_ms: int) -> CandidateList:
        if now_ms >= incoming.deadline_ms:
            return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, None)
        return without_items(incoming, now_ms, Status.DEGRADED, self._reason, None)

    def _failed(self, error: DependencyError) -> None:
        self._reason = self._reasons.get(error.dependency, Reason.MODEL_UNAVAILABLE)
        self._dependencies.failed(error)
