"""Facts about processes and the machine: CPU time, memory, versions."""

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from workers.local.ready import open_page

TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = ("faust-streaming", "aiokafka", "redis", "pymilvus", "onnxruntime", "orjson", "numpy")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def own_cpu_s() -> float:
    """The same for this process, finer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_rss_mb(pid: int) -> float:
    """The most memory that a process has held, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """A worker's metrics at one moment."""

    at_s: float
    cpu_s: float
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, have), value in self.values.items() if found == name and wanted <= set(have))

    def histogram(self, name: str, **labels: str) -> dict[str, float]:
        """Upper bound -> observations up to it, cumulative as Prometheus has them."""
        wanted = set(labels.items())
        rows = [
            (dict(have)["le"], value)
            for (found, have), value in self.values.items()
            if found == f"{name}_bucket" and wanted <= set(have)
        ]
        return dict(sorted(rows, key=lambda row: float(row[0])))


def scrape(pid: int, web_port: int) -> Scrape:
    """Read a worker's /metrics and its CPU time."""
    with open_page(f"http://127.0.0.1:{web_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Scrape(time.perf_counter(), cpu_s(pid), values)


def batch_sizes(before: Scrape, after: Scrape, kind: str) -> dict[str, int]:
    """Batches between two moments by size: upper bound of the size -> batches."""
    earlier = before.histogram("recall_batch_records", kind=kind)
    later = after.histogram("recall_batch_records", kind=kind)
    sizes, below = {}, 0
    for bound, count in later.items():
        cumulative = int(count - earlier.get(bound, 0.0))
        if cumulative > below:
            sizes[bound.removesuffix(".0")] = cumulative - below
        below = cumulative
    return sizes


def machine() -> dict[str, Any]:
    """Where and with what the figures came about."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
