"""What a replay of a window asks, and when."""

import numpy as np

from models.datasets.marketplace import generate_marketplace
from models.evaluation import protocol
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, build_vocabularies
from workers.live.replay import plan_users


def test_a_request_has_the_context_in_which_its_targets_happened() -> None:
    dataset, spec = generate_marketplace(80, 30, 300), load_spec(builtin_spec("marketplace"))
    log, catalogue = dataset.log, dataset.catalogue()
    encoding = Encoding(spec, build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec))
    asked = protocol.window(log, catalogue, encoding, dataset.test_ms)
    plan = plan_users(dataset, asked, spec.history.time_resolution_ms)
    steps = [step for steps in plan.values() for step in steps if step.targets]
    assert len(steps) == len(asked.requests.user)
    for step in steps:
        bought = [row for row in step.rows if dataset.item_ids[dataset.item[row]] in step.targets]
        assert step.context == dataset.contexts[bought[0]]
        assert step.context is not None
        assert step.at_ms == dataset.timestamp_ms[bought[0]]
    rows = sorted(row for steps in plan.values() for step in steps for row in step.rows)
    assert (
        rows == np.flatnonzero(np.isin(dataset.user, list(plan)) & (dataset.timestamp_ms >= dataset.test_ms)).tolist()
    )
