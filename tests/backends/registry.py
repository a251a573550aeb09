"""Backends by name, imported when they are wanted: `module:class`."""

from importlib import import_module

import pytest

from tests.backends.backend import Backend

OURS = "ours"
BACKENDS = {
    OURS: "tests.backends.ours:Ours",
    "triton": "tests.backends.triton:Triton",
    "torchserve": "tests.backends.torchserve:TorchServe",
    "mlserver": "tests.backends.mlserver:MLServer",
    "tf_serving": "tests.backends.tf_serving:TfServing",
    "feast": "tests.backends.feast:Feast",
}
REAL = tuple(name for name in BACKENDS if name != OURS)


def chosen(config: pytest.Config, default: str = OURS) -> str:
    """The backend that a run was asked to take, else the one that a suite takes in every test run."""
    return str(config.getoption("--backend") or default)


def backend(name: str) -> Backend:
    """A new one, not started."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: Backend = getattr(import_module(module), attribute)()
    return found
