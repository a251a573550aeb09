"""Sends events one by one and waits until Kafka has them."""

from collections.abc import Sequence
from types import TracebackType

from aiokafka import AIOKafkaProducer

from schemas import codec
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from workers.kafka_login import connection
from workers.settings import Settings


class Sender:
    """A producer of activities and item updates. `async with Sender(settings) as sender`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = AIOKafkaProducer(**connection(settings), acks="all", enable_idempotence=True)

    async def __aenter__(self) -> "Sender":
        """Connect."""
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def activities(self, activities: Sequence[UserActivity]) -> None:
        """Send activities, in order per user."""
        topic = self._settings.topic("user-activity")
        sent = [
            await self._producer.send(topic, key=activity.user_id.encode(), value=codec.encode_event(activity))
            for activity in activities
        ]
        for delivery in sent:
            await delivery

    async def item(self, update: ItemUpdate) -> None:
        """Send one item update."""
        topic = self._settings.topic("item-updates")
        await self._producer.send_and_wait(topic, key=update.item_id.encode(), value=codec.encode_event(update))
