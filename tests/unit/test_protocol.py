"""The evaluation protocol, against an example that is worked out by hand."""

from dataclasses import replace

import numpy as np
from msgspec import structs

from models.evaluation import protocol
from models.evaluation.timeline import Timeline
from models.event_log import Catalogue, EventLog
from models.spec import Seen, builtin_spec, load_spec
from models.tensors import Encoding, build_vocabularies
from schemas.activity import UserActivity
from schemas.items import ItemUpdate

SPEC = load_spec(builtin_spec("movielens"))


def rate(user: str, second: int, item: str, value: float = 5) -> UserActivity:
    return UserActivity(
        event_id=f"{user}{second}{item}",
        user_id=user,
        action="rate",
        timestamp_ms=second * 1000,
        item_id=item,
        value=value,
    )


LOG = EventLog.from_activities(
    [
        rate("u", 1, "a"),
        rate("u", 10, "b"),  # the window begins here
        rate("u", 10, "c"),
        rate("u", 11, "d", value=3),  # no target
        rate("u", 12, "e"),
        rate("v", 12, "a"),
    ]
)
CATALOGUE = Catalogue.from_updates(ItemUpdate(item_id=i, op="upsert", timestamp_ms=1) for i in "abcde")
ENCODING = Encoding(SPEC, build_vocabularies(LOG, CATALOGUE.item_ids, CATALOGUE.attributes, SPEC))
ASKED = protocol.window(LOG, CATALOGUE, ENCODING, 10_000)


def test_one_request_per_user_and_second_with_a_target() -> None:
    requests = [(LOG.user_ids[u], int(t)) for u, t in zip(ASKED.requests.user, ASKED.requests.as_of_ms, strict=True)]
    assert requests == [("u", 10_000), ("u", 12_000), ("v", 12_000)]
    assert [(int(r), CATALOGUE.item_ids[i]) for r, i in zip(ASKED.request, ASKED.item, strict=True)] == [
        (0, "b"),
        (0, "c"),
        (1, "e"),
        (2, "a"),
    ]
    assert ASKED.known_events.tolist() == [1, 1, 0]
    assert ASKED.earlier_events.tolist() == [1, 4, 0]


def test_what_was_met_in_strictly_earlier_seconds_is_no_candidate() -> None:
    met = Timeline(LOG, CATALOGUE, ENCODING).seen(ASKED.requests)
    names = [sorted(CATALOGUE.item_ids[i] for i in items) for items in met]
    assert names == [["a"], ["a", "b", "c", "d"], []]


def test_the_seen_rule_is_that_of_the_live_system() -> None:
    def met(seen: Seen) -> list[list[str]]:
        encoding = replace(ENCODING, spec=structs.replace(SPEC, seen=seen))
        found = Timeline(LOG, CATALOGUE, encoding).seen(ASKED.requests)
        return [sorted(CATALOGUE.item_ids[i] for i in items) for items in found]

    assert met(Seen(("rate",), window_ms=2000)) == [[], ["b", "c", "d"], []]
    assert met(Seen(("rate",), window_ms=1999)) == [[], ["d"], []]
    assert met(Seen(("rate",), cap=1)) == [["a"], ["d"], []]
    assert met(Seen(("view",), cap=1)) == [[], [], []]


def test_exact_ranks_and_ties() -> None:
    """Users score a 4, b 3, c 2, d 2, e 1: without what was met, b is first, c and d share the next places."""
    scores = np.array([[4], [3], [2], [2], [1]], dtype=np.float32)
    towers = (
        lambda inputs: np.ones((len(inputs["gap_s"]), 1), np.float32),
        lambda _: (scores, np.zeros((5, 1), np.float32)),
    )
    ranks = protocol.exact_ranks(LOG, CATALOGUE, ENCODING, ASKED, towers, lambda _: None)
    assert ranks.tolist() == [0.0, 1.5, 0.0, 0.0]


def test_popularity_counts_what_was_before_the_window() -> None:
    ranks = protocol.popularity_ranks(LOG, CATALOGUE, ENCODING, ASKED, 10_000)
    assert ranks.tolist() == [1.5, 1.5, 0.0, 0.0], "a is the only one that was ever rated before"


def test_metrics_and_subsets() -> None:
    found = protocol.metrics(np.array([0.0, 9.0, 10.0, 99.0]))
    assert (found["recall_at_10"], found["recall_at_50"], found["recall_at_100"]) == (0.5, 0.75, 1.0)
    assert found["ndcg_at_10"] == (1 + 1 / np.log2(11)) / 4
    assert {name: int(rows.sum()) for name, rows in protocol.subsets(ASKED).items()} == {
        "all": 4,
        "warm": 0,
        "new": 1,
        "new<=5": 1,
    }


def test_a_sample_takes_whole_users_and_is_the_same_for_a_seed() -> None:
    assert protocol.sample_users(ASKED, 1, 2, seed=3) == [0, 1]
    chosen = ASKED.of_users([1])
    assert (len(chosen.requests.user), chosen.item.tolist(), chosen.request.tolist()) == (1, [0], [0])
