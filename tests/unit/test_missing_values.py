"""What is no value of its kind counts as missing, alike in serving and in training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from models import tensors
from models.columns import RequestColumns, UserFeatures
from models.positives import sample_inputs
from models.spec import Field, builtin_spec, parse_spec
from models.tensors import EVERYTHING_MS, Encoding, Inputs, Vocabularies
from schemas.recall import CandidateList, RecallRequest
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.features.cached import CachedFeatures
from workers.features.memory import MemoryFeatureSource
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming, View, admit
from workers.pipelines.attempts import Attempts
from workers.pipelines.inputs import user_inputs
from workers.pipelines.rows import Row
from workers.pipelines.sourcing import Asking, Sourcing
from workers.plans import plans

SPEC = parse_spec(f"""{builtin_spec("movielens").read_text()}
[context]
credit = {{ kind = "number", source = "shop" }}
limit = {{ kind = "number", source = "shop", required = true }}
tags = {{ kind = "multi", source = "shop" }}
tier = {{ kind = "category", source = "shop", default = "none" }}
hour = {{ kind = "bucket", edges = [6, 12] }}
[extractors.told]
version = "1"
outputs.of = 1
""")
WORDS = Vocabularies({"context.tags": ["a", "b"], "context.tier": ["gold", "none"]}, [])
PLANS = plans({}, SPEC)
GOOD = {"credit": 3.5, "limit": 1, "tags": ["a"], "tier": "gold", "hour": 7, "more": "x"}


class Told:
    """An extractor that remembers the contexts that it was given."""

    def __init__(self) -> None:
        self.contexts: list[dict[str, Any]] = []

    def __call__(self, _: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
        self.contexts = [dict(context) for context in requests.contexts]
        return {"of": np.array([[len(context)] for context in requests.contexts], dtype=np.float32)}


def nobody(rows: int, encoding: Encoding) -> UserFeatures:
    return tensors.user_features([None] * rows, np.full(rows, EVERYTHING_MS), encoding)


async def served(contexts: list[dict[str, Any] | None]) -> tuple[Inputs, list[dict[str, Any]]]:
    """What a recall worker makes of requests with these contexts, whose source knows nothing."""
    told, clock = Told(), SystemClock()
    encoding = Encoding(SPEC, WORDS, {"told": told})
    rows = []
    for n, context in enumerate(contexts):
        incoming = Incoming(RecallRequest(request_id=f"r{n}", user_id=f"u{n}", context=context), clock.now_ms())
        asked = admit(incoming, View(encoding, 2, "v", "c", PLANS), clock.now_ms())
        assert not isinstance(asked, CandidateList)
        rows.append(Row(asked))
    fields = SPEC.sourced["shop"]
    features = CachedFeatures(MemoryFeatureSource({}), list(fields), ttl_ms=0, size=10)
    sourcing = Sourcing({"shop": Asking("features.shop", features, fields, 1000)})
    await sourcing.run(rows, Attempts(Dependencies("recall", Metrics()), clock, clock.now_ms() + 10_000))
    none = np.zeros((len(rows), SPEC.history.length, 0), dtype=np.float32)
    filled = [row.context for row in rows]
    inputs, failed = user_inputs(nobody(len(rows), encoding), none, np.zeros(len(rows), np.int64), filled, encoding)
    assert not failed
    del inputs["history_vectors"]
    return inputs, told.contexts


def sampled(contexts: list[dict[str, Any] | None]) -> tuple[Inputs, list[dict[str, Any]]]:
    """What a training sample makes of events with these contexts."""
    told = Told()
    encoding = Encoding(SPEC, WORDS, {"told": told})
    times = np.zeros(len(contexts), np.int64)
    return sample_inputs(nobody(len(contexts), encoding), times, contexts, encoding), told.contexts


@pytest.mark.parametrize(
    "bad",
    [
        {"credit": "310"},
        {"credit": None},
        {"credit": True},
        {"credit": 1e39},
        {"credit": float("nan")},
        {"limit": "1"},
        {"tags": ["a", ""]},
        {"tags": ["b", None]},
        {"tags": {"a": 1}},
        {"tier": ""},
        {"tier": ["gold"]},
        {"hour": "7"},
        {"credit": "310", "tags": ["a", ""], "tier": 1e39},
    ],
    ids=str,
)
async def test_a_value_that_is_none_is_seen_alike_in_serving_and_in_training(bad: dict[str, Any]) -> None:
    contexts: list[dict[str, Any] | None] = [GOOD, GOOD | bad, None]
    kept = [None if context is None else dict(context) for context in contexts]
    live, seen_live = await served(contexts)
    inputs, seen = sampled(contexts)
    assert seen == seen_live, "by extractors too"
    assert live.keys() == inputs.keys()
    for name, values in live.items():
        assert inputs[name].tobytes() == values.tobytes(), name
    defaults = {"tier": "none"}
    missing = {name for name in bad if SPEC.context[name].source and name not in defaults}
    expected = {name: value for name, value in (GOOD | bad).items() if name not in missing}
    assert seen[1] == expected | {name: value for name, value in defaults.items() if name in bad}
    assert (seen[0], seen[2]) == (GOOD, defaults)
    assert contexts == kept, "what was asked stays as it is"


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (Field("number"), [3e38, -3e38, 1e30]),
        (Field("number", log=True), [np.log(3e38), 0, np.log(1e30)]),
        (Field("bucket", edges=(0, 1e34)), [3, 1, 2]),
    ],
    ids=["number", "log", "bucket"],
)
def test_a_number_beyond_float32_is_missing(field: Field, expected: list[float]) -> None:
    beyond = [1e39, -1e39, 3.5e38, np.inf, -np.inf, np.nan, 10**400]
    column = tensors.encode_field(field, [3e38, -3e38, 10**30, *beyond], {})
    np.testing.assert_allclose(column[:3], expected, rtol=1e-6)
    assert not column[3:].any()
    assert np.isfinite(column).all()
