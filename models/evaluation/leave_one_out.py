"""Leave-one-out, the protocol of most published figures: the last event of every user is the target.

The event before it is for validation; towers are fitted on what is left. The whole catalogue is ranked. Published
figures see a sequence, events of one second in file order, and no time before the request: the real gap would tell that
the target shares its second with the last event. So time is replaced by place: a user's n-th event is n steps after the
beginning, and the request is made one step after the newest event that it sees.
"""

from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from models.evaluation.timeline import Timeline
from models.evaluation.window import Window
from models.event_log import Catalogue, EventLog
from models.samples import Requests
from models.spec import Spec, SpecError, parse_spec
from models.tensors import event_codes

LEAST_EVENTS = 3


@dataclass(frozen=True)
class LeaveOneOut:
    """`training` is without the last two events of each user, `visible` without what is foretold and what follows."""

    training: EventLog
    visible: EventLog
    foretold: NDArray[np.int64]  # int64[T], catalogue index of the target of each user that has one
    user: NDArray[np.int64]  # int64[T], rising


def leave_one_out(log: EventLog, catalogue: Catalogue, spec: Spec, *, validation: bool = False) -> LeaveOneOut:
    """Split a log; `validation` foretells the event before the last one.

    Only events that name an item of the catalogue, by an action of the spec's history, are left out or foretold, and
    only of users with at least three of them.
    """
    placed = _in_places(log, spec.history.time_resolution_ms)
    index = catalogue.index_of(log.item)
    counting = np.flatnonzero((event_codes(log.action, log.value, spec) > 0) & (index >= 0))
    rows = counting[np.lexsort((placed.timestamp_ms[counting], placed.user[counting]))]
    ends = np.searchsorted(placed.user[rows], np.arange(len(log.user_ids)), side="right")
    enough = np.flatnonzero(np.diff(ends, prepend=0) >= LEAST_EVENTS)
    last, before_last = rows[ends[enough] - 1], rows[ends[enough] - 2]
    training = np.ones(len(log), dtype=bool)
    training[np.r_[last, before_last]] = False
    visible = np.ones(len(log), dtype=bool)
    visible[np.r_[last, before_last] if validation else last] = False
    target = before_last if validation else last
    return LeaveOneOut(placed.where(training), placed.where(visible), index[target], enough)


def window(split: LeaveOneOut, timeline: Timeline) -> Window:
    """One request per target, one step after the newest event that it sees; `timeline` is over `split.visible`."""
    step_ms = timeline.encoding.spec.history.time_resolution_ms
    ends = timeline.log.offsets[split.user + 1]
    times = timeline.time_ms[ends - 1] + step_ms
    counts = ends - timeline.log.offsets[split.user]
    requests = Requests(split.user, times, [None] * len(times))
    return Window(requests, np.arange(len(times)), split.foretold, counts, counts)


def any_value(spec: Spec, features: str) -> tuple[Spec, str]:
    """The spec, and the text of its file, with every event of the target's action as a target, as published figures do.

    Raises SpecError when the text cannot be changed in place.
    """
    wanted = structs.replace(spec, target=structs.replace(spec.target, at_least=None))
    lines, section = [], ""
    for line in features.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            section = line.split("#")[0].strip()
        if not (section == "[target]" and line.split("=")[0].strip() == "at_least"):
            lines.append(line)
    text = "".join(lines)
    if parse_spec(text) != wanted:
        raise SpecError("leave-one-out needs `at_least` on a line of its own under [target]")
    return wanted, text


def _in_places(log: EventLog, step_ms: int) -> EventLog:
    """The same log with a user's n-th event (by time, then in log order) at n steps, and profiles known before it."""
    order = np.lexsort((np.arange(len(log)), log.timestamp_ms, log.user))
    users = log.user[order]
    times = np.empty(len(log), dtype=np.int64)
    times[order] = (1 + np.arange(len(log)) - np.searchsorted(users, users)) * step_ms
    return replace(log, timestamp_ms=times, profiles=[(user, 0, attributes) for user, _, attributes in log.profiles])
