"""A bundle: two towers and all that belongs to them, in one folder whose every file is named by its checksum.

bundle.json         format, version, dim, metric, spec hash, sha256 of the files below, figures of the fit
user_tower.onnx     item_tower.onnx     features.toml     vocabularies.json
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from models.extractors import Extract
from models.spec import Spec, SpecError, load_spec
from models.tensors import Encoding, Vocabularies

FORMAT = 1
MANIFEST = "bundle.json"
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
FEATURES = "features.toml"
VOCABULARIES = "vocabularies.json"
FILES = (USER_TOWER, ITEM_TOWER, FEATURES, VOCABULARIES)
MAX_DIM = 4096
LEAVE_ONE_OUT = "leave-one-out"  # the figure `protocol` of a bundle that was trained so; one without it is temporal

Metric = Literal["IP", "COSINE", "L2"]


class BundleError(ValueError):
    """A bundle that must not be served; one line that says why."""


class Manifest(Struct, frozen=True, kw_only=True):
    """bundle.json."""

    format: int
    version: str
    dim: int
    metric: Metric
    spec_hash: str
    files: dict[str, str]
    created_ms: int
    figures: dict[str, Any] = {}


class _VocabularyFile(Struct, frozen=True):
    values: dict[str, list[str]]
    item_ids: list[str]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. The matched pair of towers, and how facts become their inputs."""

    path: Path
    manifest: Manifest
    encoding: Encoding

    @property
    def version(self) -> str:
        """Names the view: equal for equal content."""
        return self.manifest.version

    @property
    def dim(self) -> int:
        """D of every vector."""
        return self.manifest.dim

    @property
    def metric(self) -> Metric:
        """How user and item vectors are compared."""
        return self.manifest.metric

    @property
    def spec(self) -> Spec:
        """The feature spec."""
        return self.encoding.spec

    @property
    def user_tower(self) -> Path:
        """The user tower's ONNX file."""
        return self.path / USER_TOWER

    @property
    def item_tower(self) -> Path:
        """The item tower's ONNX file."""
        return self.path / ITEM_TOWER


def load_bundle(path: Path, extractors: Mapping[str, Extract] | None = None) -> Bundle:
    """Read and verify a bundle: every file's checksum, format, dim, metric, spec hash. Raises BundleError.

    `extractors`: the code of those that its spec names, where inputs are to be made of facts.
    """
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: {MANIFEST}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path / MANIFEST}: {error}") from error
    if manifest.format != FORMAT:
        raise BundleError(f"{path}: bundle format {manifest.format}, this version reads {FORMAT}")
    if not 1 <= manifest.dim <= MAX_DIM:
        raise BundleError(f"{path}: dim {manifest.dim}, 1 to {MAX_DIM} are possible")
    if sorted(manifest.files) != sorted(FILES):
        raise BundleError(f"{path / MANIFEST}: files must be {', '.join(FILES)}")
    for name, expected in manifest.files.items():
        if _sha256(path / name) != expected:
            raise BundleError(f"{path / name} is not the file that was packed: its checksum differs")
    if not manifest.version.endswith(f"-{_identity(manifest.files, manifest.dim, manifest.metric)}"):
        raise BundleError(f"{path / MANIFEST}: version, dim, metric and files are not those that were packed together")
    try:
        spec = load_spec(path / FEATURES)
        words = msgspec.json.decode((path / VOCABULARIES).read_bytes(), type=_VocabularyFile)
    except (SpecError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from error
    if spec.hash != manifest.spec_hash:
        raise BundleError(f"{path / FEATURES} is not the spec that the towers were made for")
    return Bundle(path, manifest, Encoding(spec, Vocabularies(words.values, words.item_ids), extractors or {}))


def require_time(bundle: Bundle) -> None:
    """Raises BundleError for one that was trained by leave-one-out: it is neither served nor asked about a time.

    It was trained on what any window of time asks for, and its newest event is at a place in a history, not at a time.
    """
    if bundle.manifest.figures.get("protocol") == LEAVE_ONE_OUT:
        alone = f"it is for `recall model evaluate --protocol {LEAVE_ONE_OUT}` alone"
        raise BundleError(f"{bundle.version} was trained by leave-one-out, on places and no times: {alone}")


def encode_vocabularies(vocabularies: Vocabularies) -> bytes:
    """The file vocabularies.json."""
    values = {name: list(known) for name, known in vocabularies.values.items()}
    return msgspec.json.encode(_VocabularyFile(values, list(vocabularies.item_ids)))


def write_bundle(
    folder: Path,
    *,
    towers: tuple[bytes, bytes],
    features: str,
    encoding: Encoding,
    dim: int,
    metric: Metric,
    figures: Mapping[str, Any],
) -> Bundle:
    """Write `folder/<version>` from the user and item tower's ONNX bytes and the text of features.toml. Atomic.

    The version is the spec's name and a hash of the content: the same content has the same version, and is kept.
    """
    contents = {
        USER_TOWER: towers[0],
        ITEM_TOWER: towers[1],
        FEATURES: features.encode(),
        VOCABULARIES: encode_vocabularies(encoding.vocabularies),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = Manifest(
        format=FORMAT,
        version=f"{encoding.spec.name}-{_identity(sums, dim, metric)}",
        dim=dim,
        metric=metric,
        spec_hash=encoding.spec.hash,
        files=sums,
        created_ms=time.time_ns() // 1_000_000,
        figures=dict(figures),
    )
    path = folder / manifest.version
    temporary = folder / f".{manifest.version}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        (temporary / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        if path.is_dir():  # the same content: whoever reads it meanwhile finds every file whole
            for name in (*FILES, MANIFEST):
                (temporary / name).replace(path / name)
            temporary.rmdir()
        else:
            temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from error
    return load_bundle(path, encoding.extractors)


def _identity(sums: Mapping[str, str], dim: int, metric: str) -> str:
    """What a version ends with: 12 hexadecimal digits of everything that the towers' work depends on."""
    return hashlib.sha256(("".join(sums[name] for name in FILES) + f"{dim}{metric}").encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
