"""Replay of the test window over Kafka, in lock-step per user: a second's activity follows that second's answers."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.datasets import Dataset
from models.evaluation.protocol import Window
from schemas import codec
from schemas.activity import UserActivity
from schemas.recall import CandidateList, Reason, RecallRequest, Status
from schemas.records import hash64
from workers.client import RecallClient
from workers.errors import DependencyTimeout
from workers.kafka_client import Message
from workers.live.sender import Sender

K = 100
TIMEOUT_MS = 10_000
PARALLEL_USERS = 48
ASK_AGAIN_AFTER_S = 0.005


@dataclass
class ReplayResult:
    """Counts over every request that was sent, and where the targets stood in the answers."""

    requests: int = 0
    answered: int = 0
    ok: int = 0
    stale: int = 0
    targets: int = 0
    activities: int = 0
    unanswered: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)  # target -> its place in the answer, from 0; of those found
    shown: Counter[str] = field(default_factory=Counter)  # item -> in how many lists it stood

    @property
    def found(self) -> int:
        """Targets among the first K candidates."""
        return len(self.places)

    def percentile_ms(self, percent: float) -> float:
        """Of the time from sending a request to having its answer."""
        return round(float(np.percentile(self.latencies_ms, percent)), 1) if self.latencies_ms else 0.0


@dataclass(frozen=True)
class Step:
    """One second of one user: the targets foretold, if any, and the rows of what happened in it.

    `targets` maps items to their numbers in the window; `context` is that of the window's request for them.
    """

    at_ms: int
    targets: Mapping[str, Sequence[int]]
    rows: tuple[int, ...]
    context: Mapping[str, Any] | None = None


def history_messages(dataset: Dataset, plan: dict[int, list[Step]]) -> Iterator[Message]:
    """Profiles and everything that the planned users did before the test window, as messages in log order."""
    chosen = set(plan)
    profiles = list(dataset.profile_activities())
    for (user, _, _), activity in zip(dataset.profiles, profiles, strict=True):
        if user in chosen:
            yield _message(activity)
    rows = np.flatnonzero(np.isin(dataset.user, sorted(chosen)) & (dataset.timestamp_ms < dataset.test_ms))
    for activity in dataset.activities(rows.tolist()):
        yield _message(activity)


def plan_users(dataset: Dataset, asked: Window, step_ms: int) -> dict[int, list[Step]]:
    """User index -> that user's seconds of the test window, in order."""
    targets: dict[tuple[int, int], dict[str, list[int]]] = {}
    for number, (request, item) in enumerate(zip(asked.request.tolist(), asked.item.tolist(), strict=True)):
        user, at_ms = int(asked.requests.user[request]), int(asked.requests.as_of_ms[request])
        targets.setdefault((user, at_ms // step_ms), {}).setdefault(dataset.item_ids[item], []).append(number)
    requests = zip(asked.requests.user.tolist(), asked.requests.as_of_ms.tolist(), asked.requests.contexts, strict=True)
    contexts = {(user, at_ms // step_ms): context for user, at_ms, context in requests}
    users = sorted({user for user, _ in targets})
    plan: dict[int, list[Step]] = {user: [] for user in users}
    rows = np.flatnonzero(np.isin(dataset.user, users) & (dataset.timestamp_ms >= dataset.test_ms))
    groups: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault((int(dataset.user[row]), int(dataset.timestamp_ms[row]) // step_ms), []).append(row)
    for (user, step), members in sorted(groups.items()):
        key = (user, step)
        plan[user].append(Step(step * step_ms, targets.get(key, {}), tuple(members), contexts.get(key)))
    return plan


async def replay(
    dataset: Dataset,
    plan: dict[int, list[Step]],
    client: RecallClient,
    sender: Sender,
    progress: Callable[[float], None],
    unanswered_at_most: int = 0,
) -> ReplayResult:
    """Ask for every target and send every activity of the plan, users in parallel.

    Raises DependencyTimeout when more requests than `unanswered_at_most` had no answer in time.
    """
    result = ReplayResult()
    places = asyncio.Semaphore(PARALLEL_USERS)
    total = sum(len(steps) for steps in plan.values())
    done = 0

    async def one_user(user: int, steps: Sequence[Step]) -> None:
        nonlocal done
        async with places:
            last_event: str | None = None
            for step in steps:
                if step.targets:
                    await _foretell(dataset.user_ids[user], step, last_event, client, result, unanswered_at_most)
                activities = list(dataset.activities(step.rows))
                await sender.activities(activities)
                result.activities += len(activities)
                # The newest row of the record: the one that no later eviction takes out first.
                last_event = max(activities, key=lambda activity: hash64(activity.event_id)).event_id
                done += 1
                progress(done / total)

    try:
        async with asyncio.TaskGroup() as group:
            for user, steps in plan.items():
                group.create_task(one_user(user, steps))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return result


async def _foretell(
    user_id: str,
    step: Step,
    last_event: str | None,
    client: RecallClient,
    result: ReplayResult,
    unanswered_at_most: int,
) -> None:
    """Ask until the answer knows the user's last event, and look for the targets in it."""
    attempt = 0
    result.targets += sum(len(numbers) for numbers in step.targets.values())
    while True:
        request = RecallRequest(
            request_id=f"{user_id}/{step.at_ms}/{attempt}",
            user_id=user_id,
            timestamp_ms=step.at_ms,
            k=K,
            timeout_ms=TIMEOUT_MS,
            after_event_id=last_event,
            context=None if step.context is None else dict(step.context),
        )
        try:
            answer = await _ask(request, client, result)
        except DependencyTimeout:
            result.unanswered += 1
            if result.unanswered > unanswered_at_most:
                raise
            return
        if Reason.FEATURES_STALE not in answer.reasons:
            break
        result.stale += 1
        attempt += 1
        await asyncio.sleep(ASK_AGAIN_AFTER_S)
    result.shown.update(answer.item_ids)
    for place, item in enumerate(answer.item_ids):
        result.places |= dict.fromkeys(step.targets.get(item, ()), place)


async def _ask(request: RecallRequest, client: RecallClient, result: ReplayResult) -> CandidateList:
    result.requests += 1
    started = time.perf_counter()
    answer = await client.ask(request)
    result.latencies_ms.append((time.perf_counter() - started) * 1000)
    result.answered += 1
    result.ok += answer.status is Status.OK
    return answer


def _message(activity: UserActivity) -> Message:
    return activity.user_id.encode(), codec.encode_event(activity), ()
