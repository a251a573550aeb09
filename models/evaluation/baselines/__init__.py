"""Baselines by name, each fitted on a training timeline. All are rankers, under the same rules as the towers."""

from collections.abc import Callable, Mapping

from models.evaluation.baselines.co_visitation import CoVisitation
from models.evaluation.baselines.decayed_popularity import DecayedPopularity
from models.evaluation.baselines.ease import Ease
from models.evaluation.baselines.ials import Ials
from models.evaluation.baselines.item_knn import ItemKnn
from models.evaluation.baselines.popularity import Popularity
from models.evaluation.ranking import Ranker
from models.evaluation.timeline import Timeline

BASELINES: Mapping[str, Callable[[Timeline], Ranker]] = {
    "popularity": Popularity,
    "decayed-popularity": lambda _: DecayedPopularity(),
    "item-knn": ItemKnn,
    "ease": Ease,
    "ials": Ials,
    "co-visitation": CoVisitation,
}
