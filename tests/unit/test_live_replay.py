"""What a replay of a window asks, and when; and how it ends without answers."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.datasets.marketplace import generate_marketplace
from models.evaluation import protocol
from models.evaluation.window import Window
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, build_vocabularies
from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from workers.client import RecallClient
from workers.errors import DependencyTimeout
from workers.live.replay import Step, plan_users, replay
from workers.live.sender import Sender
from workers.settings import Settings

DATASET = generate_marketplace(80, 30, 300)


def planned() -> tuple[Window, dict[int, list[Step]]]:
    """The whole test window, and what is asked and sent for it."""
    spec, log, catalogue = load_spec(builtin_spec("marketplace")), DATASET.log, DATASET.catalogue()
    encoding = Encoding(spec, build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec))
    asked = protocol.window(log, catalogue, encoding, DATASET.test_ms)
    return asked, plan_users(DATASET, asked, spec.history.time_resolution_ms)


class Unanswered(RecallClient):
    """Nobody listens to its requests."""

    async def ask(self, request: RecallRequest, headers: object = ()) -> None:
        raise DependencyTimeout("recall worker", f"no answer to request {request.request_id}")


class Nowhere(Sender):
    """Its activities go nowhere."""

    def __init__(self) -> None:
        pass

    async def activities(self, activities: Sequence[UserActivity]) -> None:
        pass


def test_a_request_has_the_context_in_which_its_targets_happened() -> None:
    asked, plan = planned()
    steps = [step for steps in plan.values() for step in steps if step.targets]
    assert len(steps) == len(asked.requests.user)
    for step in steps:
        bought = [row for row in step.rows if DATASET.item_ids[DATASET.item[row]] in step.targets]
        assert step.context == DATASET.contexts[bought[0]]
        assert step.context is not None
        assert step.at_ms == DATASET.timestamp_ms[bought[0]]
    rows = sorted(row for steps in plan.values() for step in steps for row in step.rows)
    assert (
        rows == np.flatnonzero(np.isin(DATASET.user, list(plan)) & (DATASET.timestamp_ms >= DATASET.test_ms)).tolist()
    )


async def test_without_answers_a_replay_ends_with_what_is_wrong() -> None:
    """Users are replayed in parallel: the error is that of a request, not of the group of them."""
    _, plan = planned()
    with pytest.raises(DependencyTimeout, match="recall worker: no answer to request"):
        await replay(DATASET, plan, Unanswered(Settings()), Nowhere(), lambda _: None)
    requests = sum(bool(step.targets) for steps in plan.values() for step in steps)
    result = await replay(DATASET, plan, Unanswered(Settings()), Nowhere(), lambda _: None, requests)
    assert (result.unanswered, result.answered) == (requests, 0)
