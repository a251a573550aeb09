"""The closed form on data of our own: it finds what there is to find, for any spec and size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import signature, tensors
from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.evaluation import protocol
from models.evaluation.protocol import Window
from models.event_log import Catalogue, EventLog
from models.fit import FitError, FitOptions, fit
from models.spec import builtin_spec, load_spec, parse_spec
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from workers.towers.onnx import OnnxTower


class Towers:
    """A bundle's towers, run in this thread."""

    def __init__(self, bundle: Bundle) -> None:
        encoding, dim = bundle.encoding, bundle.dim
        self.user = OnnxTower(
            bundle.user_tower, signature.user_inputs(encoding, dim), signature.user_outputs(dim), 1000
        )
        self.item = OnnxTower(bundle.item_tower, signature.item_inputs(encoding), signature.item_outputs(dim), 1000)

    def embed_users(self, inputs: tensors.Inputs) -> np.ndarray:
        return self.user.run(inputs)["user_embedding"]

    def embed_items(self, inputs: tensors.Inputs) -> tuple[np.ndarray, np.ndarray]:
        outputs = self.item.run(inputs)
        return outputs["item_embedding"], outputs["history_embedding"]


def fitted(dataset: Dataset, folder: Path, **options: object) -> Bundle:
    path = builtin_spec(dataset.spec)
    log, known = dataset.log.before(dataset.test_ms), dataset.catalogue(dataset.test_ms)
    return fit(log, known, load_spec(path), path.read_text(), folder, FitOptions(**options), lambda *_: None)


def evaluated(dataset: Dataset, bundle: Bundle) -> tuple[Window, np.ndarray, np.ndarray]:
    catalogue, towers = dataset.catalogue(), Towers(bundle)
    asked = protocol.window(dataset.log, catalogue, bundle.encoding, dataset.test_ms)
    pair = (towers.embed_users, towers.embed_items)
    ranks = protocol.exact_ranks(dataset.log, catalogue, bundle.encoding, asked, pair, lambda _: None)
    popular = protocol.popularity_ranks(dataset.log, catalogue, bundle.encoding, asked, dataset.test_ms)
    return asked, ranks, popular


@pytest.mark.parametrize("polish", [False, True], ids=["closed form", "polished"])
def test_films_are_foretold_better_than_by_popularity(tmp_path: Path, polish: bool) -> None:
    dataset = generate() if polish else generate(items=600, users=500, events=40_000)
    _, ranks, popular = evaluated(dataset, fitted(dataset, tmp_path, polish=polish))
    found, most = protocol.metrics(ranks), protocol.metrics(popular)
    assert found["recall_at_10"] > 1.15 * most["recall_at_10"]
    assert found["recall_at_100"] > most["recall_at_100"]


def test_offers_are_foretold_also_those_that_appeared_after_the_fit(tmp_path: Path) -> None:
    dataset = generate_marketplace()
    asked, ranks, popular = evaluated(dataset, fitted(dataset, tmp_path))
    assert protocol.metrics(ranks)["recall_at_50"] > 2 * protocol.metrics(popular)["recall_at_50"]
    late = dataset.item_added_ms[asked.item] >= dataset.test_ms
    assert late.sum() > 50
    by_chance = 100 / len(dataset.item_ids)
    assert protocol.metrics(ranks[late])["recall_at_100"] > 3 * by_chance, "content places them"


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_every_dimension_also_with_fewer_items_than_that(tmp_path: Path, dim: int) -> None:
    bundle = fitted(generate(items=40, users=50, events=1500), tmp_path, dim=dim)
    items, history = Towers(bundle).embed_items(tensors.item_inputs(["film-0", "new"], [{}, {}], bundle.encoding))
    assert items.shape == history.shape == (2, dim)
    assert np.isfinite(items).all()


def test_the_same_data_and_seed_give_the_same_bundle(tmp_path: Path) -> None:
    dataset = generate(items=80, users=60, events=3000)
    first = fitted(dataset, tmp_path / "a", polish=True)
    assert fitted(dataset, tmp_path / "b", polish=True).version == first.version
    assert fitted(dataset, tmp_path / "c", polish=True, seed=1).version != first.version


def test_an_item_nobody_has_seen_is_placed_by_its_content_and_moves_a_user(tmp_path: Path) -> None:
    dataset = generate(items=600, users=500, events=40_000)
    bundle = fitted(dataset, tmp_path, polish=True)
    towers = Towers(bundle)
    counts = np.bincount(dataset.item, minlength=600)
    model = int(np.argmax(counts))
    new, history = towers.embed_items(tensors.item_inputs(["new"], [dataset.attributes[model]], bundle.encoding))
    assert np.linalg.norm(new[0]) == pytest.approx(0.7, abs=1e-3), "shorter than a learned vector"

    def user(vector: np.ndarray | None) -> np.ndarray:
        inputs = tensors.user_inputs(
            tensors.user_features([None], np.array([tensors.EVERYTHING_MS]), bundle.encoding),
            np.zeros((1, 50, bundle.dim), np.float32),
            np.array([0]),
            [None],
            bundle.encoding,
        )
        if vector is not None:
            inputs["history_vectors"][0, -1] = vector
            inputs["history_codes"][0, -1] = 5
            inputs["event_count"][0] = 1
        return towers.embed_users(inputs)[0]

    assert np.abs(user(history[0]) - user(None)).max() > 1e-3
    assert user(history[0]) @ new[0] > user(None) @ new[0], "towards items like the one that was liked"


def test_an_item_that_stands_in_no_history_of_the_fit_is_placed_by_its_content(tmp_path: Path) -> None:
    """Viewed behind its user's last purchase, or by somebody who bought nothing: it stands in the past of no target."""
    dataset = generate_marketplace(200, 80, 2000)
    late_ms = int(dataset.timestamp_ms.max()) + 1000
    facts = dataset.attributes[int(np.argmax(np.bincount(dataset.item)))]
    names = {"behind": dataset.user_ids[0], "beside": "looks only"}
    views = [
        UserActivity(event_id=item, user_id=user, action="view", timestamp_ms=late_ms, item_id=item)
        for item, user in names.items()
    ]
    log = EventLog.from_activities([*dataset.activities(range(len(dataset.user))), *views])
    added = [ItemUpdate(item_id=item, op="upsert", timestamp_ms=late_ms, attributes=facts) for item in names]
    path = builtin_spec("marketplace")
    known = Catalogue.from_updates([*dataset.items(), *added])
    bundle = fit(log, known, load_spec(path), path.read_text(), tmp_path, FitOptions(dim=32), lambda *_: None)
    _, history = Towers(bundle).embed_items(
        tensors.item_inputs([*names, "nobody touched it"], [facts] * 3, bundle.encoding)
    )
    assert np.linalg.norm(history[2]) > 1e-3
    np.testing.assert_allclose(history, history[[2, 2, 2]], rtol=1e-5)


@pytest.mark.parametrize("polish", [False, True], ids=["closed form", "polished"])
def test_of_more_items_than_get_a_factor_of_their_own_the_others_have_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polish: bool
) -> None:
    monkeypatch.setattr("models.fit.MAX_HISTORY_ITEMS", 60)
    monkeypatch.setattr("models.fit.KEPT_HISTORY_ITEMS", 40)
    dataset = generate_marketplace(200, 80, 2000)
    bundle = fitted(dataset, tmp_path, dim=32, polish=polish)
    known = dataset.catalogue(dataset.test_ms)
    rows = tensors.item_inputs(known.item_ids, known.attributes, bundle.encoding)
    _, history = Towers(bundle).embed_items(rows)
    assert (rows["item_code"] > 0).all()
    assert np.linalg.norm(history, axis=1).min() > 1e-4


@pytest.mark.parametrize("polish", [False, True], ids=["closed form", "polished"])
def test_the_unit_of_a_number_does_not_matter(tmp_path: Path, polish: bool) -> None:
    """Income in millions, or in single coins: the fit must not let it outweigh everything else."""
    dataset = generate_marketplace(200, 80, 2000)
    text = builtin_spec("marketplace").read_text().replace("[profile]", '[profile]\nincome = { kind = "number" }')
    users = np.arange(20)
    at_ms = np.full(20, dataset.test_ms)
    vectors = []
    for unit in (1, 1e6):
        rng = np.random.default_rng(1)
        profiles = [(who, at, {**facts, "income": unit * rng.uniform(0.5, 1)}) for who, at, facts in dataset.profiles]
        log = replace(dataset.log, profiles=profiles)
        options = FitOptions(dim=32, polish=polish)
        bundle = fit(log, dataset.catalogue(), parse_spec(text), text, tmp_path, options, lambda *_: None)
        features = tensors.log_features(log, users, at_ms, bundle.encoding)
        _, history = Towers(bundle).embed_items(
            tensors.item_inputs(dataset.item_ids, dataset.attributes, bundle.encoding)
        )
        known = history[dataset.catalogue().index_of(features.item_hashes)] * (features.item_hashes != 0)[..., None]
        inputs = tensors.user_inputs(features, known, at_ms, [None] * 20, bundle.encoding)
        found = Towers(bundle).embed_users(inputs)
        vectors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    np.testing.assert_allclose((vectors[0] * vectors[1]).sum(1), 1, atol=1e-3)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("section", ["profile", "context", "item"])
@pytest.mark.parametrize("value", [1e39, -3e38, 1e20, 1e-44])
def test_one_number_at_the_ends_of_float32_spoils_no_fit(tmp_path: Path, section: str, value: float) -> None:
    """1e39 is missing. The squares of the next ones are no float32, and neither is 1 divided by the last."""
    dataset = generate_marketplace(60, 40, 800)
    text = builtin_spec("marketplace").read_text().replace(f"[{section}]", f'[{section}]\nsize = {{ kind = "number" }}')
    others = {"size": 2.0} if abs(value) > 1 else {}
    profiles = [(who, at_ms, others | facts) for who, at_ms, facts in dataset.profiles]
    contexts = [others | (context or {}) for context in dataset.contexts]
    attributes = [others | facts for facts in dataset.attributes]
    chosen = int(np.flatnonzero(dataset.action == 2)[0])  # somebody buys something
    facts = {"profile": profiles[dataset.user[chosen]][2], "context": contexts[chosen]}
    facts |= {"item": attributes[dataset.item[chosen]]}
    facts[section]["size"] = value
    log = replace(dataset.log, profiles=profiles, contexts=contexts)
    catalogue = replace(dataset.catalogue(), attributes=attributes)
    bundle = fit(log, catalogue, parse_spec(text), text, tmp_path, FitOptions(dim=32), lambda *_: None)
    towers, at_ms = Towers(bundle), np.full(40, dataset.test_ms)
    items, history = towers.embed_items(
        tensors.item_inputs([*dataset.item_ids, "new"], [*attributes, {"size": 2.0}], bundle.encoding)
    )
    features = tensors.log_features(log, np.arange(40), at_ms, bundle.encoding)
    known = history[catalogue.index_of(features.item_hashes)] * (features.item_hashes != 0)[..., None]
    asked = [{"size": value}, *[{"size": 2.0}] * 39]
    users = towers.embed_users(tensors.user_inputs(features, known, at_ms, asked, bundle.encoding))
    assert np.isfinite(items).all()
    assert np.isfinite(history).all()
    assert np.isfinite(users).all()


def test_nothing_to_learn_is_one_line(tmp_path: Path) -> None:
    path = builtin_spec("movielens")
    log = EventLog.from_activities(
        [UserActivity(event_id="e", user_id="u", action="rate", timestamp_ms=1, item_id="x", value=5)]
    )
    catalogue = Catalogue.from_updates([ItemUpdate(item_id="y", op="upsert", timestamp_ms=1)])
    with pytest.raises(FitError, match="no 'rate' event that is a target names an item of the catalogue"):
        fit(log, catalogue, load_spec(path), path.read_text(), tmp_path, FitOptions(), lambda *_: None)
    with pytest.raises(FitError, match="dim is 48"):
        fit(log, catalogue, load_spec(path), path.read_text(), tmp_path, FitOptions(dim=48), lambda *_: None)


def test_one_user_one_item_is_enough(tmp_path: Path) -> None:
    path = builtin_spec("movielens")
    log = EventLog.from_activities(
        [UserActivity(event_id="e", user_id="u", action="rate", timestamp_ms=1, item_id="x", value=5)]
    )
    catalogue = Catalogue.from_updates([ItemUpdate(item_id="x", op="upsert", timestamp_ms=1)])
    bundle = fit(log, catalogue, load_spec(path), path.read_text(), tmp_path, FitOptions(), lambda *_: None)
    assert bundle.manifest.figures["positives"] == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("users", [1, 1100], ids=["one user", "more than a batch of them"])
def test_towers_are_polished_also_where_nobody_has_a_past(tmp_path: Path, users: int) -> None:
    path = builtin_spec("movielens")
    items = ("x", "y", "z")[:users]
    log = EventLog.from_activities(
        UserActivity(
            event_id="e", user_id=f"u{n}", action="rate", timestamp_ms=n, item_id=items[n % len(items)], value=5
        )
        for n in range(users)
    )
    catalogue = Catalogue.from_updates([ItemUpdate(item_id=item, op="upsert", timestamp_ms=1) for item in items])
    options = FitOptions(polish=True)
    bundle = fit(log, catalogue, load_spec(path), path.read_text(), tmp_path, options, lambda *_: None)
    towers, encoding = Towers(bundle), bundle.encoding
    found, history = towers.embed_items(tensors.item_inputs([*items, "new"], [{}] * (len(items) + 1), encoding))
    features = tensors.log_features(log, np.array([0]), np.array([tensors.EVERYTHING_MS]), encoding)
    none = np.zeros((1, 50, bundle.dim), np.float32)
    user = towers.embed_users(tensors.user_inputs(features, none, np.array([10**6]), [None], encoding))
    assert np.isfinite(found).all()
    assert np.isfinite(history).all()
    assert np.linalg.norm(user) == pytest.approx(1, abs=1e-3)
