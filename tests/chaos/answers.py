"""Answers: of every request one at least, and each right for one of the records that have its request's id."""

import json
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
STATUSES = {"ok", "degraded", "expired", "rejected"}
FAILURES = {"features_unavailable", "features_stale", "model_unavailable", "index_unavailable"}
DEFAULT_K = 100
DEFAULT_TIMEOUT_MS = 2000


class TakenIn(NamedTuple):
    """Seen while the harness ran: activities that the broker took before `until_ms` are in Redis since `at_ms`."""

    until_ms: int
    at_ms: int


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


def wrong_answers(expected: Expected, answers: Answers, taken_in: Sequence[TakenIn]) -> Iterator[Difference]:
    """What is missing, and what is wrong."""
    asked: dict[str, list[tuple[Entry, str]]] = {}  # a producer that hears nothing sends again: one id, two records
    for entry, status, request_id in expected.requests.values():
        asked.setdefault(request_id, []).append((entry, status))
    for request_id, records in asked.items():
        found = answers.by_request.get(request_id, [])
        for entry, _ in records[len(found) :]:
            yield Difference("unanswered", f"request {request_id}: {entry}")
        for given, answer in found:
            user = expected.users.get(answer["user_id"], ExpectedUser())
            certain = _certain(user, given.taken_ms, taken_in) if "cold_start" in answer["reasons"] else []
            problems = [_problem(entry, status, answer, user, certain) for entry, status in records]
            if all(problems):
                yield Difference("wrong_state", f"the answer to {request_id} {problems[0]}: {records[0][0]}")
    for request_id in answers.by_request.keys() - asked.keys():
        yield Difference("wrong_state", f"an answer to {request_id}, which nobody asked")


def _certain(user: ExpectedUser, answered_ms: int, taken_in: Sequence[TakenIn]) -> list[tuple[int, Entry]]:
    """Activities that must be in the user's record, and since when; none that a tombstone may have taken by then."""
    forgotten_ms = max((at_ms for at_ms in user.tombstones_ms if at_ms <= answered_ms), default=-1)
    kept = [entry for entry in user.sources.values() if entry.taken_ms > forgotten_ms]
    return [(seen.at_ms, entry) for seen in taken_in for entry in kept if entry.taken_ms < seen.until_ms]


def _problem(
    request: Entry, status: str, answer: dict[str, Any], user: ExpectedUser, certain: Sequence[tuple[int, Entry]]
) -> str:
    """What is wrong with an answer, '' for nothing."""
    asked = json.loads(request.value or b"")
    if answer["user_id"] != asked["user_id"]:
        return "is for another user"
    if answer["status"] not in STATUSES or (status and answer["status"] != status):
        return f"has status {answer['status']}"
    if status:
        return ""
    return (
        _reasons_problem(asked, answer)
        or _deadline_problem(request, asked, answer)
        or _list_problem(asked, answer)
        or _user_problem(request, asked, answer, user, certain)
    )


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
    if len(set(items)) != len(items) or len(items) != len(scores) or len(items) > asked.get("k", DEFAULT_K):
        return f"lists {len(items)} items, {len(set(items))} different ones, {len(scores)} scores"
    if scores != sorted(scores, reverse=True):
        return "is not in order"
    if set(items) & set(asked.get("exclude_items", ())):
        return "lists an excluded item"
    return ""


def _user_problem(
    request: Entry,
    asked: dict[str, Any],
    answer: dict[str, Any],
    user: ExpectedUser,
    certain: Sequence[tuple[int, Entry]],
) -> str:
    """`ok` does not pass over an activity that never came, nor a user who was known for certain."""
    if answer["status"] != "ok":
        return ""
    after = asked.get("after_event_id")
    if after is not None and hash64(after) not in user.sources:
        return "is ok, after an activity that never was in the user's record"
    if "cold_start" in answer["reasons"]:
        for since_ms, entry in certain:
            if since_ms < request.taken_ms:
                return f"calls a user new of whom is known: {entry}"
    return ""
