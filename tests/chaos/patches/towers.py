"""Towers that misbehave when a file orders it, and an item tower that refuses one kind of item, always.

The file holds one word, and behind it the processes that are meant; none are all. ONNX Runtime itself is patched.
"""

import os
import threading
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.chaos.workload import MOST_GENRES

ORDER = Path(os.environ["RECALL_CHAOS_TOWERS"])

_run = onnxruntime.InferenceSession.run


def run(self, output_names, input_feed, run_options=None):
    order = _ordered()
    if order == "raises":
        raise Fail("the tower was told to fail")
    if order == "hangs":
        threading.Event().wait()
    if (input_feed.get("item_genres", np.zeros((0, 1))).sum(axis=1) > MOST_GENRES).any():
        raise Fail("a film of too many genres")
    outputs = _run(self, output_names, input_feed, run_options)
    if order == "nan":
        return [np.full_like(output, np.nan) for output in outputs]
    if order == "wrong_shape":
        return [output[:, :-1] for output in outputs]
    return outputs


def _ordered():
    try:
        order, *processes = ORDER.read_text().split()
    except FileNotFoundError:
        return None
    return order if not processes or str(os.getpid()) in processes else None


onnxruntime.InferenceSession.run = run
