"""What the demo and evaluations over Kafka have of their own."""

from pathlib import Path

from workers.live.system import LiveSystem
from workers.live.told import Told
from workers.local.stack import wipe
from workers.settings import load_settings

TOLD = Told(lambda what, part: None, lambda line: None, lambda: False)


def test_the_users_own_file_of_milvus_lite_is_let_be(tmp_path: Path) -> None:
    for index in ("milvus", "memory"):
        users = tmp_path / "items.db"
        settings = load_settings(milvus_uri=str(users), data_dir=tmp_path / "demo", index=index)
        assert LiveSystem(settings, TOLD).settings.milvus_file != users
    file = LiveSystem(settings.model_copy(update={"index": "milvus"}), TOLD).settings.milvus_file
    assert file is not None
    file.mkdir(parents=True)
    wipe(tmp_path / "demo")
    assert not file.exists()


def test_an_address_stays(tmp_path: Path) -> None:
    settings = load_settings(milvus_uri="http://mine:1", data_dir=tmp_path)
    assert LiveSystem(settings, TOLD).settings == settings
