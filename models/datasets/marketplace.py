"""Our own marketplace: offers with categories, prices and cities that are viewed, put into carts and bought."""

from typing import Any

import numpy as np

from models.datasets.dataset import Dataset

CATEGORIES = ("books", "bikes", "cameras", "chairs", "games", "guitars", "lamps", "phones", "plants", "shoes")
CITIES = ("Aarhus", "Bergen", "Cork", "Delft", "Essen")
TAGS = ("new", "used", "vintage", "handmade", "bundle", "gift")
DEVICES = ("phone", "desktop", "tablet")
ACTIONS = ("view", "cart", "purchase")
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
DAYS = 60
LATE_SHARE = 0.2  # of the items appear after the fit


def generate_marketplace(items: int = 1000, users: int = 800, visits: int = 12_000, seed: int = 11) -> Dataset:
    """Visits of a few offers of one category, near home and in a price range; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, len(CATEGORIES), items)
    city = rng.integers(0, len(CITIES), items)
    price = np.round(np.exp(rng.normal(3.5, 1.0, items)), 2)
    tags = rng.random((items, len(TAGS))) < 0.25
    test_ms = START_MS + int(DAYS * 0.8) * 24 * HOUR_MS
    late = rng.random(items) < LATE_SHARE
    added_ms = np.where(late, test_ms + rng.integers(0, 24 * HOUR_MS, items), START_MS - HOUR_MS)
    home = rng.integers(0, len(CITIES), users)
    interests = rng.dirichlet(np.full(len(CATEGORIES), 0.25), users)
    budget = rng.normal(3.5, 0.8, users)

    rows: list[tuple[int, int, int, int]] = []
    contexts: list[dict[str, Any]] = []
    for begin_ms in np.sort(rng.integers(0, DAYS * 24 * HOUR_MS, visits)).tolist():
        who = int(rng.integers(0, users))
        wanted = int(rng.choice(len(CATEGORIES), p=interests[who]))
        score = 4.0 * (category == wanted) + 1.5 * (city == home[who]) - np.abs(np.log(price) - budget[who])
        score = np.where(added_ms <= START_MS + begin_ms, score, -np.inf) + rng.gumbel(size=items)
        at_ms = START_MS + begin_ms
        context = {"hour": at_ms // HOUR_MS % 24, "device": DEVICES[int(rng.integers(0, len(DEVICES)))]}
        viewed = np.argsort(-score)[: int(rng.integers(2, 7))].tolist()
        steps = [(offer, 0) for offer in viewed] + ([(viewed[0], 1), (viewed[0], 2)] if rng.random() < 0.6 else [])
        for offer, action in steps:
            at_ms += int(rng.integers(2_000, 40_000))
            rows.append((who, offer, action, at_ms))
            contexts.append(context)
    columns = np.array(rows, dtype=np.int64)
    order = np.argsort(columns[:, 3], kind="stable")
    columns = columns[order]
    attributes: list[dict[str, Any]] = [
        {
            "title": f"{CATEGORIES[category[n]][:-1]} {n}",
            "category": CATEGORIES[category[n]],
            "city": CITIES[city[n]],
            "price": float(price[n]),
            "tags": [tag for tag, has in zip(TAGS, tags[n], strict=True) if has],
            "in_stock": True,
        }
        for n in range(items)
    ]
    return Dataset(
        name="marketplace",
        spec="marketplace",
        item_ids=[f"offer-{n}" for n in range(items)],
        attributes=attributes,
        item_added_ms=added_ms,
        user_ids=[f"shopper-{n}" for n in range(users)],
        profiles=[(n, START_MS - HOUR_MS, {"city": CITIES[home[n]]}) for n in range(users)],
        actions=ACTIONS,
        user=columns[:, 0].astype(np.int32),
        item=columns[:, 1].astype(np.int32),
        action=columns[:, 2].astype(np.int8),
        value=np.full(len(columns), np.nan, dtype=np.float32),
        timestamp_ms=columns[:, 3],
        validation_ms=START_MS + int(DAYS * 0.7) * 24 * HOUR_MS,
        test_ms=test_ms,
        contexts=[contexts[n] for n in order.tolist()],
    )
