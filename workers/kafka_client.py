"""What commands need of Kafka: produce messages in bulk, and how far behind a consumer group is."""

from collections.abc import Iterable, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from workers.errors import ConfigurationError, DependencyUnavailable, InvalidInput
from workers.settings import Settings

Message = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]
"""Key, value, headers."""

MAX_IN_MEMORY = 4096


async def produce(settings: Settings, topic: str, messages: Iterable[Message]) -> int:
    """Send messages, routed by key, and return how many once all in-sync replicas have them.

    Raises ConfigurationError for an unknown topic, InvalidInput for a message that is too large, DependencyUnavailable.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=262_144,
        max_request_size=1_100_000,
    )
    sent = 0
    try:
        await producer.start()
        await require_topic(settings, topic)
        pending = []
        for key, value, headers in messages:
            pending.append(await producer.send(topic, key=key, value=value, headers=list(headers)))
            sent += 1
            if len(pending) >= MAX_IN_MEMORY:
                for future in pending:
                    await future
                pending.clear()
        for future in pending:
            await future
    except MessageSizeTooLargeError as error:
        raise InvalidInput("value_too_large", f"message {sent + 1} is larger than a broker takes") from error
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error or type(error).__name__}") from error
    finally:
        await producer.stop()
    return sent


async def require_topic(settings: Settings, topic: str) -> None:
    """Raise ConfigurationError when the topic does not exist: a producer would wait and log instead."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        if topic not in await admin.list_topics():
            raise ConfigurationError(f"topic {topic} does not exist; `recall topics apply` creates it")
    finally:
        await admin.close()


async def group_lag(settings: Settings, group: str, topic: str) -> int:
    """Records of a topic that a group has not committed yet: its whole content when the group never committed."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        described = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, entry["partition"]) for entry in described[0]["partitions"]]
        committed = {
            partition: entry.offset
            for partition, entry in (await admin.list_consumer_group_offsets(group, partitions=partitions)).items()
            if entry.offset >= 0
        }
        await consumer.start()
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error or type(error).__name__}") from error
    finally:
        await consumer.stop()
        await admin.close()
    return sum(ends[partition] - committed.get(partition, begins[partition]) for partition in partitions)
