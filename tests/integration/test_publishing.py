"""Publishing in record batches: what is too large harms nothing else, and its request is answered all the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord, TopicPartition

from models import signature
from models.datasets.generated import generate
from schemas import codec
from schemas.dead_letter import from_message
from schemas.recall import RecallRequest
from tests.conftest import PATIENT_MS
from tests.e2e.conftest import fit_small
from tests.integration.recall_system import plain_pipeline
from workers import topics
from workers.agents import Context, RecallAgent
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.engine import serve
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.ports import IndexRows
from workers.publisher import Outgoing, Publisher
from workers.settings import Settings
from workers.towers.onnx import OnnxTower
from workers.transport import MAX_REQUEST_BYTES, batch_topic, create_app


@pytest.fixture
async def publisher(settings: Settings, tmp_path: Any) -> AsyncIterator[Publisher]:
    """A publisher of a running app that consumes nothing."""
    await topics.apply(settings)
    app = create_app(settings.group("publishing"), settings.model_copy(update={"data_dir": tmp_path}), BatchPolicy())

    async def handle(batch: Any) -> None:
        batch.done()

    @app.agent(batch_topic(app, settings.topic("recall-requests")))
    async def agent(stream: Any) -> None:
        await serve(stream, handle)

    await app.start()
    yield Publisher(app, 30_000)
    await app.stop()


async def read(settings: Settings, topic: str) -> list[ConsumerRecord]:
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap)
    await consumer.start()
    partitions = [TopicPartition(settings.topic(topic), n) for n in range(settings.partitions)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning()
    ends = await consumer.end_offsets(partitions)
    records: list[ConsumerRecord] = []
    while any([await consumer.position(p) < end for p, end in ends.items()]):
        for found in (await consumer.getmany(timeout_ms=500)).values():
            records += found
    await consumer.stop()
    return records


async def test_a_message_that_is_too_large_is_reported_and_harms_no_other(
    settings: Settings, publisher: Publisher
) -> None:
    topic = settings.topic("recall-candidates")
    large = Outgoing(b"k", b"x" * (MAX_REQUEST_BYTES + 1), (), 1)
    fits = Outgoing(b"k", b"x" * (MAX_REQUEST_BYTES - 200), (), 1)
    small = [Outgoing(b"k", b"%d" % n, (("h", b"v"),), 1) for n in range(3)]
    assert await publisher.send(topic, [small[0], large, small[1], fits]) == [1]
    assert await publisher.send(topic, [large]) == [0]
    assert await publisher.send(topic, [small[2]]) == [], "the producer goes on as before"
    records = await read(settings, "recall-candidates")
    assert sorted(len(record.value) for record in records) == [1, 1, 1, MAX_REQUEST_BYTES - 200]
    assert {record.partition for record in records} == {1}


async def test_keys_route_as_in_every_kafka_client(settings: Settings, publisher: Publisher) -> None:
    topic = settings.topic("recall-candidates")
    await asyncio.gather(*(publisher.send(topic, [Outgoing(b"%d" % n, b"")]) for n in range(40)))
    from aiokafka.partitioner import DefaultPartitioner

    partition_of = DefaultPartitioner()
    everywhere = list(range(settings.partitions))
    for record in await read(settings, "recall-candidates"):
        assert record.partition == partition_of(record.key, everywhere, everywhere)


async def test_an_answer_that_is_too_large_is_said_and_its_request_kept(
    settings: Settings, publisher: Publisher, tmp_path: Any
) -> None:
    dataset = generate(items=60, users=60, events=2500)
    bundle = fit_small(dataset, tmp_path)
    inputs, outputs = signature.user_inputs(bundle.encoding, 32), signature.user_outputs(32)
    tower = OnnxTower(bundle.user_tower, inputs, outputs, PATIENT_MS)
    collection = Collection("c", 32, bundle.metric, bundle.version)
    index = MemoryItemIndex(collection)
    ids = [f"{n:04}" + "\x01" * 250 for n in range(1000)]  # six bytes each in JSON: 1.5 MB
    await index.upsert(IndexRows(ids, np.random.default_rng(0).random((1000, 32), dtype=np.float32), [{}] * 1000))
    clock = SystemClock()
    metrics = Metrics()
    dependencies = Dependencies("recall", metrics)
    pipeline = plain_pipeline(bundle, tower, index=index)
    context = Context("recall", settings, publisher, metrics, dependencies, clock)
    agent = RecallAgent(context, pipeline, lambda: settings.partitions)
    flight = InFlight(BatchPolicy())
    requests = [RecallRequest(request_id=f"r{n}", user_id="u", k=k, timeout_ms=60_000) for n, k in enumerate([1000, 3])]
    records = [
        ConsumerRecord(
            settings.topic("recall-requests"),
            0,
            n,
            clock.now_ms(),
            1,
            b"u",
            codec.encode_event(request),
            None,
            1,
            1,
            (),
        )
        for n, request in enumerate(requests)
    ]
    flight.add({(records[0].topic, 0): records})
    batch = flight.take()
    assert batch is not None
    await agent.handle(batch)
    async with asyncio.timeout(20):
        while flight.committable() != {(records[0].topic, 0): 2}:
            await asyncio.sleep(0.01)
    await tower.close()

    answers = {
        a.request_id: a for a in (codec.decode_candidates(r.value) for r in await read(settings, "recall-candidates"))
    }
    assert (answers["r0"].status, answers["r0"].reasons, answers["r0"].error_field) == (
        "rejected",
        ["answer_too_large"],
        "k",
    )
    assert (answers["r1"].status, len(answers["r1"].item_ids)) == ("ok", 3)
    (letter,) = [from_message(r.key, r.value, r.headers) for r in await read(settings, "recall-dead-letters")]
    assert (letter.code, letter.offset, letter.value) == ("answer_too_large", 0, records[0].value)
