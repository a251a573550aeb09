"""From a readable request to what is asked: its scene's plan and its own wishes in one; or the answer that says no."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from models.tensors import Encoding
from schemas.recall import CandidateList, Reason, RecallRequest, Status, Timings
from workers import filters
from workers.filters import Filter, InvalidFilter
from workers.plans import Plan, SourceShare

ANSWER_MARGIN_MS = 50  # kept for encoding, publishing and the way back
SIMILAR = "similar"


@dataclass(frozen=True, slots=True)
class Incoming:
    """One readable request and the time at which the broker took its record."""

    request: RecallRequest
    taken_ms: int

    @property
    def deadline_ms(self) -> int:
        """When the answer must have been published."""
        return self.taken_ms + self.request.timeout_ms

    @property
    def as_of_ms(self) -> int:
        """The time of the request for ages and gaps; the broker's time lets a redelivery see the same."""
        return self.taken_ms if self.request.timestamp_ms is None else self.request.timestamp_ms


def by_time_left(requests: Sequence[Incoming], now_ms: int) -> list[list[int]]:
    """Positions of requests that have about as much time left: who is in a hurry is answered apart from who is not."""
    groups: dict[int, list[int]] = {}
    for position, incoming in enumerate(requests):
        groups.setdefault(max(0, incoming.deadline_ms - now_ms).bit_length(), []).append(position)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class View:
    """What one bundle fixes for its answers: how facts become tensors, its scenes, where its vectors are."""

    encoding: Encoding
    dim: int
    model_version: str
    collection: str
    plans: Mapping[str, Plan]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it will be answered: what it leaves open is decided by its scene."""

    incoming: Incoming
    plan: Plan
    k: int
    exclude_seen: bool
    where: Filter
    sources: tuple[SourceShare, ...]

    @property
    def request(self) -> RecallRequest:
        """As it came."""
        return self.incoming.request


def admit(incoming: Incoming, view: View, now_ms: int) -> Asked | CandidateList:
    """What is asked; or the answer that needs no work: too late, or asking for what cannot be done.

    A request with anchors is answered from the source `similar` too, where its scene does not name it.
    """
    request = incoming.request
    if now_ms >= incoming.deadline_ms:
        return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, view)
    rejected = partial(without_items, incoming, now_ms, Status.REJECTED, view=view)
    plan = view.plans.get(request.scene)
    if plan is None:
        return rejected(Reason.INVALID_REQUEST, error_field="scene")
    try:
        where = filters.checked(request.filter, view.encoding.spec.filterable)
    except InvalidFilter as error:
        return rejected(Reason.INVALID_FILTER, error_field=str(error))
    sources = plan.sources
    names = [source.name for source in sources]
    if request.anchor_items and SIMILAR not in names:
        sources = (*sources, SourceShare(SIMILAR))
    elif names == [SIMILAR] and not request.anchor_items:
        return rejected(Reason.INVALID_REQUEST, error_field="anchor_items")
    return Asked(
        incoming,
        plan,
        k=plan.k if request.k is None else request.k,
        exclude_seen=plan.exclude_seen if request.exclude_seen is None else request.exclude_seen,
        where=plan.where + where,
        sources=sources,
    )


def without_items(
    incoming: Incoming,
    now_ms: int,
    status: Status,
    reason: Reason,
    view: View | None,
    error_field: str | None = None,
) -> CandidateList:
    """The answer that has no list."""
    waited_ms = float(max(0, now_ms - incoming.taken_ms))
    return CandidateList(
        request_id=incoming.request.request_id,
        user_id=incoming.request.user_id,
        scene=incoming.request.scene,
        status=status,
        timestamp_ms=now_ms,
        reasons=[str(reason)],
        error_field=error_field,
        model_version=None if view is None else view.model_version,
        collection=None if view is None else view.collection,
        timings_ms=Timings(queue=waited_ms, total=waited_ms),
    )
