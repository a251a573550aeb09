"""A bundle is whole, or it is refused with one line."""

import json
from pathlib import Path

import pytest

from models.bundle import FILES, MANIFEST, Bundle, BundleError, load_bundle, write_bundle
from models.datasets.generated import generate
from models.spec import builtin_spec
from models.tensors import Encoding
from tests.e2e.conftest import fit_small


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(60, 60, 2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bundle(fitted: Bundle, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    copy = tmp_path / fitted.version
    copy.mkdir()
    for path in fitted.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as raised:
        load_bundle(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def change(bundle: Path, **fields: object) -> Path:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | fields))
    return bundle


def test_a_whole_bundle_is_loaded(bundle: Path, fitted: Bundle) -> None:
    loaded = load_bundle(bundle)
    assert (loaded.version, loaded.dim, loaded.metric) == (fitted.version, 32, "IP")
    assert loaded.spec == fitted.spec
    assert loaded.encoding.vocabularies.item_codes["film-0"] == 1


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_noticed(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    assert f"{name} is not the file that was packed" in refused(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert name in refused(bundle)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"format": 2}, "bundle format 2"),
        ({"dim": 0}, "dim 0"),
        ({"metric": "HAMMING"}, "Invalid enum value 'HAMMING'"),
        ({"spec_hash": "0"}, "is not the spec that the towers were made for"),
        ({"files": {}}, "files must be"),
        ({"version": 3}, "Expected `str`, got `int`"),
        ({"version": "movielens-0123456789ab"}, "are not those that were packed together"),
        ({"metric": "COSINE"}, "are not those that were packed together"),
        ({"dim": 64}, "are not those that were packed together"),
    ],
)
def test_a_wrong_manifest_is_refused(bundle: Path, fields: dict, line: str) -> None:
    assert line in refused(change(bundle, **fields))


def test_a_manifest_that_is_not_text(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes().replace(b"movielens", b"movi\xffens"))
    assert MANIFEST in refused(bundle)


def test_writing_it_again_mends_a_damaged_one(bundle: Path, fitted: Bundle) -> None:
    towers = fitted.user_tower.read_bytes(), fitted.item_tower.read_bytes()
    (bundle / FILES[0]).write_bytes(b"")
    written = write_bundle(
        bundle.parent,
        towers=towers,
        features=(fitted.path / "features.toml").read_text(),
        encoding=fitted.encoding,
        dim=fitted.dim,
        metric=fitted.metric,
        figures={},
    )
    assert written.path == bundle
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_the_version_is_made_from_the_content(fitted: Bundle, tmp_path: Path) -> None:
    def write(towers: tuple[bytes, bytes], dim: int = 32) -> str:
        encoding = Encoding(fitted.spec, fitted.encoding.vocabularies)
        text = builtin_spec("movielens").read_text()
        return write_bundle(
            tmp_path, towers=towers, features=text, encoding=encoding, dim=dim, metric="IP", figures={}
        ).version

    first = write((b"u", b"i"))
    assert first == write((b"u", b"i"))
    assert len({first, write((b"u2", b"i")), write((b"u", b"i"), dim=64)}) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written is left"


def test_a_folder_that_cannot_be_written(fitted: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(
            tmp_path / "file",
            towers=(b"", b""),
            features="",
            encoding=fitted.encoding,
            dim=32,
            metric="IP",
            figures={},
        )
