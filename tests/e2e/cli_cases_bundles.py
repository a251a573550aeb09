"""Situations of docs/cli.md of `recall model activate`, `verify` and `pack`: what makes them true, and the commands.
See `test_cli_table.py`."""

import asyncio
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from models.bundle import Bundle, load_bundle, write_bundle
from models.signature import HISTORY_EMBEDDING, ITEM_EMBEDDING
from tests import own_towers
from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases_live import Ready
from tests.e2e.conftest import of_leave_one_out
from tests.own_towers import FEATURES, Edit, write_towers
from workers import views

ROOT = Path(__file__).parents[2]
PACK = (
    *("model", "pack", "--user-tower", "user.onnx", "--item-tower", "item.onnx"),
    *("--spec", str(FEATURES), "--vocabularies", "vocabularies.json"),
)


def nan(values: np.ndarray) -> np.ndarray:
    return values * np.nan


def with_nan(bundle: Bundle, folder: Path) -> Bundle:
    """The same, packed with a user tower that gives no finite vector."""
    model = onnx.load(bundle.user_tower)
    own_towers.output("Mul", np.array([np.nan], dtype=np.float32))(model)
    return write_bundle(
        folder,
        towers=(model.SerializeToString(), bundle.item_tower.read_bytes()),
        features=(bundle.path / "features.toml").read_text(),
        encoding=bundle.encoding,
        dim=bundle.dim,
        metric=bundle.metric,
        figures={},
    )


@pytest.fixture
def towers(idle: Place) -> Place:
    """The example's towers in a folder in which nothing runs."""
    write_towers(idle.folder)
    return idle


def packed_with(idle: Place, *options: str, **edits: Edit) -> list[Done]:
    write_towers(idle.folder, **edits)
    return [idle.recall(*PACK, *options)]


@case("`model activate`, `model pack`, `model verify`", "an argument is missing")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "activate"], ["model", "verify"], ["model", "pack"], [*PACK[:6]])


# activate


@case("`model activate`", "Redis answers")
def _(ready: Ready) -> list[Done]:
    place = asyncio.run(ready.without_bundle())
    done = place.recall("model", "activate", str(ready.bundle.path))
    fresh = ready.settings.model_copy(update={"namespace": place.environment["RECALL_NAMESPACE"]})
    view = asyncio.run(views.read_active(fresh))
    assert view is not None
    assert (view.version, view.bundle) == (ready.bundle.version, ready.bundle.path)
    return [done]


@case("`model activate`", "Redis does not answer: a local pointer, which `up` carries over")
def _(idle: Place, packed: Bundle) -> list[Done]:
    shutil.copytree(packed.path, idle.data / "bundles" / packed.version)
    done = idle.recall("model", "activate", packed.version)
    assert (idle.data / "active.json").exists()
    return [done]


@case("`model activate`", "a file was changed")
def _(idle: Place, packed: Bundle) -> list[Done]:
    copy = shutil.copytree(packed.path, idle.folder / "copy")
    (copy / "item_tower.onnx").write_bytes(b"other")
    return idle.each(["model", "activate", "copy"], ["model", "activate", "copy", "--json"])


@case("`model activate`", "the bundle was trained by leave-one-out")
def _(idle: Place, packed: Bundle) -> list[Done]:
    of_leave_one_out(shutil.copytree(packed.path, idle.data / "bundles" / packed.version))
    found = idle.each(["model", "activate", packed.version])
    assert not (idle.data / "active.json").exists()
    return found


# verify


@case("`model activate`, `model verify`", "no such bundle")
def _(idle: Place) -> list[Done]:
    (idle.folder / "empty").mkdir()
    asked = [["model", command, name] for command in ("activate", "verify") for name in ("nowhere", "empty")]
    return idle.each(*asked, ["model", "verify", "empty", "--json"])


@case("`model verify`", "all is well")
def _(idle: Place, packed: Bundle) -> list[Done]:
    shutil.copytree(packed.path, idle.data / "bundles" / packed.version)
    return idle.each(["model", "verify", str(packed.path)], ["model", "verify", packed.version])


@case("`model verify`", "a file was changed")
def _(idle: Place, packed: Bundle) -> list[Done]:
    copy = shutil.copytree(packed.path, idle.folder / "copy")
    (copy / "item_tower.onnx").write_bytes(b"other")
    return idle.each(["model", "verify", "copy"], ["model", "verify", "copy", "--json"])


@case("`model verify`", "a tower gives no finite vector")
def _(idle: Place, packed: Bundle) -> list[Done]:
    return idle.each(["model", "verify", str(with_nan(packed, idle.folder).path)])


@case("`model verify --items`", "no such file")
def _(idle: Place, packed: Bundle) -> list[Done]:
    return idle.each(["model", "verify", str(packed.path), "--items", "nowhere.jsonl"])


@case("`model verify --items`", "a bad line")
def _(idle: Place, packed: Bundle) -> list[Done]:
    return idle.each(["model", "verify", str(packed.path), "--items", "bad.jsonl"])


@case("`model verify --items`", "an empty file")
def _(idle: Place, packed: Bundle) -> list[Done]:
    (idle.folder / "empty.jsonl").touch()
    return idle.each(["model", "verify", str(packed.path), "--items", "empty.jsonl"])


@case("`worker`", "a tower of the bundle gives no finite vector")
def _(ready: Ready) -> list[Done]:
    bundle = with_nan(ready.bundle, ready.place.folder / "nan")
    asyncio.run(views.activate(ready.settings, bundle.path, bundle.version))
    return ready.place.each(["worker", "recall"])


# pack


@case("`model pack`", "Redis does not answer: a local pointer, which `up` carries over")
def _(towers: Place) -> list[Done]:
    done = towers.recall(*PACK)
    assert (towers.data / "active.json").exists()
    (bundle,) = (towers.data / "bundles").iterdir()
    assert load_bundle(bundle).metric == "IP"
    return [done]


@case("`model pack`", "no such file")
def _(towers: Place) -> list[Done]:
    (towers.folder / "item.onnx").unlink()
    return [towers.recall(*PACK)]


@case("`model pack`", "a tower that is not ONNX")
def _(towers: Place) -> list[Done]:
    (towers.folder / "user.onnx").write_bytes(b"rubbish")
    return [towers.recall(*PACK)]


@case("`model pack`", "a spec with a mistake")
def _(towers: Place) -> list[Done]:
    (towers.folder / "features.toml").write_text(FEATURES.read_text().replace("length = 20", "length = 0"))
    return [towers.recall(*PACK, "--spec", "features.toml")]


@case("`model pack`", "a category without `--vocabularies`")
def _(towers: Place) -> list[Done]:
    return [towers.recall(*PACK[:-2])]


@case("`model pack`", "vocabularies of another spec")
def _(towers: Place) -> list[Done]:
    (towers.folder / "vocabularies.json").write_text('{"values": {"item.mood": []}}')
    return [towers.recall(*PACK)]


@case("`model pack`", "`--metric` is none of those possible")
def _(towers: Place) -> list[Done]:
    return [towers.recall(*PACK, "--metric", "DOT")]


@case("`model pack`", "an input that the spec does not have")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.renamed("history_codes", "mood"))


@case("`model pack`", "an input of another type")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.declared("history_codes", onnx.TensorProto.INT32, ["batch", 20]))


@case("`model pack`", "an output of another name")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, item=own_towers.renamed("item_embedding", "out"))


@case("`model pack`", "user and item vectors have different dimensions")
def _(idle: Place) -> list[Done]:
    half = own_towers.output("Slice", np.array([0]), np.array([16]), np.array([1]))

    def edit(model: onnx.ModelProto) -> None:
        half(model)
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16

    return packed_with(idle, user=edit)


@case("`model pack`", "history vectors of another dimension")
def _(idle: Place) -> list[Done]:
    def second(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Concat", [ITEM_EMBEDDING] * 2, [HISTORY_EMBEDDING], axis=1))
        output = helper.make_tensor_value_info(HISTORY_EMBEDDING, onnx.TensorProto.FLOAT, ["batch", 64])
        model.graph.output.append(output)

    return packed_with(idle, item=second)


@case("`model pack`", "a static batch")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.batch_of(1))


@case("`model pack`", "vectors that are not finite")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.weight("mean_user", nan))


@case("`model pack`", "vectors that depend on the batch")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.depends_on_the_batch)


@case("`model pack`", "an operator set that is not supported")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, item=own_towers.opset(99))


@case("`model pack`", "weights in another file")
def _(towers: Place) -> list[Done]:
    path = towers.folder / "item.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="item.data")
    return [towers.recall(*PACK)]


@case("`model pack`", "the floor is not reached")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, user=own_towers.output("Neg"))


@case("`model pack --no-floor`", "the floor is not reached")
def _(idle: Place) -> list[Done]:
    return packed_with(idle, "--no-floor", "--no-activate", user=own_towers.output("Neg"))


@case("`model pack`", "the folder cannot be written")
def _(towers: Place) -> list[Done]:
    towers.data.write_text("a file")
    return [towers.recall(*PACK)]


@case("`model pack`", "without the extra")
def _(towers: Place) -> list[Done]:
    hidden = towers.folder / "hidden" / "onnx"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no onnx')")
    return [towers.with_(PYTHONPATH=os.pathsep.join([str(hidden.parent), str(ROOT)])).recall(*PACK)]
