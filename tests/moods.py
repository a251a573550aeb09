"""A bundle whose towers go by a value that no event and no request carries: a mood, which some source knows.

Who is in the mood `even` rates films with an even number, who is in the mood `odd` the others; each event says so.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.datasets import Dataset
from models.event_log import EventLog
from models.extractors import Extract
from models.fit import FitOptions, fit
from models.spec import builtin_spec, parse_spec

MOOD = '[context]\nmood = { kind = "category", source = "shop", default = "odd" }\n'
REQUIRED = MOOD.replace('default = "odd"', "required = true")


def mood_of(item_id: str) -> str:
    """The mood in which a film is rated."""
    return "odd" if int(item_id.removeprefix("film-")) % 2 else "even"


def moody_log(dataset: Dataset) -> EventLog:
    """What happened, each event with its mood."""
    catalogue = dataset.catalogue()
    items = catalogue.index_of(dataset.log.item).tolist()
    return replace(dataset.log, contexts=[{"mood": mood_of(catalogue.item_ids[item])} for item in items])


def fit_moody(
    dataset: Dataset, folder: Path, more: str = MOOD, extractors: dict[str, Extract] | None = None, **options: Any
) -> Bundle:
    """Both towers on all that happened."""
    text = f"{builtin_spec('movielens').read_text()}\n{more}"
    given = FitOptions(extractors=extractors or {}, **({"dim": 32, "polish": False} | options))
    return fit(moody_log(dataset), dataset.catalogue(), parse_spec(text), text, folder, given, lambda *_: None)


def share_of(mood: str, item_ids: list[str]) -> float:
    """How much of a list is of one mood."""
    return sum(mood_of(item_id) == mood for item_id in item_ids) / len(item_ids)
