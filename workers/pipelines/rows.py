"""What the steps of the recall pipeline find out about one request."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.recall import Reason
from workers.pipelines.admission import Asked
from workers.ports import Float32, Query, UInt64

REQUEST = "request"  # the origin of a value that the request carries
NONE = np.zeros(0, dtype=np.uint64)
NO_SCORES = np.zeros(0, dtype=np.float32)
NO_VECTORS = np.zeros((0, 0), dtype=np.float32)
NO_QUERY = Query(embedding=None, session=NO_VECTORS, anchors=NO_VECTORS, segment=None)
DEGRADED = {
    Reason.FEATURES_UNAVAILABLE,
    Reason.FEATURES_STALE,
    Reason.MODEL_UNAVAILABLE,
    Reason.INDEX_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Found:
    """What one source has found: best first. `whole`: it has no more than these."""

    item_ids: Sequence[str] = ()
    scores: Float32 = field(default_factory=lambda: NO_SCORES)
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """What an equal request may take over: nothing of the request itself, and nothing of the user's record as it is."""

    reasons: Sequence[Reason]
    newest_ms: int | None
    query: Query
    found: Mapping[str, Found]
    origins: Mapping[str, str]
    sourced: Mapping[str, Any] | None  # values of the context that the request does not carry


@dataclass(slots=True)
class Row:
    """One request on its way through the steps. `reasons` say what is wrong, or that the user is unknown."""

    asked: Asked
    reasons: list[Reason] = field(default_factory=list)
    record: bytes | None = None
    seen: UInt64 = field(default_factory=lambda: NONE)  # sorted
    excluded: UInt64 = field(default_factory=lambda: NONE)  # sorted
    newest_ms: int | None = None  # the newest visible event with an item; None = there is none
    query: Query = NO_QUERY
    found: dict[str, Found] = field(default_factory=dict)  # by source
    key: Hashable = None  # of what equal requests find; None = nothing is reused
    reused_ms: float | None = None  # the age of `found`, when it is another request's
    context: dict[str, Any] | None = None  # with the values of feature sources; None = the request's own
    origins: dict[str, str] = field(default_factory=dict)  # where values of the context come from that have a source
    lacks_required: bool = False  # a value without which the towers are not asked

    def findings(self) -> Findings:
        """As of now, to be kept."""
        sourced = None
        if self.context is not None:
            names = [name for name, origin in self.origins.items() if origin != REQUEST and name in self.context]
            sourced = {name: self.context[name] for name in names}
        return Findings(self.reasons, self.newest_ms, self.query, self.found, self.origins, sourced)

    def take_over(self, findings: Findings, age_ms: float) -> None:
        """What an equal request found so long ago."""
        self.reasons, self.newest_ms, self.reused_ms = list(findings.reasons), findings.newest_ms, age_ms
        self.query, self.found, self.origins = findings.query, dict(findings.found), dict(findings.origins)
        if findings.sourced is not None:
            own = (self.asked.request.context or {}).items()
            carried = {name: value for name, value in own if self.origins.get(name, REQUEST) == REQUEST}
            self.context = {**carried, **findings.sourced}

    def fail(self, reason: Reason) -> None:
        """Something that the answer needed was not to be had; or another word on it."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    @property
    def failures(self) -> list[Reason]:
        """Those of the reasons that make an answer `degraded`."""
        return [reason for reason in self.reasons if reason in DEGRADED]
