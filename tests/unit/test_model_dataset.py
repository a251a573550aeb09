"""`recall model dataset`: rows are those that training makes of the same events, each as its record stood just then."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from pyarrow import parquet

from models.bundle import load_bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.event_log import Catalogue
from models.spec import Field, builtin_spec, load_spec
from models.tensors import Encoding, build_vocabularies
from models.training.samples import training_set
from schemas import codec
from schemas.activity import UserActivity
from tests.e2e.conftest import fit_small
from workers.errors import ConfigurationError, RecallError
from workers.event_sources import Events, open_events
from workers.pipelines.activity_event import ActivityEvent
from workers.sampling import Job, write_dataset
from workers.settings import Settings

FILMS = generate(items=40, users=15, events=400)
FACTS = ("user_id", "event_id", "timestamp_ms", "item_id", "item", "history_items")


def job(dataset: Dataset, folder: Path, **fields: Any) -> Job:
    path = builtin_spec(dataset.spec)
    values = {"bundle": None, "since_ms": None, "until_ms": None} | fields
    return Job(folder, load_spec(path), path.read_text(), **values)


def written(given: Dataset | tuple[Path, Path], what: Job) -> dict[str, Any]:
    async def write() -> dict[str, Any]:
        async with open_events(Settings(), given, what.until_ms) as events:
            return await write_dataset(events, what, lambda *_: None)

    return asyncio.run(write())


def columns(path: Path) -> dict[str, np.ndarray]:
    """As a trainer reads them."""
    table = parquet.read_table(path)
    found = {name: table[name].combine_chunks() for name in table.schema.names}
    return {name: _array(values) for name, values in found.items()}


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "flatten") and "list" in str(values.type):
        return values.flatten().to_numpy().reshape(len(values), -1)
    return values.to_numpy(zero_copy_only=False)


@pytest.mark.parametrize("dataset", [FILMS, generate_marketplace(80, 30, 300)], ids=lambda d: d.name)
def test_rows_are_the_samples_of_training_byte_for_byte(dataset: Dataset, tmp_path: Path) -> None:
    about = written(dataset, job(dataset, tmp_path / "made"))
    found = columns(tmp_path / "made" / "samples.parquet")
    log, catalogue = dataset.log, dataset.catalogue()
    spec = load_spec(builtin_spec(dataset.spec))
    encoding = Encoding(spec, build_vocabularies(log, catalogue.item_ids, catalogue.attributes, spec))
    samples = training_set(log, catalogue, encoding)
    users = [log.user_ids[user] for user in samples.user[samples.request].tolist()]
    wanted = sorted(zip(users, samples.as_of_ms[samples.request].tolist(), samples.item.tolist(), strict=True))
    places = np.lexsort((found["item"], found["timestamp_ms"], found["user_id"].astype(str)))
    got = [found[name][places].tolist() for name in ("user_id", "timestamp_ms", "item")]
    assert list(zip(*got, strict=True)) == wanted
    assert about["samples"] == len(wanted) > 50
    order = sorted(range(len(users)), key=lambda n: (users[n], samples.as_of_ms[samples.request[n]], samples.item[n]))
    requests = samples.request[order]
    np.testing.assert_array_equal(found["history_items"][places], samples.history[requests])
    inputs = samples.batch(requests)
    assert about["inputs"].keys() == inputs.keys() == found.keys() - {*FACTS}
    for name, values in inputs.items():
        assert found[name][places].tobytes() == values.tobytes(), name
        assert about["inputs"][name] == {"type": str(values.dtype), "shape": list(values.shape[1:])}, name
    items = columns(tmp_path / "made" / "items.parquet")
    assert items["item_id"].tolist() == list(catalogue.item_ids)
    assert items["item_code"].tolist() == list(range(1, len(catalogue) + 1))
    assert json.loads((tmp_path / "made" / "dataset.json").read_text())["spec_hash"] == spec.hash


def rate(number: int, at_s: int, **fields: Any) -> UserActivity:
    values = {"event_id": f"e{number}", "user_id": "u", "action": "rate", "value": 5.0, "item_id": f"film-{number}"}
    return UserActivity(**(values | {"timestamp_ms": 1000 * at_s} | fields))


class Kept(Events):
    """Events in the order given; None forgets the user `u`."""

    name = "kept"

    def __init__(self, activities: Sequence[UserActivity | None]) -> None:
        self.unreadable = {}
        self._activities = activities

    async def catalogue(self) -> Catalogue:
        return FILMS.catalogue()

    async def activity(self) -> AsyncIterator[list[ActivityEvent]]:
        yield [ActivityEvent("u", each, 10**6, 0, n) for n, each in enumerate(self._activities)]

    def part(self) -> None:
        return None


def rows(
    activities: Sequence[UserActivity | None], folder: Path, **fields: Any
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What was said, and of each row by its event the items of its history, oldest first."""
    about = asyncio.run(write_dataset(Kept(activities), job(FILMS, folder, **fields), lambda *_: None))
    found = columns(folder / "samples.parquet")
    histories = [[item for item in history if item >= 0] for history in found["history_items"].tolist()]
    return about, dict(zip(found["event_id"].tolist(), histories, strict=True))


def test_a_row_sees_what_stood_before_its_second_and_nothing_that_came_later(tmp_path: Path) -> None:
    late = rate(5, at_s=11)
    about, found = rows([rate(1, 10), rate(2, 20), rate(3, 20), rate(2, 20), late, rate(4, 30)], tmp_path / "made")
    assert found == {"e1": [], "e2": [1], "e3": [1], "e5": [1], "e4": [1, 5, 3, 2]}, "of one second by hash"
    assert about["left_out"] == {"unknown_item": 0, "duplicate": 1, "too_late": 0, "forgotten": 0}


def test_only_targets_on_known_items_are_rows_and_everything_is_history(tmp_path: Path) -> None:
    other = [rate(1, 10, value=2.0), rate(2, 20, action="view"), rate(3, 30, item_id="nowhere"), rate(4, 40)]
    about, found = rows(other, tmp_path / "made")
    assert found == {"e4": [1, 2]}
    assert about["left_out"]["unknown_item"] == 1


def test_a_range_bounds_positives_but_not_their_histories(tmp_path: Path) -> None:
    events = [rate(n, 10 * n) for n in range(1, 6)]
    about, found = rows(events, tmp_path / "made", since_ms=30_000, until_ms=50_000)
    assert found == {"e3": [1, 2], "e4": [1, 2, 3]}
    assert (about["first_ms"], about["last_ms"], about["events"]) == (30_000, 40_000, 5)


def test_nothing_from_before_a_user_was_forgotten_is_written(tmp_path: Path) -> None:
    about, found = rows([rate(1, 10), rate(2, 20), None, rate(3, 2000), rate(4, 2001)], tmp_path / "made")
    assert found == {"e3": [], "e4": [3]}
    assert about["left_out"]["forgotten"] == 2


def test_a_bundle_lends_its_codes(tmp_path: Path) -> None:
    bundle = fit_small(FILMS, tmp_path)
    path = tmp_path / "items.jsonl", tmp_path / "activity.jsonl"
    path[0].write_bytes(b"".join(codec.encode_event(each) + b"\n" for each in list(FILMS.items())[:9][::-1]))
    path[1].write_bytes(b"".join(codec.encode_event(rate(n, n)) + b"\n" for n in range(1, 5)))
    about = written(path, job(FILMS, tmp_path / "made", bundle=load_bundle(bundle.path)))
    items = columns(tmp_path / "made" / "items.parquet")
    assert about["bundle"] == bundle.version
    assert items["item_code"].tolist() == [bundle.encoding.vocabularies.item_codes[each] for each in items["item_id"]]
    assert (tmp_path / "made" / "vocabularies.json").read_bytes() == (bundle.path / "vocabularies.json").read_bytes()


def test_an_empty_folder_is_filled_and_a_column_without_width_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    spec = load_spec(builtin_spec("movielens"))
    spec = structs.replace(spec, profile={"hobbies": Field("multi"), "age": Field("category")})
    asyncio.run(write_dataset(Kept([rate(1, 10)]), replace(job(FILMS, Path()), spec=spec), lambda *_: None))
    found = columns(tmp_path / "made" / "samples.parquet")
    assert "profile_age" in found
    assert "profile_hobbies" not in found


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecallError, match="no 'rate' event that is a target names an item of the catalogue"):
        rows([rate(1, 10, item_id="nowhere")], tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    rows([rate(1, 10)], tmp_path / "made")
    with pytest.raises(ConfigurationError, match=r"--to: .*made is there already"):
        rows([rate(1, 10)], tmp_path / "made")
