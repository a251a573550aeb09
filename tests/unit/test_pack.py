"""Foreign towers become a verified bundle, or are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.bundle import Bundle, load_bundle
from models.signature import HISTORY_EMBEDDING, ITEM_EMBEDDING
from tests import own_towers
from tests.own_towers import FEATURES, Edit, write_towers
from workers.errors import ConfigurationError, RecallError
from workers.packing import Job, Packed, run_pack
from workers.towers.onnx import open_tower

NOTHING: Edit = lambda _: None  # noqa: E731
USER, ITEM = "user.onnx", "item.onnx"


def pack(folder: Path, **changes: object) -> Packed:
    paths = {"user_tower": folder / USER, "item_tower": folder / ITEM, "vocabularies": folder / "vocabularies.json"}
    options = {"spec": FEATURES, "metric": "IP", "floor": True}
    return run_pack(Job(**(paths | options | changes)), folder / "bundles", lambda _: None)


def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(RecallError) as raised:
        pack(folder, **changes)
    assert "\n" not in str(raised.value)
    bundles = folder / "bundles"
    assert not bundles.exists() or list(bundles.iterdir()) == [], "nothing is left of what was refused"
    return str(raised.value)


def vectors(bundle: Bundle) -> dict[str, np.ndarray]:
    tower = open_tower(bundle, "item", 1000)
    return tower.run({"item_code": np.array([0, 5]), "item_genres": np.eye(3, dtype=np.float32)[:2]})


def test_a_pair_is_packed_and_completed(tmp_path: Path) -> None:
    write_towers(tmp_path)
    packed = pack(tmp_path)
    assert load_bundle(packed.bundle.path).version == packed.bundle.version
    assert (packed.bundle.dim, packed.bundle.metric, packed.report.failed) == (32, "IP", [])
    assert packed.notes == [
        f"{tmp_path / USER} does not read history_age_s, event_count, gap_s",
        f"{tmp_path / ITEM} has no history_embedding: item_embedding stands for it",
    ]
    found = vectors(packed.bundle)
    np.testing.assert_array_equal(found[ITEM_EMBEDDING], found[HISTORY_EMBEDDING])
    assert pack(tmp_path).bundle.version == packed.bundle.version


def test_a_second_vector_is_kept_and_a_whole_tower_is_packed_byte_for_byte(tmp_path: Path) -> None:
    def second(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Neg", [ITEM_EMBEDDING], [HISTORY_EMBEDDING]))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(HISTORY_EMBEDDING, TensorProto.FLOAT, ["batch", 32])
        )

    write_towers(tmp_path, item=second, user=own_towers.output("Neg"))
    packed = pack(tmp_path)
    assert len(packed.notes) == 1
    found = vectors(packed.bundle)
    np.testing.assert_array_equal(found[ITEM_EMBEDDING], -found[HISTORY_EMBEDDING])
    assert packed.bundle.item_tower.read_bytes() == (tmp_path / ITEM).read_bytes()


def test_an_output_without_a_shape_gets_one(tmp_path: Path) -> None:
    def shapeless(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.ClearField("shape")

    assert pack(write_towers(tmp_path, user=shapeless, item=shapeless)).bundle.dim == 32


def test_axes_that_an_exporter_left_open_are_closed(tmp_path: Path) -> None:
    vague = {"user": ("user_embedding", "history_vectors"), "item": ("item_embedding", "item_genres")}

    def edit(*names: str) -> Edit:
        def opened(model: onnx.ModelProto) -> None:
            for node in (*model.graph.input, *model.graph.output):
                if node.name in names:
                    for n, axis in enumerate(node.type.tensor_type.shape.dim):
                        axis.dim_param = f"{node.name}_{n}"

        return opened

    write_towers(tmp_path, **{side: edit(*names) for side, names in vague.items()})
    assert pack(tmp_path).bundle.dim == 32


@pytest.mark.parametrize("metric", ["IP", "L2"])
def test_every_metric(tmp_path: Path, metric: str) -> None:
    assert pack(write_towers(tmp_path), metric=metric).bundle.metric == metric


def not_finite(values: np.ndarray) -> np.ndarray:
    values[3] = np.nan
    return values


BAD: dict[str, tuple[str, Edit, str]] = {
    "an input that the spec does not have": (
        USER,
        own_towers.renamed("history_codes", "mood"),
        "input 'mood' is int64[batch, 20], the bundle says missing",
    ),
    "an input of another shape": (
        USER,
        lambda model: (
            own_towers.declared("history_codes", TensorProto.INT64, ["batch", 50])(model),
            own_towers.declared("history_vectors", TensorProto.FLOAT, ["batch", 50, 32])(model),
        ),
        "input 'history_vectors' is float32[batch, 50, 32], the bundle says float32[batch, 20, 32]",
    ),
    "an input of another type": (
        USER,
        own_towers.declared("history_codes", TensorProto.INT32, ["batch", 20]),
        "input 'history_codes' is tensor(int32)[batch, 20], the bundle says int64[batch, 20]",
    ),
    "an output of another name": (
        USER,
        own_towers.renamed("user_embedding", "out"),
        "output 'user_embedding' is missing, there is out",
    ),
    "an output of another type": (
        ITEM,
        lambda model: (
            own_towers.output("Cast", to=TensorProto.DOUBLE)(model),
            own_towers.declared("item_embedding", TensorProto.DOUBLE, ["batch", 32])(model),
        ),
        "output 'item_embedding' is tensor(double)[batch, 32], the bundle says float32[batch, 32]",
    ),
    "an output too many": (
        ITEM,
        lambda model: model.graph.output.append(
            onnx.helper.make_tensor_value_info("told", TensorProto.FLOAT, ["batch", 32])
        ),
        "output 'told' is float32[batch, 32], the bundle says missing",
    ),
    "a static batch": (ITEM, own_towers.batch_of(1), "is int64[1], its batch must be free: a dynamic first axis"),
    "a vector that is not finite": (
        ITEM,
        own_towers.weight("table", not_finite),
        "output 'item_embedding' is not finite for 1 of ",
    ),
    "none that is finite": (
        USER,
        own_towers.weight("mean_user", lambda values: values * np.nan),
        "output 'user_embedding' is not finite for 64 of 64 rows, also where nothing is known",
    ),
    "a table that is too small": (ITEM, own_towers.weight("table", lambda values: values[:-1]), "fails on "),
    "an operator set of the future": (ITEM, own_towers.opset(99), f"{ITEM} (opset ai.onnx 99) cannot be opened: "),
    "vectors that depend on the batch": (
        USER,
        own_towers.depends_on_the_batch,
        "between batch 1 and batch 64, 1e-05 is allowed",
    ),
    "one vector for all": (
        ITEM,
        own_towers.output("Mul", np.zeros(1, dtype=np.float32)),
        "different items have 1 different vectors in 'item_embedding'; --no-floor packs it all the same",
    ),
    "one vector for all users": (
        USER,
        own_towers.weight("code_weights", lambda values: values * 0),
        "0 of 64 users are nearest to themselves a minute later: the user tower hardly tells them apart (chance is 1)",
    ),
    "vectors of another training": (
        USER,
        own_towers.output("Neg"),
        "user tower and history do not fit the item vectors; --no-floor packs it all the same",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_tower_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file, edit, line = BAD[name]
    write_towers(tmp_path, user=edit if file == USER else NOTHING, item=edit if file == ITEM else NOTHING)
    said = refused(tmp_path)
    assert line in said
    assert file in said or said.startswith("floor: ")


def test_the_floor_can_be_left_out(tmp_path: Path) -> None:
    write_towers(tmp_path, user=own_towers.output("Neg"))
    assert [each.check for each in pack(tmp_path, floor=False).report.failed] == ["floor: seen"]


def test_cosine_of_nothing(tmp_path: Path) -> None:
    write_towers(tmp_path, user=own_towers.weight("mean_user", lambda values: values * 0))
    assert "COSINE cannot compare vectors of length 0: " in refused(tmp_path, metric="COSINE")


def test_towers_of_different_dimensions(tmp_path: Path) -> None:
    half = own_towers.output("Slice", np.array([0]), np.array([16]), np.array([1]))
    write_towers(tmp_path, item=lambda model: (half(model), model.graph.output[0].type.tensor_type.shape.Clear()))
    assert f"{ITEM}: item_embedding has 16 dimensions, {tmp_path / USER}: user_embedding has 32: " in refused(tmp_path)


def test_a_history_vector_of_another_dimension(tmp_path: Path) -> None:
    def second(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Concat", [ITEM_EMBEDDING] * 2, [HISTORY_EMBEDDING], axis=1))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(HISTORY_EMBEDDING, TensorProto.FLOAT, ["batch", 64])
        )

    write_towers(tmp_path, item=second)
    assert "item_embedding has 32 dimensions, " in refused(tmp_path)


def test_files_that_are_no_towers(tmp_path: Path) -> None:
    write_towers(tmp_path)
    for content in (b"rubbish", b"", b"PK\x03\x04" + b"a" * 9):
        (tmp_path / USER).write_bytes(content)
        assert f"{tmp_path / USER} is not ONNX: " in refused(tmp_path)
    (tmp_path / USER).unlink()
    assert refused(tmp_path) == f"{tmp_path / USER}: No such file or directory"


def test_weights_in_another_file(tmp_path: Path) -> None:
    write_towers(tmp_path)
    model = onnx.load(tmp_path / ITEM)
    onnx.save(model, tmp_path / ITEM, save_as_external_data=True, size_threshold=0, location="item.data")
    assert f"{tmp_path / ITEM} keeps its weights in another file, item.data; " in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda words: words["values"].clear(), "no values for item.genres"),
        (lambda words: words["values"].update({"item.mood": []}), "item.mood is no category or multi field"),
        (lambda words: words["item_ids"].append("i0"), "item_ids names a value twice, or an empty one"),
        (lambda words: words.update(item_ids=3), "Expected `array`, got `int`"),
        (lambda words: words["values"]["item.genres"].append("Horror"), "the bundle says float32[batch, 4]"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, change: Callable[[dict], None], line: str) -> None:
    path = write_towers(tmp_path) / "vocabularies.json"
    words = json.loads(path.read_text())
    change(words)
    path.write_text(json.dumps(words))
    assert line in refused(tmp_path)


def test_no_vocabularies_where_the_spec_needs_them(tmp_path: Path) -> None:
    assert "item.genres is of kind multi: --vocabularies FILE" in refused(write_towers(tmp_path), vocabularies=None)
    assert "No such file" in refused(tmp_path, vocabularies=tmp_path / "nowhere.json")


def test_a_spec_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        pack(write_towers(tmp_path), spec=tmp_path / "nowhere.toml")
