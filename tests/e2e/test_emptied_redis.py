"""Redis is emptied under traffic: nobody is taken for unknown meanwhile, and all of it comes back from Kafka."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas import codec
from schemas.activity import UserActivity
from schemas.recall import CandidateList, RecallRequest
from schemas.records import TOKEN_BYTES, UserRecord, compact_seen
from tests.conftest import PATIENT, Stack
from tests.e2e.conftest import fit_small, load, prepare
from workers.client import RecallClient
from workers.kafka_client import group_lag
from workers.local.process import end
from workers.local.redis import Redis
from workers.local.workers import environment
from workers.pipelines.activity import ActivityPipeline
from workers.pipelines.activity_event import decode_activity
from workers.pipelines.popular_counts import PopularCounts
from workers.popularity import Popularity
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, connect
from workers.stores.popular_redis import RedisPopularTable
from workers.stores.user_redis import GROUP, RedisUserTable

DATASET = generate(items=100, users=60, events=2500)
KNOWN = [f"known-{n}" for n in range(12)]
EVENTS_OF_EACH = 100  # more than a history holds
REFILLED_WITHIN_S = 120
Dump = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(DATASET, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def settings(stack: Stack, own_redis: Redis, namespace: str, tmp_path: Path, bundle: Bundle) -> Settings:
    settings = stack.settings(**PATIENT, namespace=namespace, data_dir=tmp_path, redis_url=own_redis.address)
    asyncio.run(prepare(settings, bundle))
    return settings


@pytest.fixture
def workers(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    """One of each kind, started again when they end."""
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "all"]
    child = subprocess.Popen(argv, env=os.environ | environment(settings), text=True)
    yield child
    child.send_signal(signal.SIGTERM)
    end(child, 15.0)  # type: ignore[arg-type]
    for log in sorted((settings.data_dir / "logs").iterdir()):
        print(log, log.read_text()[-3000:])


class Feed:
    """Activities of known users; `sent` of each."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._topic = settings.topic("user-activity")
        self._producer = producer
        self.sent = 0

    async def send(self, events: int) -> None:
        """So many more of each user, each of them liked; some pushed in with old times, some that cannot be read."""
        waits = []
        for _ in range(events):
            for number, user in enumerate(KNOWN):
                self.sent += 1
                event = UserActivity(
                    event_id=uuid.uuid4().hex,
                    user_id=user,
                    action="rate",
                    value=5.0,
                    timestamp_ms=DATASET.test_ms + (self.sent % 700) * 1000,
                    item_id=DATASET.item_ids[(self.sent * 7 + number) % len(DATASET.item_ids)],
                )
                value = codec.encode_event(event) if self.sent % 97 else b"unreadable"
                waits.append(await self._producer.send(self._topic, key=user.encode(), value=value))
        await asyncio.gather(*waits)


@asynccontextmanager
async def feeding(settings: Settings) -> AsyncIterator[Feed]:
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all") as producer:
        yield Feed(settings, producer)


async def until_taken_in(settings: Settings) -> None:
    group, topic = settings.group(GROUP), settings.topic("user-activity")
    async with asyncio.timeout(REFILLED_WITHIN_S):
        while await group_lag(settings, group, topic):
            await asyncio.sleep(0.2)


async def everything(client: Client, namespace: str, *kinds: str) -> Dump:
    """What stands under keys of these kinds, without tokens, offsets, and repeats of seen items."""
    found: Dump = {}
    async for key in client.scan_iter(match=f"{namespace}:*", count=1000):
        name = key.decode().removeprefix(f"{namespace}:")
        kind = name.partition(":")[0]
        if kind not in kinds or name.endswith(("partitions", "}")):
            continue
        if kind == "popular":
            found[name] = await client.zrange(key, 0, -1, withscores=True)
        elif ":record:" in name:
            found[name] = UserRecord.decode(await client.get(key)).with_token(bytes(TOKEN_BYTES)).encode()
        elif ":seen:" in name:
            found[name] = compact_seen(await client.get(key))
        else:
            found[name] = await client.get(key)
    return found


async def replayed(settings: Settings, client: Client, bundle: Bundle) -> Dump:
    """What a worker that reads user-activity once, undisturbed, puts into an empty namespace."""
    clean = settings.model_copy(update={"namespace": f"{settings.namespace}clean"})
    popularity = Popularity(bundle.encoding)
    counts = PopularCounts(RedisPopularTable(client, clean, popularity.definition), popularity)
    spec = bundle.spec
    pipeline = ActivityPipeline(RedisUserTable(client, clean), spec.seen_actions, spec.actions, popular=counts)
    for partition in range(settings.partitions):
        for start in range(0, len(records := await log_of(settings, partition)), 500):
            events = []
            for record in records[start : start + 500]:
                with suppress(codec.DecodeError):
                    events.append(decode_activity(record))
            await pipeline.run(events, {partition: (start, start + len(records[start : start + 500]))})
    return await everything(client, clean.namespace, "user", "popular")


async def log_of(settings: Settings, partition: int) -> list[Any]:
    place = TopicPartition(settings.topic("user-activity"), partition)
    async with AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        stop = (await consumer.end_offsets([place]))[place]
        records: list[Any] = []
        while await consumer.position(place) < stop:
            for found in (await consumer.getmany(timeout_ms=500)).values():
                records += found
    return records


async def ask(client: RecallClient, user: str) -> CandidateList:
    return await client.ask(RecallRequest(request_id=uuid.uuid4().hex, user_id=user, k=10, timeout_ms=20_000))


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("workers")
async def test_flushall_under_traffic(settings: Settings, bundle: Bundle) -> None:
    redis = connect(settings)
    await load(settings, DATASET)
    async with feeding(settings) as feed, RecallClient(settings) as client:
        await feed.send(EVENTS_OF_EACH)
        await until_taken_in(settings)
        assert (await ask(client, "nobody")).reasons == ["cold_start"]
        assert (await ask(client, KNOWN[0])).status == "ok"
        items = await everything(redis, settings.namespace, "item")
        flushed = asyncio.Event()

        async def flush() -> None:
            await asyncio.sleep(0.5)  # somewhere amid the traffic
            await redis.flushall()
            flushed.set()

        flushing = asyncio.create_task(flush())
        reasons: list[tuple[str, list[str]]] = []
        whole = False
        async with asyncio.timeout(REFILLED_WITHIN_S):
            while not whole:
                await feed.send(2)
                was_flushed = flushed.is_set()
                known, unknown = await asyncio.gather(ask(client, KNOWN[3]), ask(client, "nobody"))
                whole = was_flushed and bool(await redis.exists(keys.filled_whole(settings, GROUP)))
                assert "cold_start" not in known.reasons
                if was_flushed and not whole:
                    reasons.append((unknown.status, unknown.reasons))
        await flushing
        print(reasons)
        assert reasons, "it was filled before anybody asked"
        assert {status for status, _ in reasons} == {"degraded"}
        assert {why for _, said in reasons for why in said} == {"features_unavailable"}
        await until_taken_in(settings)
        assert (await ask(client, "nobody")).reasons == ["cold_start"]
        async with asyncio.timeout(REFILLED_WITHIN_S):
            while await everything(redis, settings.namespace, "item") != items:
                await asyncio.sleep(0.3)
        for user in KNOWN:
            answer = await ask(client, user)
            assert (answer.status, answer.reasons) == ("ok", [])
    found = await everything(redis, settings.namespace, "user", "popular")
    expected = await replayed(settings, redis, bundle)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert await redis.exists(keys.active_view(settings))
    await redis.aclose()
