"""Lists of users who have seen much: are they whole, are they right, what do they cost. On MovieLens-1M.

500 heavy readers (500 to 2,000 seen items) and 500 light ones (the fewest seen) of `readers`, towers fitted as the demo
fits them, on what is not held out; everything over Kafka, on workers of its own.

- `short_lists`: heavy readers with fewer than 100 candidates although at least 100 items of the catalogue are unseen.
- `recall_at_100`: of the heavy readers' held-out target events (their newest 20 events) the part whose item is in the
  live list; `recall_at_100_exact`: the part whose exact rank among all unseen items is below 100, computed offline with
  the bundle's own towers.
- `overlap_at_100`: the part of the live lists' items whose exact rank is below 100; what is missing counts against it.
  Equal items (of one year and the same genres, never rated) share their mean rank, so a group of equals that stands
  across the border counts as wrong: exact search reaches .999.
- `p50_ratio`: p50 of heavy readers over that of light ones at the same paced load, the median of rounds in turn.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from models import datasets
from models.bundle import Bundle
from models.datasets import Dataset
from models.spec import builtin_spec, load_spec
from schemas.recall import CandidateList, RecallRequest, Status
from workers import topics, views
from workers.bench import readers as who
from workers.bench.home import Home
from workers.bench.load import Job as Load
from workers.bench.readers import Reader
from workers.client import RecallClient
from workers.errors import RecallError
from workers.fitting import Job, Source, exact_ranks, fit_bundle
from workers.index.milvus_client import MilvusClient
from workers.index.milvus_collection import merged, seal, verified_index
from workers.index.schema import Collection
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import group_lag, produce
from workers.settings import Settings

DATA = "movielens-1m"
READERS = 500
K = 100
ROUNDS = 4
PER_SECOND = 100.0
ROUND_REQUESTS = 400
TIMEOUT_MS = 10_000
TAKEN_IN_WITHIN_S = 180.0
MERGED_WITHIN_S = 30.0
IN_FLIGHT = 16


@dataclass(frozen=True)
class Ranked:
    """Exact ranks, from 0, among all items that a reader had not seen: of its held-out targets, of its live list."""

    targets: list[list[int]]
    target_ranks: Sequence[float]
    lists: list[list[int]]
    list_ranks: Sequence[float]


def measure(home: Home) -> dict[str, Any]:
    """All figures. Raises RecallError."""
    settings = home.settings.model_copy(update={"namespace": "seen"})
    home.say(f"reading {DATA}")
    try:
        dataset = datasets.load(DATA, home.say)
    except datasets.DatasetError as error:
        raise RecallError(str(error)) from error
    heavy, light = who.heavy_readers(dataset, READERS), who.light_readers(dataset, READERS)
    home.say("fitting towers")
    source = _source(dataset, heavy)
    job = Job(dim=64, polish=None, seed=0, until_ms=None, evaluate=False)
    bundle = fit_bundle(source, job, settings.data_dir / "bundles", lambda _: None)
    asyncio.run(_activate(settings, bundle))
    workers = home.workers(settings)
    known = {reader.user_id: reader for reader in (*heavy, *light)}  # no user is both
    home.say(f"streaming {len(dataset.item_ids):,} items and the activity of {len(known):,} readers in")
    index_type = asyncio.run(_take_in(settings, bundle, dataset, list(known.values())))
    paced = _rounds(home, settings, {"light": light, "heavy": heavy})
    home.say("comparing the lists with exact ones")
    answers = asyncio.run(_lists(settings, dataset, heavy, bundle.spec.history.time_resolution_ms))
    figures = quality(dataset, heavy, answers, _ranked(dataset, source, bundle, heavy, answers))
    workers.stop()
    return {"items": len(dataset.item_ids), "index_type": index_type, **figures, **paced, **_of(dataset, heavy, light)}


def quality(
    dataset: Dataset, heavy: Sequence[Reader], answers: Sequence[CandidateList], ranked: Ranked
) -> dict[str, Any]:
    """What the heavy readers' lists are worth. One answer per reader, in order."""
    unseen = [len(dataset.item_ids) - len(reader.seen(dataset)) for reader in heavy]
    short = sum(len(answer.item_ids) < min(K, left) for answer, left in zip(answers, unseen, strict=True))
    found = sum(len(set(items) & set(shown)) for items, shown in zip(ranked.targets, ranked.lists, strict=True))
    targets = max(1, len(ranked.target_ranks))
    return {
        "short_lists": short,
        "recall_at_100": round(found / targets, 4),
        "recall_at_100_exact": round(float((np.array(ranked.target_ranks) < K).sum()) / targets, 4),
        "overlap_at_100": round(float((np.array(ranked.list_ranks) < K).sum()) / sum(min(K, n) for n in unseen), 4),
        "targets": len(ranked.target_ranks),
        "answers_ok": sum(answer.status is Status.OK for answer in answers),
    }


def ratios(p50_ms: dict[str, list[float]]) -> list[float]:
    """p50 of heavy over light, round by round, rising."""
    return sorted(round(slow / fast, 3) for fast, slow in zip(p50_ms["light"], p50_ms["heavy"], strict=True))


def _source(dataset: Dataset, heavy: Sequence[Reader]) -> Source:
    path = builtin_spec(dataset.spec)
    return Source(who.fit_log(dataset, heavy), dataset.catalogue, load_spec(path), path.read_text(), None)


async def _activate(settings: Settings, bundle: Bundle) -> None:
    await topics.apply(settings)
    await views.activate(settings, bundle.path, bundle.version)


async def _take_in(settings: Settings, bundle: Bundle, dataset: Dataset, everybody: Sequence[Reader]) -> str:
    """Stream catalogue and activity in, wait until both are there, and say which index holds the catalogue."""
    await produce(settings, settings.topic("item-updates"), item_messages(dataset.items()))
    await wait_for_items(settings)
    collection = Collection(settings.collection(bundle.version), bundle.dim, bundle.metric, bundle.version)
    await seal(settings, collection)
    await merged(settings, collection, MERGED_WITHIN_S)
    await produce(settings, settings.topic("user-activity"), who.messages(dataset, everybody))
    end_s = time.monotonic() + TAKEN_IN_WITHIN_S
    while lag := await group_lag(settings, settings.group("recall-activity"), settings.topic("user-activity")):
        if time.monotonic() > end_s:
            raise RecallError(f"{lag} activities are not taken in after {TAKEN_IN_WITHIN_S:.0f} s")
        await asyncio.sleep(0.2)
    client = MilvusClient(settings)
    try:
        index = await verified_index(client, collection)
    finally:
        await client.close()
    return "none" if index is None else index["index_type"]


def _rounds(home: Home, settings: Settings, groups: dict[str, Sequence[Reader]]) -> dict[str, Any]:
    """Light and heavy readers in turn at the same rate; the first round of each only warms up."""
    home.say(
        f"{ROUNDS} rounds of {ROUND_REQUESTS} requests, {PER_SECOND:.0f} a second, light and heavy readers in turn"
    )
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in groups}
    for number in range(ROUNDS + 1):
        for name, group in groups.items():
            users = [reader.user_id for reader in group]
            job = Load(f"{name}{number}", users, ROUND_REQUESTS, PER_SECOND, TIMEOUT_MS, K)
            reports[name].append(home.job("load", job, settings).report(120))
    measured = {name: found[1:] for name, found in reports.items()}
    in_rounds = ratios({name: [one["p50_ms"] for one in found] for name, found in measured.items()})
    return {
        "p50_ratio": round(median(in_rounds), 3),
        "p50_ratios": in_rounds,
        **{
            name: {
                "p50_ms": round(median(one["p50_ms"] for one in found), 1),
                "p99_ms": round(median(one["p99_ms"] for one in found), 1),
                "statuses": dict(sum((Counter(one["statuses"]) for one in found), Counter[str]())),
            }
            for name, found in measured.items()
        },
    }


async def _lists(settings: Settings, dataset: Dataset, heavy: Sequence[Reader], step_ms: int) -> list[CandidateList]:
    """One answer of each reader, as of when the last known event had become visible."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async with RecallClient(settings) as client:

        async def ask(number: int, reader: Reader) -> CandidateList:
            request = RecallRequest(
                request_id=f"list-{number}",
                user_id=reader.user_id,
                timestamp_ms=reader.as_of_ms(dataset, step_ms),
                k=K,
                timeout_ms=TIMEOUT_MS,
            )
            async with places:
                return await client.ask(request)

        return await asyncio.gather(*(ask(number, reader) for number, reader in enumerate(heavy)))


def _ranked(
    dataset: Dataset, source: Source, bundle: Bundle, heavy: Sequence[Reader], answers: Sequence[CandidateList]
) -> Ranked:
    """One pass for both: what was held out and what was shown."""
    index = {item_id: n for n, item_id in enumerate(dataset.item_ids)}
    lists = [[index[item_id] for item_id in answer.item_ids] for answer in answers]
    targets = who.held_out_targets(dataset, heavy, bundle.encoding)
    asked = who.window(
        dataset,
        heavy,
        [[*wanted, *shown] for wanted, shown in zip(targets, lists, strict=True)],
        bundle.spec.history.time_resolution_ms,
    )
    known = Source(who.known_log(dataset, heavy), source.known_until, source.spec, source.features, None)
    ranks = exact_ranks(known, dataset.catalogue(), bundle, asked, lambda _: None)
    is_wanted = np.concatenate(
        [np.arange(len(wanted) + len(shown)) < len(wanted) for wanted, shown in zip(targets, lists, strict=True)]
    )
    return Ranked(targets, ranks[is_wanted], lists, ranks[~is_wanted])


def _of(dataset: Dataset, heavy: Sequence[Reader], light: Sequence[Reader]) -> dict[str, Any]:
    """Who they were: how many are two users under one id, and how much they had seen (least, median, most)."""
    seen = {
        name: [len(reader.seen(dataset)) for reader in group] for name, group in (("heavy", heavy), ("light", light))
    }
    return {
        "readers": {name: len(counts) for name, counts in seen.items()},
        "households": sum(len(reader.members) > 1 for reader in heavy),
        "seen_items": {name: [min(counts), round(median(counts)), max(counts)] for name, counts in seen.items()},
    }
