"""Where Milvus' client connects to."""

from typing import Any

import grpc
import pytest

from workers.index.milvus_client import MilvusClient
from workers.settings import load_settings


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://milvus.example:1", "milvus.example:1"),
        ("http://milvus", "milvus:19530"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("http://[::1]:1", "[::1]:1"),
        ("http://[fd00::7]", "[fd00::7]:19530"),
    ],
)
async def test_the_address_of_a_uri(uri: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    channel = grpc.aio.insecure_channel

    def opened(target: str, **options: Any) -> Any:
        asked.append(target)
        return channel(target, **options)

    monkeypatch.setattr(grpc.aio, "insecure_channel", opened)
    await MilvusClient(load_settings(milvus_uri=uri)).close()
    assert asked == [address]
