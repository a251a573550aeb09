"""What integration tests share."""

import asyncio
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.conftest import Stack
from tests.e2e.conftest import fit_small, prepare
from tests.integration.recall_system import bundle, system
from workers.settings import Settings

__all__ = ["bundle", "system"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small bundle, fitted once for a module."""
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def healthy(stack: Stack, namespace: str, tmp_path: Path, packed: Bundle) -> Settings:
    """Of a system with its topics and an active bundle."""
    settings = stack.settings(namespace=namespace, data_dir=tmp_path / "data")
    asyncio.run(prepare(settings, packed))
    return settings
