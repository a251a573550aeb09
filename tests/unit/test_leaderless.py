"""A consumer in front of a partition without a leader asks where it is now and then, and fetches from the others."""

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState

from workers import leaderless

LED, LEADERLESS = TopicPartition("t", 0), TopicPartition("t", 1)
FETCHES = 30


class Brokers:
    """One that leads one of two partitions, has no records, and answers at once."""

    def __init__(self) -> None:
        self.questions, self.fetches = 0, 0
        self.enough = asyncio.Event()
        self.cluster = SimpleNamespace(leader_for_partition={LED: 1, LEADERLESS: -1}.get)
        self._loop, self._metadata_max_age_ms = asyncio.get_running_loop(), 1000

    def force_metadata_update(self) -> "asyncio.Future[bool]":
        self.questions += 1
        answer = self._loop.create_future()
        answer.set_result(True)
        return answer

    async def send(self, node: int, _: Any) -> Any:
        assert node == 1
        self.fetches += 1
        if self.fetches == FETCHES:
            self.enough.set()
        await asyncio.sleep(0.01)
        return SimpleNamespace(API_VERSION=4, topics=[("t", [(0, 0, 0, 0, [], b"")])])


async def test_questions_have_pauses_between_and_others_are_fetched_meanwhile() -> None:
    leaderless.ask_with_pauses()
    subscriptions, brokers = SubscriptionState(), Brokers()
    subscriptions.assign_from_user({LED, LEADERLESS})
    for place in (LED, LEADERLESS):
        subscriptions.seek(place, 0)
    began_s = brokers._loop.time()
    fetcher = Fetcher(brokers, subscriptions, auto_offset_reset="earliest")
    try:
        async with asyncio.timeout(60):
            await brokers.enough.wait()
        most = (brokers._loop.time() - began_s) / leaderless.PAUSE_S + 2
        assert 0 < brokers.questions <= most
    finally:
        await fetcher.close()
