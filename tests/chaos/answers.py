"""Answers: of every request one at least, and each right for one of the records that have its request's id."""

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.chaos.difference import Difference
from tests.chaos.formats import hash64
from tests.chaos.log import Entry
from tests.chaos.model import Expected, ExpectedUser

CLOCK_SLACK_MS = 50
BROKER_SLACK_MS = 1000  # between the time that the broker gives a record and the moment when it can be read
STATUSES = {"ok", "degraded", "expired", "rejected"}
WITHOUT_LIST = {"expired", "rejected"}
FAILURES = {"features_unavailable", "features_stale", "model_unavailable", "index_unavailable"}
DEFAULT_K = 100
DEFAULT_TIMEOUT_MS = 2000
SEEN_CAP = 2000  # of more items seen the oldest are forgotten


class TakenIn(NamedTuple):
    """Seen while the harness ran: activities that the broker took before `until_ms` are in Redis since `at_ms`."""

    until_ms: int
    at_ms: int


class View(NamedTuple):
    """What answers: the bundle's version, and its collection."""

    model_version: str
    collection: str


@dataclass(frozen=True)
class Watched:
    """What the harness saw and did while it ran.

    `refilled`: from when to when items and users were read again into an emptied Redis, and not known to be back.
    """

    taken_in: Sequence[TakenIn] = ()
    refilled: Sequence[tuple[int, int]] = ()
    view: View | None = None  # None: not looked at

    def in_redis_until(self, asked_ms: int, answered_ms: int) -> int:
        """What the broker took before is in Redis for a request of then; 0 where nothing is known for certain.

        What was known before Redis was emptied is not, until it is seen again.
        """
        back_ms = max((until for since, until in self.refilled if since <= answered_ms), default=0)
        sure = (seen.until_ms for seen in self.taken_in if seen.at_ms < asked_ms and seen.until_ms > back_ms)
        return max(sure, default=0)


@dataclass(frozen=True)
class Answers:
    """What was answered: by request id, in the order of the log."""

    by_request: dict[str, list[tuple[Entry, dict[str, Any]]]]

    def duplicates(self, expected: Expected) -> int:
        """Answers beyond one per record of a request."""
        asked = Counter(request_id for _, _, request_id in expected.requests.values())
        return sum(max(0, len(found) - asked[request_id]) for request_id, found in self.by_request.items())

    def taken_ms(self) -> list[int]:
        """When the broker took each, in order."""
        return sorted(entry.taken_ms for found in self.by_request.values() for entry, _ in found)


def uncommitted(taken_ms: Sequence[int], ended: Sequence[tuple[int, float]], within_ms: int) -> int:
    """How many answers were given so shortly before a worker ended that it may not have committed their requests.

    `taken_ms` in order; `ended`: when, and the part of all partitions that the worker had.
    """
    answered = (bisect_right(taken_ms, at_ms) - bisect_left(taken_ms, at_ms - within_ms) for at_ms, _ in ended)
    return round(sum(count * part for count, (_, part) in zip(answered, ended, strict=True)))


def read_answers(entries: list[Entry]) -> Answers:
    """From the records of `recall-candidates`."""
    by_request: dict[str, list[tuple[Entry, dict[str, Any]]]] = {}
    for entry in entries:
        answer = json.loads(entry.value or b"")
        by_request.setdefault(answer["request_id"], []).append((entry, answer))
    return Answers(by_request)


def wrong_answers(expected: Expected, answers: Answers, watched: Watched) -> Iterator[Difference]:
    """What is missing, and what is wrong."""
    asked: dict[str, list[tuple[Entry, str]]] = {}  # a producer that hears nothing sends again: one id, two records
    for entry, status, request_id in expected.requests.values():
        asked.setdefault(request_id, []).append((entry, status))
    for request_id, records in asked.items():
        found = answers.by_request.get(request_id, [])
        for entry, _ in records[len(found) :]:
            yield Difference("unanswered", f"request {request_id}: {entry}")
        for given, answer in found:
            judged = _Judged(given.taken_ms, answer, expected, watched)
            problems = [judged.problem(entry, status) for entry, status in records]
            if all(problems):
                yield Difference("wrong_state", f"the answer to {request_id} {problems[0]}: {records[0][0]}")
    for request_id in answers.by_request.keys() - asked.keys():
        yield Difference("wrong_state", f"an answer to {request_id}, which nobody asked")


@dataclass(frozen=True)
class _Judged:
    """One answer, the time at which the broker took it, and what it is held against."""

    taken_ms: int
    answer: dict[str, Any]
    expected: Expected
    watched: Watched

    def problem(self, request: Entry, status: str) -> str:
        """What is wrong with it for this request, '' for nothing. `status`: the one that it must have, '' for any."""
        asked, answer = json.loads(request.value or b""), self.answer
        if answer["user_id"] != asked["user_id"]:
            return "is for another user"
        if answer["status"] not in STATUSES or (status and answer["status"] != status):
            return f"has status {answer['status']}"
        found = _shape_problem(answer) or self._view_problem() or self._items_problem()
        if found or status:
            return found
        return (
            _reasons_problem(asked, answer)
            or _deadline_problem(request, asked, answer)
            or _list_problem(asked, answer)
            or (self._user_problem(request, asked) if answer["status"] == "ok" else "")
        )

    def _view_problem(self) -> str:
        """Whatever has a list, or is `ok`, comes from the view; what nothing has answered may name none."""
        named = self.answer.get("model_version"), self.answer.get("collection")
        listed = self.answer["item_ids"] or self.answer["status"] == "ok"
        if self.watched.view is None or named == self.watched.view or (named == (None, None) and not listed):
            return ""
        return f"is of {named}"

    def _items_problem(self) -> str:
        """An item is listed only once it has been in the item topic."""
        for item_id in self.answer["item_ids"] if self.expected.whole_items else ():
            first_ms = self.expected.first_upserts_ms.get(item_id)
            if first_ms is None or first_ms > self.taken_ms + CLOCK_SLACK_MS:
                return f"lists {item_id}, which did not exist"
        return ""

    def _user_problem(self, request: Entry, asked: dict[str, Any]) -> str:
        """`ok` knows the activity that it waits for, who was known for certain, and what was seen for certain."""
        user = self.expected.users.get(asked["user_id"], ExpectedUser())
        after = asked.get("after_event_id")
        if after is not None:
            known = user.sources.get(hash64(after))
            if known is None or known.taken_ms > self.taken_ms + CLOCK_SLACK_MS:
                return "is ok, after an activity that never was in the user's record"
        forgotten_ms = max((at_ms for at_ms in user.tombstones_ms if at_ms <= self.taken_ms), default=-1)
        if "cold_start" in self.answer["reasons"]:
            for since_ms, entry in _certain(user, forgotten_ms, self.watched.taken_in):
                if since_ms < request.taken_ms:
                    return f"calls a user new of whom is known: {entry}"
        return self._seen_problem(request, user, forgotten_ms)

    def _seen_problem(self, request: Entry, user: ExpectedUser, forgotten_ms: int) -> str:
        """No item that was seen is listed, as far as that stood in Redis for certain, and is not too much to keep."""
        until_ms = self.watched.in_redis_until(request.taken_ms, self.taken_ms) - BROKER_SLACK_MS
        for item_id in self.answer["item_ids"] if len(user.seen_at_ms) <= SEEN_CAP else ():
            times = user.seen_at_ms.get(hash64(item_id), [])
            kept = bisect_right(times, forgotten_ms)
            if kept < len(times) and times[kept] < until_ms:
                return f"lists {item_id}, which the user had seen"
        return ""


def _certain(user: ExpectedUser, forgotten_ms: int, taken_in: Sequence[TakenIn]) -> list[tuple[int, Entry]]:
    """Activities that must be in the user's record, and since when; none that a tombstone may have taken by then."""
    kept = [entry for entry in user.sources.values() if entry.taken_ms > forgotten_ms]
    return [(seen.at_ms, entry) for seen in taken_in for entry in kept if entry.taken_ms < seen.until_ms]


def _shape_problem(answer: dict[str, Any]) -> str:
    """Lists are parallel, scores are numbers, and what was not looked for has none."""
    items, scores, sources = answer["item_ids"], answer["scores"], answer["sources"]
    if not len(items) == len(scores) == len(sources):
        return f"lists {len(items)} items, {len(scores)} scores, {len(sources)} sources"
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return "has a score that is no number"
    return f"is {answer['status']} with {len(items)} items" if items and answer["status"] in WITHOUT_LIST else ""


def _reasons_problem(asked: dict[str, Any], answer: dict[str, Any]) -> str:
    """`ok` and `degraded` tell what was there, and `ok` that less than was asked for exists."""
    status, reasons = answer["status"], set(answer["reasons"])
    wrong = {
        "ok": reasons & FAILURES or (len(answer["item_ids"]) < asked.get("k", DEFAULT_K)) != ("short_list" in reasons),
        "degraded": not reasons & FAILURES,
        "expired": reasons != {"deadline_exceeded"},
        "rejected": reasons != {"overloaded"},
    }[status]
    return f"is {status} with {len(answer['item_ids'])} items: {answer['reasons']}" if wrong else ""


def _deadline_problem(request: Entry, asked: dict[str, Any], answer: dict[str, Any]) -> str:
    early_ms = request.taken_ms + asked.get("timeout_ms", DEFAULT_TIMEOUT_MS) - answer["timestamp_ms"]
    if answer["status"] == "expired" and early_ms > CLOCK_SLACK_MS:
        return f"is expired {early_ms} ms before the deadline"
    if answer["status"] in {"ok", "degraded"} and early_ms < -CLOCK_SLACK_MS:
        return f"is {answer['status']} {-early_ms} ms after the deadline"
    return ""


def _list_problem(asked: dict[str, Any], answer: dict[str, Any]) -> str:
    items, scores = answer["item_ids"], answer["scores"]
    if len(set(items)) != len(items) or len(items) > asked.get("k", DEFAULT_K):
        return f"lists {len(items)} items, {len(set(items))} different ones"
    if scores != sorted(scores, reverse=True):
        return "is not in order"
    if set(items) & set(asked.get("exclude_items", ())):
        return "lists an excluded item"
    return ""
