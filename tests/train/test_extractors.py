"""Towers in PyTorch with an extractor's columns and a context value: alike in ONNX, and they go by them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import tensors
from models.columns import RequestColumns, UserFeatures
from models.datasets.generated import generate
from models.extractors import ExtractorError
from models.spec import builtin_spec, parse_spec
from models.tensors import EVERYTHING_MS
from models.training.towers import Architecture, Encoder
from models.training.train import TrainOptions, train
from tests.moods import MOOD, moody_log
from tests.train.conftest import QUICK
from workers.fitting import embedders
from workers.training import open_onnx

DATASET = generate(items=60, users=60, events=2500)
FEEL = '[extractors.feel]\nversion = "1"\noutputs.signs = 2\n'


def feel(_: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
    signs = [1000.0 if context.get("mood") == "even" else -1000.0 for context in requests.contexts]
    return {"signs": np.stack([signs, np.zeros(len(signs))], axis=1).astype(np.float32)}


@pytest.mark.parametrize("declared", [FEEL, MOOD], ids=["extractor", "source"])
@pytest.mark.parametrize("encoder", ["transformer", "mean"])
def test_they_are_trained_on_it(tmp_path: Path, encoder: Encoder, declared: str) -> None:
    text = f"{builtin_spec('movielens').read_text()}\n{declared}"
    shape = Architecture(dim=32, encoder=encoder, width=32)
    options = TrainOptions(architecture=shape, recipe=QUICK, validate=False, extractors={"feel": feel})
    data = (moody_log(DATASET), DATASET.catalogue(), parse_spec(text), text)
    bundle = train(*data, tmp_path, options, open_onnx, lambda *_: None)
    assert bundle.manifest.figures["parity"] < 1e-4
    users, items = embedders(bundle)
    moods: list[dict[str, Any]] = [{"mood": "even"}, {"mood": "odd"}, {}]
    nobody = tensors.user_features([None] * 3, np.full(3, EVERYTHING_MS), bundle.encoding)
    vectors = np.zeros((3, 50, bundle.dim), dtype=np.float32)
    found = users(tensors.user_inputs(nobody, vectors, np.zeros(3, np.int64), moods, bundle.encoding))
    indexed, _ = items(tensors.item_inputs(DATASET.item_ids, DATASET.attributes, bundle.encoding))
    better = found[0] @ indexed.T > found[1] @ indexed.T
    assert better[::2].mean() > 0.85
    assert better[1::2].mean() < 0.15
    np.testing.assert_array_equal(found[1], found[2], err_msg="odd is the default, and what the extractor takes it for")


def test_one_that_fails_is_an_error_of_the_training(tmp_path: Path) -> None:
    text = f"{builtin_spec('movielens').read_text()}\n{FEEL}"
    options = TrainOptions(architecture=Architecture(dim=32), recipe=QUICK, validate=False)
    data = (moody_log(DATASET), DATASET.catalogue(), parse_spec(text), text)
    with pytest.raises(ExtractorError, match="no code is given"):
        train(*data, tmp_path, options, open_onnx, lambda *_: None)
