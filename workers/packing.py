"""A bundle from towers that were trained elsewhere, as commands make it: read, complete, verify, write."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import probes, signature
from models.bundle import Bundle, BundleError, Metric, write_bundle
from models.signature import Arrays
from models.spec import SpecError, load_spec
from models.tensors import Encoding
from models.verify import Unfit
from workers.errors import ConfigurationError, ExtraMissing, RecallError
from workers.towers.onnx import declared, open_session
from workers.verifying import Report, verify_bundle

try:
    from models import pack
except ImportError as missing:
    raise ExtraMissing("packing", "fit") from missing

FLOOR = "floor: "
EMBEDDINGS = (signature.USER_EMBEDDING, signature.ITEM_EMBEDDING, signature.HISTORY_EMBEDDING)


@dataclass(frozen=True)
class Job:
    """What to pack."""

    user_tower: Path
    item_tower: Path
    spec: Path
    vocabularies: Path | None
    metric: Metric
    floor: bool


@dataclass(frozen=True)
class Packed:
    """The bundle, what was found of it, and what was added to the towers, in sentences."""

    bundle: Bundle
    report: Report
    notes: list[str]


def run_pack(job: Job, folder: Path, say: Callable[[str], None]) -> Packed:
    """Write `folder/<version>`. Raises RecallError with one line when a check fails, ConfigurationError."""
    try:
        spec, features = load_spec(job.spec), job.spec.read_text(encoding="utf-8")
    except SpecError as error:
        raise ConfigurationError(str(error)) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    say("reading towers")
    try:
        encoding = Encoding(spec, pack.read_vocabularies(job.vocabularies, spec))
        models = {path: pack.read_tower(path) for path in (job.user_tower, job.item_tower)}
        sizes = _sizes(job.item_tower, pack.opsets(models[job.item_tower]), signature.item_inputs(encoding))
        sizes += _sizes(job.user_tower, pack.opsets(models[job.user_tower]), None)
        dim = pack.dimension(sizes)
        user = pack.complete(models[job.user_tower], signature.user_inputs(encoding, dim), signature.user_outputs(dim))
        item = pack.complete(models[job.item_tower], signature.item_inputs(encoding), signature.item_outputs(dim))
        with tempfile.TemporaryDirectory(prefix=".pack-", dir=folder) as trial:
            contents: dict[str, Any] = {
                "towers": (user.model, item.model),
                "features": features,
                "encoding": encoding,
                "dim": dim,
                "metric": job.metric,
            }
            report = verify_bundle(write_bundle(Path(trial), **contents, figures={}).path, say=say)
            _refuse(report, job)
        bundle = write_bundle(folder, **contents, figures={"packed": True, "latency_ms": report.latency_ms})
    except (pack.PackError, BundleError) as error:
        raise RecallError(str(error)) from error
    notes = [
        f"{path} does not read {', '.join(completed.unread)}"
        for path, completed in ((job.user_tower, user), (job.item_tower, item))
        if completed.unread
    ]
    if item.one_vector:
        notes.append(f"{job.item_tower} has no {signature.HISTORY_EMBEDDING}: {signature.ITEM_EMBEDDING} stands for it")
    return Packed(bundle, report, notes)


def _sizes(path: Path, opsets: str, inputs: Arrays | None) -> list[tuple[str, int]]:
    """How many dimensions each output has: as declared, else, when inputs are given, as it comes out for nobody."""
    try:
        session = open_session(path)
    except Unfit as error:
        raise RecallError(f"{path} (opset {opsets}) {error}") from error
    outputs = declared(session.get_outputs())
    wanted = signature.USER_EMBEDDING if inputs is None else signature.ITEM_EMBEDDING
    if wanted not in outputs:
        raise RecallError(f"{path}: output {wanted!r} is missing, there is {', '.join(sorted(outputs))}")
    last = {name: node.shape[-1] for name, node in outputs.items() if name in EMBEDDINGS and len(node.shape) == 2}
    if inputs is not None and not isinstance(last.get(wanted), int):
        last[wanted] = _found_size(path, session, wanted, inputs)
    return [(f"{path}: {name}", size) for name, size in last.items() if isinstance(size, int)]


def _found_size(path: Path, session: Any, output: str, inputs: Arrays) -> int:
    """Of the vectors of an item of which nothing is known."""
    feed = {name: array for name, array in probes.nothing(inputs).items() if name in declared(session.get_inputs())}
    try:
        return int(session.run([output], feed)[0].shape[-1])
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise RecallError(f"{path}: fails on 1 row: {' '.join(str(error).split())}") from error


def _refuse(report: Report, job: Job) -> None:
    """Raises RecallError with the first check that failed, of a tower under the name of its file."""
    failed = [each for each in report.failed if job.floor or not each.check.startswith(FLOOR)]
    if not failed:
        return
    first = failed[0]
    path = {"user": job.user_tower, "item": job.item_tower}.get(first.check.split()[0])
    line = f"{first.check}: {first.line}" if path is None else f"{path}: {first.line}"
    hint = "; --no-floor packs it all the same" if first.check.startswith(FLOOR) else ""
    raise RecallError(f"{line}{hint}")
