"""Thousands of events, a third malformed in every way that docs/events.md names: every one is accounted for."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.rig import fit_bundle
from tests.conftest import Stack
from tests.fuzz import stream
from tests.fuzz.malformed import OF_ACTIVITY, OF_ITEM, REFUSED, UNANSWERABLE, UNREADABLE
from tests.fuzz.stream import MOST_MIB, FuzzRig

EVENTS = 10_000


@pytest.mark.timeout(300)
async def test_every_event_has_an_effect_an_answer_or_a_dead_letter(stack: Stack, tmp_path: Path) -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    servers: Any = SimpleNamespace(data_dir=stack.data_dir, services=[])
    report = await stream.run(FuzzRig(servers, fit_bundle(tmp_path), seed=7), EVENTS)
    print(report)
    assert (report.unaccounted, report.worker_deaths) == (0, 0)
    assert max(report.max_worker_memory_mib.values()) < MOST_MIB
    assert report.clean
    assert sum(sum(kinds.values()) for kinds in report.events.values()) == EVENTS
    assert {*UNREADABLE, *OF_ACTIVITY} <= set(report.events["user-activity"])
    assert {*UNREADABLE, *OF_ITEM} <= set(report.events["item-updates"])
    assert {*UNREADABLE, *REFUSED, *UNANSWERABLE} <= set(report.events["recall-requests"])
    assert report.effects["activities"] > 3000
    assert report.dead_letters["not_json"] > 600
