"""What a request to a tower costs by every way, beside ONNX Runtime in the process, in one run."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models import probes
from models.bundle import Bundle
from models.tensors import Inputs
from tests.backends.backend import Backend
from tests.backends.registry import backend
from workers.ports import Tower
from workers.settings import Settings
from workers.towers.opening import open_tower

BATCHES = (1, 64)
WARM, RUNS = 20, 200
SETTINGS = {"tower_timeout_ms": 10_000}

Say = Callable[[str], None]
Figures = dict[str, dict[str, int]]


def measure(names: list[str], say: Say) -> dict[str, Figures]:
    """Microseconds a call by backend, way and batch: the median of 200 one after the other, and the worker's CPU.

    A server in this process, as ours is, counts as the worker's.
    """
    found: dict[str, Figures] = {}
    for name in names:
        each = backend(name)
        if "tests/contract/test_towers.py" not in each.suites:
            continue
        say(f"{name}: {each.versions}")
        with tempfile.TemporaryDirectory(prefix="recall-cost-") as folder:
            try:
                each.start(Path(folder))
                found[name] = asyncio.run(_ways(each))
            finally:
                each.stop()
    return found


async def _ways(each: Backend) -> Figures:
    bundle = each.bundle  # type: ignore[attr-defined]
    ways: dict[str, dict[str, object]] = {"onnx": {"tower": "onnx"}}
    ways |= {way: each.settings(way) for way in each.ways}
    figures: Figures = {}
    for way, overrides in ways.items():
        tower = await open_tower(bundle, "user", Settings(**overrides | SETTINGS))
        figures[way] = {}
        for rows in BATCHES:
            took_us, cpu_us = await _call_us(tower, _inputs(bundle, rows))
            figures[way] |= {f"us_{rows}": took_us, f"cpu_us_{rows}": cpu_us}
        await tower.close()
    return figures


def _inputs(bundle: Bundle, rows: int) -> Inputs:
    vectors = np.random.default_rng(3).standard_normal((64, bundle.dim)).astype(np.float32) / np.float32(8)
    return probes.users(bundle.encoding, vectors, rows, numbers=False)


async def _call_us(tower: Tower, inputs: Inputs) -> tuple[int, int]:
    """Median time of a call, and mean CPU."""
    took: list[float] = []
    for _ in range(WARM):
        await tower.embed(inputs)
    cpu_s = time.process_time()
    for _ in range(RUNS):
        began_s = time.perf_counter()
        await tower.embed(inputs)
        took.append((time.perf_counter() - began_s) * 1e6)
    return round(float(np.median(took))), round((time.process_time() - cpu_s) / RUNS * 1e6)


def table(figures: dict[str, Any]) -> str:
    """As Markdown."""
    lines = ["| server | way | us, batch 1 | of it CPU | us, batch 64 | of it CPU |", "|---|---|---|---|---|---|"]
    for name, ways in figures.items():
        for way, found in ways.items():
            cells = " | ".join(f"{found[each]:,}" for each in ("us_1", "cpu_us_1", "us_64", "cpu_us_64"))
            lines.append(f"| {name} | {way} | {cells} |")
    return "\n".join(lines)
