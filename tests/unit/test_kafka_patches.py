"""aiokafka with our patches: answers that name nothing, the end of sequence numbers, brokers that are all gone."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupLoadInProgressError, KafkaError, NotCoordinatorForGroupError
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.commit import OffsetFetchRequest

from workers import brokers_gone, kafka_patches

PLACE = TopicPartition("t", 0)


@pytest.fixture(autouse=True)
def _patched() -> None:
    kafka_patches.apply()
    kafka_patches.apply()


class Coordinator:
    """Of a group that has committed 7; `codes` are what it answers first."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.died = 0
        self.group_id, self.coordinator_id, self._retry_backoff_ms = "g", 1, 1
        self._client = SimpleNamespace(send=self.answer)
        self._send_req = GroupCoordinator._send_req.__get__(self)
        self._do_fetch_commit_offsets = GroupCoordinator._do_fetch_commit_offsets.__get__(self)

    async def answer(self, _: int, request: Any, **__: Any) -> Any:
        assert isinstance(request, OffsetFetchRequest)
        if self.codes:
            return SimpleNamespace(error_code=self.codes.pop(0), topics=[])
        return SimpleNamespace(error_code=0, topics=[("t", [(0, 7, "", 0)])])

    async def ensure_coordinator_known(self) -> None:
        pass

    def coordinator_dead(self) -> None:
        self.died += 1


@pytest.mark.parametrize(("code", "died"), [(14, 0), (15, 1), (16, 1)])
async def test_a_coordinator_that_is_not_ready_does_not_say_that_nothing_is_committed(code: int, died: int) -> None:
    coordinator: Any = Coordinator(code, code)
    found = await GroupCoordinator.fetch_committed_offsets(coordinator, [PLACE])
    assert {place: each.offset for place, each in found.items()} == {PLACE: 7}
    assert coordinator.died == 2 * died


@pytest.mark.parametrize("error", [GroupLoadInProgressError, NotCoordinatorForGroupError])
def test_it_is_asked_again(error: type[KafkaError]) -> None:
    assert error.retriable


async def test_behind_the_last_sequence_number_comes_the_first() -> None:
    manager = TransactionManager(None, 1000)
    manager._sequence_numbers[PLACE] = 2**31 - 5
    manager.increment_sequence_number(PLACE, 10)
    assert manager._sequence_numbers[PLACE] == 5
    manager.increment_sequence_number(PLACE, 3)
    assert manager._sequence_numbers[PLACE] == 8


async def test_where_no_broker_that_is_known_answers_those_of_the_settings_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int]] = []
    answer = SimpleNamespace(brokers=[(2, "there", 1)])

    async def connect(host: str, port: int, **_: Any) -> Any:
        asked.append((host, port))
        if host == "gone":
            raise OSError(host)

        async def send(_: Any) -> Any:
            return answer

        return SimpleNamespace(send=send, close=lambda: None)

    monkeypatch.setattr(brokers_gone, "create_conn", connect)
    client: Any = AIOKafkaClient(bootstrap_servers=["gone:1", "name:2"])
    taken: list[Any] = []
    monkeypatch.setattr(client.cluster, "update_metadata", taken.append)
    assert await client._metadata_update(client.cluster, set())
    assert (asked, taken) == ([("gone", 1), ("name", 2)], [answer])
    answer.brokers.clear()
    assert not await client._metadata_update(client.cluster, set())
