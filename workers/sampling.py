"""A data set of training samples: one row for each positive, with what the user tower would have been given for it.

Events are read twice in log order: first for the values that become codes and for who is to be forgotten, then for the
samples. Records are merged and read by the code that serves, so a sample is what a worker would have built just then.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from models import signature
from models.bundle import FEATURES, VOCABULARIES, Bundle, encode_vocabularies
from models.event_log import Catalogue
from models.extractors import Extract
from models.positives import sample_inputs, target_events
from models.spec import Spec
from models.tensors import Encoding, ValueCounts, item_inputs, user_features
from schemas.activity import UserActivity
from schemas.records import UserRecord, hash64, hash64_each
from workers.errors import ConfigurationError, RecallError
from workers.event_sources import Events
from workers.histories import Histories
from workers.parquet_columns import ParquetColumns
from workers.pipelines.activity_event import ActivityEvent

FORMAT = 1
ROWS = 8192  # of a row group: some 8 MB in memory with a history of 50
SAMPLES, ITEMS, ABOUT = "samples.parquet", "items.parquet", "dataset.json"

Progress = Callable[[str, float | None], None]
Place = tuple[int, int, int]
"""Where an event stands in its log: the broker's time, partition, offset."""


@dataclass(frozen=True)
class Job:
    """What to write where. With a bundle its vocabularies count, else those of the events. Times are of events."""

    folder: Path
    spec: Spec
    features: str
    bundle: Bundle | None
    since_ms: int | None
    until_ms: int | None
    extractors: Mapping[str, Extract] = field(default_factory=dict)  # the code of those that the spec names


@dataclass
class _Positives:
    """Positives that are not written yet, in parallel: the event, and the record before it."""

    activities: list[UserActivity] = field(default_factory=list)
    records: list[UserRecord] = field(default_factory=list)


async def write_dataset(events: Events, job: Job, say: Progress) -> dict[str, Any]:
    """Write the folder, and return what its dataset.json says. Atomic: it is there as a whole or not at all.

    Raises ConfigurationError when it is there already or cannot be made, RecallError when it cannot be written, or when
    events cannot be read or hold no positive.
    """
    if job.folder.exists() and (not job.folder.is_dir() or any(job.folder.iterdir())):
        raise ConfigurationError(f"--to: {job.folder} is there already")
    folder = job.folder.resolve()  # `.` has no name
    temporary = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"{job.folder} cannot be written: {error.strerror}") from error
    try:
        about = await _Writing(events, job, temporary, say).run()
        temporary.rename(folder)
    except OSError as error:
        raise RecallError(f"{job.folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return about


class _Writing:
    """One data set on its way."""

    def __init__(self, events: Events, job: Job, folder: Path, say: Progress) -> None:
        self._events = events
        self._job = job
        self._folder = folder
        self._say = say
        self._histories = Histories(job.spec)
        self._forgotten: dict[str, Place] = {}  # user -> where the last tombstone stands
        self._read = 0
        self._of_forgotten = self._of_unknown = 0
        self._span_ms: tuple[int, int] | None = None

    async def run(self) -> dict[str, Any]:
        """dataset.json, once everything is written."""
        job, folder = self._job, self._folder
        started = time.perf_counter()
        self._say("reading items", None)
        catalogue = await self._events.catalogue()
        encoding = await self._encoding(catalogue)
        with ParquetColumns(folder / ITEMS) as items, ParquetColumns(folder / SAMPLES) as samples:
            await self._samples(catalogue, encoding, samples)
            if not samples.rows:
                what = f"no {job.spec.target.action!r} event that is a target names an item of the catalogue"
                raise RecallError(f"{what}; there is nothing to write")
            for columns in _items(catalogue, encoding):
                items.write(columns)
            about = self._about(catalogue, encoding, samples.rows)
            samples.describe({"recall": orjson.dumps(about).decode()})
        (folder / FEATURES).write_text(job.features)
        (folder / VOCABULARIES).write_bytes(encode_vocabularies(encoding.vocabularies))
        (folder / ABOUT).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
        return about | {"seconds": round(time.perf_counter() - started, 1)}

    async def _encoding(self, catalogue: Catalogue) -> Encoding:
        """The first reading: who is to be forgotten, and which values there are."""
        counts = ValueCounts(self._job.spec)
        async for batch in self._batches("reading values"):
            activities = [event.activity for event in batch if event.activity is not None]
            counts.add("profile", [each.attributes for each in activities if each.attributes])
            counts.add("context", [each.context for each in activities if each.context])
            self._forgotten.update((event.user_id, _place(event)) for event in batch if event.activity is None)
        if self._job.bundle is not None:
            return replace(self._job.bundle.encoding, extractors=self._job.extractors)
        counts.add("item", catalogue.attributes)
        return Encoding(self._job.spec, counts.vocabularies(catalogue.item_ids), self._job.extractors)

    async def _samples(self, catalogue: Catalogue, encoding: Encoding, file: ParquetColumns) -> None:
        """The second reading."""
        found = _Positives()
        async for batch in self._batches("writing samples"):
            for event in batch:
                self._take(event, found)
            if len(found.records) >= ROWS:
                self._write(found, catalogue, encoding, file)
                found = _Positives()
        self._write(found, catalogue, encoding, file)

    def _take(self, event: ActivityEvent, found: _Positives) -> None:
        activity, job = event.activity, self._job
        if activity is None:
            self._histories.forget(event.user_id, event.taken_ms)
            return
        before = self._histories.take(activity)
        if before is None or activity.item_id is None or activity.action != job.spec.target.action:
            return
        if job.since_ms is not None and activity.timestamp_ms < job.since_ms:
            return
        if self._forgotten and _place(event) < self._forgotten.get(event.user_id, ()):
            self._of_forgotten += 1
            return
        found.activities.append(activity)
        found.records.append(before)

    def _write(self, found: _Positives, catalogue: Catalogue, encoding: Encoding, file: ParquetColumns) -> None:
        """Those that are targets and name an item of the catalogue, a row group at a time."""
        activities = found.activities
        values = np.array([np.nan if each.value is None else each.value for each in activities], dtype=np.float32)
        actions = np.full(len(values), hash64(encoding.spec.target.action), dtype=np.uint64)
        item = catalogue.index_of(hash64_each([each.item_id or "" for each in activities]))
        targets = target_events(actions, values, encoding.spec)
        self._of_unknown += int(np.count_nonzero(targets & (item < 0)))
        rows = np.flatnonzero(targets & (item >= 0))
        for begin in range(0, len(rows), ROWS):
            piece = rows[begin : begin + ROWS]
            chosen = [activities[row] for row in piece.tolist()]
            as_of_ms = np.array([each.timestamp_ms for each in chosen], dtype=np.int64)
            features = user_features([found.records[row].encode() for row in piece.tolist()], as_of_ms, encoding)
            file.write(
                {
                    "user_id": [each.user_id for each in chosen],
                    "event_id": [each.event_id for each in chosen],
                    "timestamp_ms": as_of_ms,
                    "item_id": [catalogue.item_ids[place] for place in item[piece].tolist()],
                    "item": item[piece].astype(np.int32),
                    "history_items": catalogue.index_of(features.item_hashes).astype(np.int32),
                    **sample_inputs(features, as_of_ms, [each.context for each in chosen], encoding),
                }
            )
            first_ms, last_ms = self._span_ms or (int(as_of_ms[0]), int(as_of_ms[0]))
            self._span_ms = (min(first_ms, int(as_of_ms.min())), max(last_ms, int(as_of_ms.max())))

    async def _batches(self, what: str) -> Any:
        """Events before `until_ms`, with progress told."""
        self._read = 0
        until_ms = self._job.until_ms
        async for batch in self._events.activity():
            self._say(f"{what}: {self._read:,} events", self._events.part())
            self._read += len(batch)
            if until_ms is not None:
                batch = [event for event in batch if event.activity is None or event.activity.timestamp_ms < until_ms]
            yield batch

    def _about(self, catalogue: Catalogue, encoding: Encoding, rows: int) -> dict[str, Any]:
        job, outcomes = self._job, self._histories.outcomes
        declared = signature.user_inputs(encoding, 0)
        del declared["history_vectors"]
        left_out = {
            "unknown_item": self._of_unknown,
            "duplicate": outcomes["duplicate"],
            "too_late": outcomes["too_late"],
            "forgotten": outcomes["forgotten"] + self._of_forgotten,
        }
        return {
            "format": FORMAT,
            "recall_worker": version("recall-worker"),
            "created_ms": time.time_ns() // 1_000_000,
            "spec": encoding.spec.name,
            "spec_hash": encoding.spec.hash,
            "bundle": None if job.bundle is None else job.bundle.version,
            "source": self._events.name,
            "since_ms": job.since_ms,
            "until_ms": job.until_ms,
            "first_ms": self._span_ms[0] if self._span_ms else None,
            "last_ms": self._span_ms[1] if self._span_ms else None,
            "samples": rows,
            "items": len(catalogue),
            "users": len(self._histories),
            "events": self._read,
            "left_out": left_out,
            "unreadable": self._events.unreadable,
            "inputs": {name: {"type": array.type, "shape": list(array.shape)} for name, array in declared.items()},
        }


def _place(event: ActivityEvent) -> Place:
    return event.taken_ms, event.partition, event.offset


def _items(catalogue: Catalogue, encoding: Encoding) -> Iterator[dict[str, Any]]:
    """The item tower's inputs, and the attributes that they were made of, in the order of the catalogue."""
    for begin in range(0, len(catalogue), ROWS):
        ids: Sequence[str] = catalogue.item_ids[begin : begin + ROWS]
        attributes = catalogue.attributes[begin : begin + ROWS]
        yield {
            "item_id": list(ids),
            "attributes": [orjson.dumps(each).decode() for each in attributes],
            **item_inputs(ids, attributes, encoding),
        }
