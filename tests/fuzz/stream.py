"""The stream fuzz: events of `traffic` and `malformed` through real workers, and every one of them accounted for."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.chaos.compare import _popular, _users
from tests.chaos.log import ACTIVITY, CANDIDATES, DEAD_LETTERS, ITEMS, REQUESTS
from tests.chaos.model import Rules
from tests.chaos.processes import Workers
from tests.chaos.rig import READY_WITHIN_S, NotRecoveredError, Rig, say
from tests.chaos.run import SHOWN
from tests.chaos.stored import read_all
from tests.fuzz.ledger import Ledger
from tests.fuzz.malformed import Malformed
from tests.fuzz.traffic import BAD, SHARES, Event, Traffic, catalogue
from workers import topics, views
from workers.bench.system import cpu_s, peak_rss_mb
from workers.kafka_client import admin_client
from workers.settings import AGENT_KINDS

CHUNK = 2000
MAX_LAG = {ACTIVITY: 60_000, ITEMS: 6_000, REQUESTS: 1_000}
LOOK_EVERY_S = 0.5
STUCK_AFTER_S = 120.0
MOST_MIB = 300.0


@dataclass
class Report:
    """What a run prints. `effects`, `answers` and `dead_letters` count events; `copies` those beyond one each."""

    seed: int
    events: dict[str, dict[str, int]] = field(default_factory=dict)
    effects: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    unaccounted: int = 0
    worker_deaths: int = 0
    max_worker_memory_mib: dict[str, float] = field(default_factory=dict)
    worker_cpu_s: dict[str, float] = field(default_factory=dict)
    own_memory_mib: float = 0.0
    fed_s: float = 0.0
    duration_s: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether everything was accounted for, by workers that stayed small."""
        return not (self.unaccounted or self.worker_deaths) and max(self.max_worker_memory_mib.values()) < MOST_MIB

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class FuzzRig(Rig):
    """One worker of each kind, with no cap on dead letters, and nothing that feeds them but the fuzz."""

    async def _start(self) -> None:
        self.settings = self.settings.model_copy(update={"dead_letters_per_minute": 0})
        self.workers = Workers(self.settings)
        await topics.apply(self.settings)
        self.view = await views.activate(self.settings, self.bundle.path, self.bundle.version)
        for kind in AGENT_KINDS:
            self.workers.start(kind)
        await self.until(self.workers.ready, READY_WITHIN_S, "the workers are not ready")

    def measure(self, most_mib: dict[str, float]) -> None:
        """Take in the most memory that each worker has held."""
        for worker in self.workers.running:
            with contextlib.suppress(OSError):  # it has just ended
                most_mib[worker.kind] = max(most_mib.get(worker.kind, 0.0), peak_rss_mb(worker.process.pid))


def traffic_of(seed: int, events: int, partitions: int, model_version: str) -> Iterator[Event]:
    """The catalogue, then so many events that there are `events` of them."""
    traffic = Traffic(seed, events, partitions, time.time_ns() // 1_000_000)
    malformed = Malformed(traffic, model_version)
    chance = traffic.chance
    names, weights = [name for name, _ in SHARES], [share for _, share in SHARES]
    made = 0
    for event in islice(catalogue(traffic), events):
        made += 1
        yield event
    while made < events:
        made += 1
        topic = chance.choices(names, weights)[0]
        yield malformed.event(topic) if chance.random() < BAD else traffic.good(topic)


class Feed:
    """Produces events with a bounded lag, and enters them in the ledger as the broker takes them."""

    def __init__(self, rig: FuzzRig, ledger: Ledger, report: Report) -> None:
        self._rig = rig
        self._ledger = ledger
        self._report = report
        self._looked_s = 0.0
        self._admin = admin_client(rig.settings)

    async def run(self, events: Iterator[Event], total: int, within_s: float) -> None:
        """All of them, or those that there is time for; returns when the workers have taken in everything."""
        end_s = time.monotonic() + within_s
        producer = AIOKafkaProducer(
            bootstrap_servers=self._rig.settings.kafka_bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=262_144,
            max_request_size=1_100_000,
        )
        sent, said_s = 0, time.monotonic()
        await producer.start()
        await self._admin.start()
        try:
            await self._send(producer, list(islice(events, min(total, CHUNK))))  # the catalogue
            await self._below(dict.fromkeys(MAX_LAG, 1))
            while time.monotonic() < end_s and (chunk := list(islice(events, CHUNK))):
                await self._send(producer, chunk)
                sent += len(chunk)
                if time.monotonic() - self._looked_s > LOOK_EVERY_S:
                    await self._below(MAX_LAG)
                if time.monotonic() - said_s > 10:
                    said_s = time.monotonic()
                    say(f"{sent} of {total} events, {self._report.max_worker_memory_mib} MiB")
            await self._below(dict.fromkeys(MAX_LAG, 1))
        finally:
            await producer.stop()
            await self._admin.close()

    async def _send(self, producer: Any, chunk: list[Event]) -> None:
        sent = [await self._sent(producer, event) for event in chunk]
        for event, future in zip(chunk, sent, strict=True):
            taken = await future
            self._ledger.take(event, taken.partition, taken.offset, taken.timestamp)

    async def _sent(self, producer: Any, event: Event) -> Any:
        topic, headers = self._rig.settings.topic(event.topic), list(event.headers)
        if event.key is None and event.value is None:  # which other clients can send, and this one only so
            batch = producer.create_batch()
            batch.append(key=None, value=None, timestamp=None, headers=headers)
            return await producer.send_batch(batch, topic, partition=event.partition)
        return await producer.send(topic, event.value, event.key, event.partition, headers=headers)

    async def _below(self, limits: dict[str, int]) -> None:
        """Wait until less than so many records of each topic are left to be taken in."""
        best, since_s = 1 << 60, time.monotonic()
        while True:
            self._rig.workers.supervise()
            self._rig.measure(self._report.max_worker_memory_mib)
            lags = await self._lags()
            self._looked_s = time.monotonic()
            if all(lags[topic] < limit for topic, limit in limits.items()):
                return
            if sum(lags.values()) < best:
                best, since_s = sum(lags.values()), time.monotonic()
            if time.monotonic() - since_s > STUCK_AFTER_S:
                raise NotRecoveredError(f"nothing is taken in for {STUCK_AFTER_S:.0f} s: {lags}")
            await asyncio.sleep(0.1)

    async def _lags(self) -> dict[str, int]:
        """Topic -> events that its workers have not committed."""
        settings, view = self._rig.settings, self._rig.view
        assert view is not None
        groups = {ACTIVITY: "recall-activity", ITEMS: f"recall-items.{view.collection}", REQUESTS: "recall-requests"}
        lags = {}
        for topic, group in groups.items():
            offsets = await self._admin.list_consumer_group_offsets(settings.group(group))
            committed = {place.partition: max(0, found.offset) for place, found in offsets.items()}
            ends = self._ledger.ends(topic)
            lags[topic] = sum(max(0, end - committed.get(partition, 0)) for partition, end in ends.items())
        return lags


async def records(rig: Rig, topic: str) -> AsyncIterator[Any]:
    """Every record of a topic, partition by partition."""
    name = rig.settings.topic(topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=rig.settings.kafka_bootstrap, max_poll_records=5000)
    await consumer.start()
    try:
        for number in range(rig.settings.partitions):
            partition = TopicPartition(name, number)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(timeout_ms=500)).get(partition, ()):
                    yield record
    finally:
        await consumer.stop()


async def account(rig: FuzzRig, ledger: Ledger) -> list[str]:
    """Hold what was stored, answered and given up against the ledger; everything that is not as it must be."""
    settings = rig.settings
    assert rig.view is not None
    ledger.close()
    async for record in records(rig, DEAD_LETTERS):
        ledger.letter(record.key, record.value, record.headers)
    async for record in records(rig, CANDIDATES):
        ledger.answer(record.key, record.value, record.headers)
    redis_url = settings.redis_url.get_secret_value()
    stored = await asyncio.to_thread(read_all, redis_url, settings.milvus_uri, settings.namespace, rig.view.collection)
    found = list(stored.unreadable)
    found += ledger.differences(stored)
    found += [difference.line for difference in (*_users(ledger.expected, stored), *_popular(ledger.expected, stored))]
    return found


async def run(rig: FuzzRig, events: int, within_s: float = float("inf")) -> Report:
    """Feed for at most so long, drain, account."""
    begun_s, report = time.monotonic(), Report(rig.seed)
    ledger = Ledger(Rules.read(rig.bundle.path))
    async with rig:
        try:
            feed_s = time.monotonic()
            made = traffic_of(rig.seed, events, rig.settings.partitions, rig.bundle.version)
            await Feed(rig, ledger, report).run(made, events, within_s)
            report.fed_s = round(time.monotonic() - feed_s, 1)
            say(f"all taken in after {report.fed_s} s")
        finally:
            rig.measure(report.max_worker_memory_mib)
            report.worker_cpu_s = {worker.kind: round(cpu_s(worker.process.pid), 1) for worker in rig.workers.running}
            rig.workers.stop()
        found = await account(rig, ledger)
    report.events = ledger.events
    report.effects, report.answers = dict(ledger.effects), dict(ledger.answers)
    report.dead_letters, report.copies = dict(ledger.letters), dict(ledger.copies)
    report.unaccounted, report.worker_deaths = len(found), len(rig.workers.deaths)
    report.own_memory_mib = peak_rss_mb(os.getpid())
    report.duration_s = round(time.monotonic() - begun_s, 1)
    for line in found[:SHOWN]:
        say(f"  {line[:500]}")
    for death in rig.workers.deaths:
        say(f"  a worker ended by itself: {death}")
    return report
