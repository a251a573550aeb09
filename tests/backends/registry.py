"""Backends by name, imported when they are wanted: `module:class`."""

from importlib import import_module

from tests.backends.backend import Backend

OURS = "ours"
BACKENDS = {
    OURS: "tests.backends.ours:Ours",
    "triton": "tests.backends.triton:Triton",
    "torchserve": "tests.backends.torchserve:TorchServe",
    "mlserver": "tests.backends.mlserver:MLServer",
    "tf_serving": "tests.backends.tf_serving:TfServing",
}
REAL = tuple(name for name in BACKENDS if name != OURS)


def backend(name: str) -> Backend:
    """A new one, not started."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: Backend = getattr(import_module(module), attribute)()
    return found
