"""All checks of a bundle, in order, as a table. The checks stand in `models/verify.py`, which a start uses too."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models import probes, signature, verify
from models.bundle import Bundle, BundleError, load_bundle
from models.event_log import Catalogue
from models.tensors import Inputs, item_inputs
from models.verify import Float32, Unfit
from workers.towers.onnx import OnnxTower, declared, open_session

TIMEOUT_MS = 60_000
SAMPLE = 256  # items, and users who have seen one of them
MAX_KNOWN = 100_000  # items of the vocabulary that are looked at one by one
LATENCY_RUNS = 20
LATENCY_S = 2.0  # at most, of each side and batch

Say = Callable[[str], None]
Side = Literal["user", "item"]


@dataclass(frozen=True)
class Check:
    """One row of the table. Skipped is what needs something that failed."""

    check: str
    result: Literal["ok", "failed", "skipped"]
    line: str


@dataclass
class Report:
    """What was found."""

    checks: list[Check] = field(default_factory=list)
    bundle: Bundle | None = None
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """Those for which it must not be served."""
        return [each for each in self.checks if each.result == "failed"]

    def do(self, name: str, work: Callable[[], str], *needs: str) -> None:
        """Do one check, unless one that it needs is not ok."""
        missing = [each.check for each in self.checks if each.check in needs and each.result != "ok"]
        if missing:
            self.checks.append(Check(name, "skipped", f"needs {missing[0]}"))
            return
        try:
            self.checks.append(Check(name, "ok", work()))
        except (Unfit, BundleError) as error:
            self.checks.append(Check(name, "failed", str(error)))


def verify_bundle(path: Path, catalogue: Catalogue | None = None, say: Say = lambda _: None) -> Report:
    """Check a bundle's folder. `catalogue`: sample its items, in place of ones that are made up from the spec."""
    report = Report()

    def files() -> str:
        report.bundle = bundle = load_bundle(path)
        return f"{len(bundle.manifest.files)} files are those of {bundle.version}, dim {bundle.dim}"

    say("reading files")
    report.do("files", files)
    if report.bundle is not None:
        _Examination(report, report.bundle, catalogue, say).run()
    return report


class _Examination:
    """The towers of a whole bundle."""

    def __init__(self, report: Report, bundle: Bundle, catalogue: Catalogue | None, say: Say) -> None:
        self._report = report
        self._bundle = bundle
        self._catalogue = catalogue if catalogue is not None and len(catalogue) else None
        self._say = say
        encoding, dim = bundle.encoding, bundle.dim
        self._paths = {"user": bundle.user_tower, "item": bundle.item_tower}
        self._inputs = {"user": signature.user_inputs(encoding, dim), "item": signature.item_inputs(encoding)}
        self._outputs = {"user": signature.user_outputs(dim), "item": signature.item_outputs(dim)}
        self._sessions: dict[str, Any] = {}
        self._towers: dict[str, OnnxTower] = {}
        self._probes: dict[str, Inputs] = {}

    def run(self) -> None:
        """Item tower first: its vectors are what users' histories are made of."""
        do = self._report.do
        sides: tuple[Side, ...] = ("item", "user")
        for side in sides:
            self._say(f"{side} tower")
            do(f"{side} tower", partial(self._open, side))
            do(f"{side} inputs", partial(self._declared, side, "input"), f"{side} tower")
            do(f"{side} outputs", partial(self._declared, side, "output"), f"{side} tower")
        do("item finite", partial(self._finite, "item"), "item tower", "item inputs", "item outputs")
        do("user finite", partial(self._finite, "user"), "user tower", "user inputs", "user outputs", "item finite")
        for side in sides:
            do(f"{side} batch", partial(self._batch, side), f"{side} finite")
        do("metric", self._metric, "item finite", "user finite")
        self._say("the floor")
        do("floor: items", self._items_differ, "item finite")
        do("floor: users", self._users_found, "user finite")
        do("floor: seen", self._seen_counts, "user finite", "metric")
        for side in sides:
            self._say(f"latency of the {side} tower")
            do(f"{side} latency", partial(self._latency, side), f"{side} finite")

    def _open(self, side: Side) -> str:
        self._sessions[side] = open_session(self._paths[side])
        return f"opens, {self._paths[side].stat().st_size / 1e6:.1f} MB"

    def _declared(self, side: Side, what: Literal["input", "output"]) -> str:
        session = self._sessions[side]
        nodes, expected = (
            (session.get_inputs(), self._inputs) if what == "input" else (session.get_outputs(), self._outputs)
        )
        return verify.check_declared(what, declared(nodes), expected[side])

    def _finite(self, side: Side) -> str:
        """The rows of a start, ones with numbers, and of the item tower every item of the vocabulary."""
        bundle, inputs, outputs = self._bundle, self._inputs[side], self._outputs[side]
        tower = self._towers[side] = OnnxTower(self._paths[side], inputs, outputs, TIMEOUT_MS)
        verify.check_runs(tower.run, verify.start_inputs(side, bundle.encoding, bundle.dim), outputs)
        if side == "user":
            vectors = self._item_vectors()[signature.HISTORY_EMBEDDING]
            self._probes[side] = probes.users(bundle.encoding, vectors, verify.BATCH, numbers=True)
            return verify.check_runs(tower.run, self._probes[side], outputs)
        codes = np.arange(min(len(bundle.encoding.vocabularies.item_ids), MAX_KNOWN) + 1)
        verify.check_runs(tower.run, probes.nothing(inputs, len(codes)) | {"item_code": codes}, outputs)
        self._probes[side] = probes.different(self._sample())
        line = verify.check_runs(tower.run, self._probes[side], outputs)
        return f"{line}, and for {len(codes) - 1} items of the vocabulary by their codes alone"

    def _sample(self) -> Inputs:
        encoding, catalogue = self._bundle.encoding, self._catalogue
        if catalogue is None:
            return probes.items(encoding, SAMPLE, numbers=True)
        rows = np.random.default_rng(0).permutation(len(catalogue))[:SAMPLE]
        return item_inputs([catalogue.item_ids[n] for n in rows], [catalogue.attributes[n] for n in rows], encoding)

    def _item_vectors(self) -> dict[str, Float32]:
        return self._towers["item"].run(self._probes["item"])

    def _embedded(self, inputs: Inputs) -> Float32:
        return self._towers["user"].run(inputs)[signature.USER_EMBEDDING]

    def _batch(self, side: Side) -> str:
        first = {name: column[: verify.BATCH] for name, column in self._probes[side].items()}
        return verify.check_batch(self._towers[side].run, first)

    def _metric(self) -> str:
        users = self._embedded(self._probes["user"])
        return verify.check_metric(self._bundle.metric, users, self._item_vectors()[signature.ITEM_EMBEDDING])

    def _items_differ(self) -> str:
        return verify.check_items_differ(len(self._probes["item"]["item_code"]), self._item_vectors())

    def _users_found(self) -> str:
        users = self._probes["user"]
        return verify.check_users_found(self._embedded(users), self._embedded(probes.a_minute_later(users)))

    def _seen_counts(self) -> str:
        vectors = self._item_vectors()
        seen = probes.just_seen(self._bundle.encoding, self._inputs["user"], vectors[signature.HISTORY_EMBEDDING])
        return verify.check_seen_counts(self._bundle.metric, self._embedded(seen), vectors[signature.ITEM_EMBEDDING])

    def _latency(self, side: Side) -> str:
        found = {}
        for batch in (1, verify.BATCH):
            rows = {name: column[:batch] for name, column in self._probes[side].items()}
            found[str(batch)] = round(_median_ms(partial(self._towers[side].run, rows)), 3)
        self._report.latency_ms[side] = found
        return f"{found['1']:.2f} ms at batch 1, {found[str(verify.BATCH)]:.2f} ms at batch {verify.BATCH} (median)"


def _median_ms(work: Callable[[], object]) -> float:
    took: list[float] = []
    end_s = time.perf_counter() + LATENCY_S
    while len(took) < LATENCY_RUNS and (not took or time.perf_counter() < end_s):
        started_s = time.perf_counter()
        work()
        took.append((time.perf_counter() - started_s) * 1000)
    return float(np.median(took))
