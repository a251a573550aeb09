"""The checkpoints of a data folder are those of one training at a time."""

import shutil
from pathlib import Path

import pytest

from workers.checkpoints import held_checkpoints
from workers.errors import ConfigurationError, RecallError
from workers.settings import load_settings


def test_one_training_has_the_checkpoints_of_a_data_folder(tmp_path: Path) -> None:
    ours, others = (load_settings(data_dir=tmp_path / name) for name in ("ours", "others"))
    refused = pytest.raises(RecallError, match=r"another process is training: .*ours/training")
    with held_checkpoints(ours), held_checkpoints(others), refused, held_checkpoints(ours):
        pass
    with held_checkpoints(ours):
        pass


def test_they_are_held_beyond_the_end_of_the_training_that_deletes_them(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    with held_checkpoints(settings) as folder:
        folder.mkdir()
        shutil.rmtree(folder)
        with pytest.raises(RecallError, match="another process is training"), held_checkpoints(settings):
            pass


def test_a_data_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(ConfigurationError, match="file cannot be written")
    with refused, held_checkpoints(load_settings(data_dir=tmp_path / "file")):
        pass
