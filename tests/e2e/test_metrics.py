"""Every metric exists and moves: real workers, real events, and what a broken backend does to them."""

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Live
from tests.e2e.test_live import click, film, new, request
from workers.client import RecallClient
from workers.kafka_client import produce
from workers.live.sender import Sender
from workers.local.process import end, free_ports
from workers.local.workers import environment
from workers.metrics import Metrics

ONE_PROCESS = """
import uvloop
from workers import app, logs
from workers.settings import AGENT_KINDS, load_settings
logs.configure()
uvloop.run(app.run(load_settings(), AGENT_KINDS))
"""
WITHIN_S = 120.0

Samples = dict[str, float]
"""Declared name -> the sum of its samples (of a histogram, how much was observed)."""


def page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def samples(port: int) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(page(port, "metrics")[1]):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        counted = {"counter": name, "gauge": name, "histogram": f"{name}_count"}[family.type]
        found[name] = sum(sample.value for sample in family.samples if sample.name == counted)
    return found


@pytest.fixture
def broken(live: Live) -> Iterator[int]:
    """All kinds in one process, started three times before, with an index that is not there: its port."""
    web_port, nowhere = free_ports(2)
    settings = live.settings.model_copy(update={"milvus_uri": f"http://127.0.0.1:{nowhere}"})
    env = os.environ | environment(settings) | {"RECALL_WEB_PORT": str(web_port), "RECALL_RESTARTS": "3"}
    log = live.settings.data_dir / "broken.log"
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-c", ONE_PROCESS], env=env, stdout=output, stderr=output)
    yield web_port
    assert end(child, 60.0) == 0, log.read_text()[-3000:]


async def test_every_metric_exists_and_moves(
    live: Live, client: RecallClient, sender: Sender, broken: int, ports: list[int]
) -> None:
    before = [samples(port) for port in ports]
    user = new("u")
    item = film(new("film"))
    crowd = [click(new("u"), "film-3") for _ in range(2000)]  # so many that a worker is seen at work
    moved: set[str] = set()
    missing = {metric.name for metric in Metrics().declared}
    missing.remove("recall_breaker_open")  # moves in test_ladder.py: here nothing was ever there to be taken away
    missing.remove("recall_dead_letters_paused")  # moves in test_dead_letter_cap.py: here it would end what is measured
    missing.remove("recall_missed_deletions")  # moves in test_reconcile.py
    # These move in test_feature_sources.py and unit/test_extractors.py: this spec names neither sources nor extractors.
    missing -= {"recall_features_total", "recall_extractor_ms", "recall_extractor_failures_total"}
    await sender.activities([click(user, "film-3")])
    stop = time.monotonic() + WITHIN_S
    while missing - moved:
        assert time.monotonic() < stop, f"did not move: {sorted(missing - moved)}"
        await sender.item(item)
        for topic in ("user-activity", "item-updates", "recall-requests"):
            await produce(live.settings, live.settings.topic(topic), [(b"k", b"rubbish", ())])
        await sender.activities(crowd)  # last: they are not at work on it for long
        late = request(user, after_event_id="never-sent")
        asking = asyncio.gather(client.ask(late), *(client.ask(request(user)) for _ in range(20)))
        all_found = await asyncio.gather(*(asyncio.to_thread(samples, port) for port in (*ports, broken)))
        for found, earlier in zip(all_found, [*before, {}], strict=True):
            moved |= {name for name, value in found.items() if value != earlier.get(name, 0.0)}
            moved |= {name for name in ("recall_ready", "recall_worker_info") if found.get(name)}
        await asking


@pytest.fixture
def ports(live: Live) -> list[int]:
    return live.web_ports


async def test_a_worker_without_its_index_is_alive_but_not_ready(broken: int) -> None:
    stop = time.monotonic() + WITHIN_S
    while (found := page(broken, "readyz"))[0] != 503 or "milvus" not in found[1]:
        assert time.monotonic() < stop, found
        await asyncio.sleep(0.1)
    assert page(broken, "healthz")[0] == 200
    assert samples(broken)["recall_restarts"] == 9, "three of each kind"
