"""Our own films: a catalogue, tastes and sittings made up from a seed, for trials without a download."""

import numpy as np
from numpy.typing import NDArray

from models.datasets.dataset import Dataset

GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Mystery", "Romance", "SciFi", "Thriller", "War", "Western")
FIRST = (
    "Silent",
    "Crimson",
    "Last",
    "Hidden",
    "Golden",
    "Broken",
    "Distant",
    "Burning",
    "Frozen",
    "Restless",
    "Little",
)
SECOND = ("Harbour", "Garden", "Letter", "Empire", "River", "Witness", "Summer", "Station", "Mirror", "Orchard", "Road")
THIRD = ("", " of Glass", " at Dawn", " Revisited", " Without Rain", " in Winter", " and Other Lies", " II", " Forever")
START_MS = 1_600_000_000_000
DAY_MS = 86_400_000
TASTES = 8


def generate(items: int = 2000, users: int = 1500, events: int = 150_000, seed: int = 7) -> Dataset:
    """Films with genres and years, users with a few latent tastes, rated in sittings; the same for the same arguments.

    What a user rates next depends on a taste that drifts from sitting to sitting, on genres and on popularity, so that
    recent history, content and popularity each tell something.
    """
    rng = np.random.default_rng(seed)
    genres = rng.random((items, len(GENRES))) < 0.18
    genres[np.arange(items), rng.integers(0, len(GENRES), items)] = True
    years = rng.integers(1930, 2021, items)
    appeal = rng.standard_normal(items)
    tastes = rng.standard_normal((TASTES, len(GENRES))) * 1.6
    quirks = rng.standard_normal((TASTES, items)) * 1.2  # what no attribute tells
    scores = tastes @ genres.T / np.sqrt(genres.sum(1)) + quirks + 0.9 * appeal + (years - 1975) / 60
    chance = np.exp(scores - scores.max(1, keepdims=True))
    cumulative = np.cumsum(chance / chance.sum(1, keepdims=True), axis=1)

    user, item, time_ms, liked = _sittings(rng, users, events, cumulative, scores)
    order = np.lexsort((user, time_ms))
    user, item, time_ms, liked = user[order], item[order], time_ms[order], liked[order]
    rating = np.clip(np.round(3.4 + 0.9 * liked + 0.6 * rng.standard_normal(len(liked))), 1, 5)
    first_ms = np.full(users, START_MS)
    first_ms[user[::-1]] = time_ms[::-1]
    ages, occupations = rng.integers(18, 70, users), rng.integers(0, 12, users)
    profiles = [
        (
            n,
            int(first_ms[n]) - 1000,
            {"gender": "FM"[n % 2], "age": str(ages[n] // 10), "occupation": str(occupations[n])},
        )
        for n in range(users)
    ]
    attributes = [
        {
            "title": _title(n),
            "genres": [name for name, has in zip(GENRES, row, strict=True) if has],
            "year": int(year),
        }
        for n, (row, year) in enumerate(zip(genres, years, strict=True))
    ]
    return Dataset(
        name="generated",
        spec="movielens",
        item_ids=[f"film-{n}" for n in range(items)],
        attributes=attributes,
        item_added_ms=np.full(items, START_MS - DAY_MS),
        user_ids=[f"user-{n}" for n in range(users)],
        profiles=profiles,
        actions=("rate",),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        action=np.zeros(len(user), dtype=np.int8),
        value=rating.astype(np.float32),
        timestamp_ms=time_ms,
        validation_ms=int(np.quantile(time_ms, 0.7)) // 1000 * 1000,
        test_ms=int(np.quantile(time_ms, 0.8)) // 1000 * 1000,
    )


def _sittings(
    rng: np.random.Generator, users: int, events: int, cumulative: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Users sit down to rate a dozen films of one taste; no film twice by the same user; some sit more often."""
    weight = rng.pareto(1.5, users) + 0.2
    preference = rng.dirichlet(np.full(TASTES, 0.4), users)
    columns: list[tuple[int, int, int, float]] = []
    rated: list[set[int]] = [set() for _ in range(users)]
    sitters = rng.choice(users, size=2 * events // 10, p=weight / weight.sum())
    begins = np.sort(rng.integers(0, 365 * DAY_MS, len(sitters)))
    for who, begin in zip(sitters.tolist(), begins.tolist(), strict=True):
        if len(columns) >= events:
            break
        taste = int(rng.choice(TASTES, p=preference[who]))
        drawn = np.searchsorted(cumulative[taste], rng.random(int(rng.integers(4, 24)))).tolist()
        at_ms = START_MS + begin // 1000 * 1000
        for film in dict.fromkeys(drawn):
            if film not in rated[who]:
                rated[who].add(film)
                at_ms += int(rng.integers(5, 60)) * 1000
                columns.append((who, film, at_ms, float(np.clip(scores[taste, film] / 3, -2, 2))))
    user, item, time_ms, liked = (np.array(column) for column in zip(*columns, strict=True))
    return user, item, time_ms, liked


def _title(number: int) -> str:
    first = FIRST[number % len(FIRST)]
    second = SECOND[number // len(FIRST) % len(SECOND)]
    third = THIRD[number // (len(FIRST) * len(SECOND)) % len(THIRD)]
    return f"The {first} {second}{third}" + (f" {number // 1089 + 1}" if number >= 1089 else "")
