"""What is kept of a feature source's answers, and that nobody is asked for twice at once."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from workers.errors import DependencyUnavailable
from workers.features.cached import CachedFeatures
from workers.features.memory import MemoryFeatureSource


class Slow(MemoryFeatureSource):
    """Answers when it may, and remembers what it was asked."""

    def __init__(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(stored)
        self.asked: list[list[str]] = []
        self.may = asyncio.Event()
        self.fails = False

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        self.asked.append(list(user_ids))
        await self.may.wait()
        if self.fails:
            raise DependencyUnavailable("features.shop", "it is broken")
        return await super().values(user_ids, names)


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


USERS = {"a": {"age": 1}, "b": {"age": 2, "tier": "x"}, "c": {"age": 3}}


def cached(source: MemoryFeatureSource, time: Time | None = None, **options: Any) -> CachedFeatures:
    given: dict[str, Any] = {"ttl_ms": 1000, "size": 10, "jitter": lambda: 1.0} | options
    return CachedFeatures(source, ["age"], now_s=time or Time(), **given)


def slow(*, may: bool = True) -> Slow:
    source = Slow(USERS)
    if may:
        source.may.set()
    return source


async def test_an_answer_counts_until_its_time_is_over() -> None:
    source, time = slow(), Time()
    features = cached(source, time)
    assert features.kept(["a", "b"]) == {}
    assert await features.ask(["b", "nobody"]) == {"b": {"age": 2}, "nobody": {}}
    time.now_s += 0.9
    assert features.kept(["a", "b", "nobody"]) == {"b": {"age": 2}, "nobody": {}}, "that nobody is known is kept too"
    time.now_s += 0.2
    assert features.kept(["a", "b", "nobody"]) == {}


async def test_times_differ_a_little() -> None:
    source, time = slow(), Time()
    lengths = iter([0.8, 1.0])
    features = cached(source, time, jitter=lambda: next(lengths))
    await features.ask(["a", "b"])
    time.now_s += 0.9
    assert features.kept(["a", "b"]) == {"b": {"age": 2}}


async def test_no_answer_counts_for_longer_than_its_time() -> None:
    users, time = {str(n): {"age": n} for n in range(200)}, Time()
    features = CachedFeatures(MemoryFeatureSource(users), ["age"], ttl_ms=1000, size=200, now_s=time)
    await features.ask(list(users))
    time.now_s += 0.79
    assert len(features.kept(users)) == 200
    time.now_s += 0.21
    assert features.kept(users) == {}


async def test_what_no_longer_counts_goes_though_nobody_asks() -> None:
    time = Time()
    features = cached(slow(), time)
    await features.ask(["a"])
    time.now_s += 1.1
    features.expire()
    time.now_s -= 1.1  # it would count again
    assert features.kept(["a"]) == {}
    cached(slow(), ttl_ms=0).expire()


async def test_no_more_users_than_it_may_are_kept() -> None:
    features = cached(slow(), size=2)
    await features.ask(["a", "b", "c"])
    assert len(features.kept(USERS)) == 2


async def test_without_a_time_nothing_is_kept() -> None:
    source = slow()
    features = cached(source, ttl_ms=0)
    for _ in range(2):
        assert await features.ask(["a"]) == {"a": {"age": 1}}
        assert features.kept(["a"]) == {}
    assert source.asked == [["a"], ["a"]]


async def test_two_batches_that_want_the_same_user_ask_once() -> None:
    source = slow(may=False)
    features = cached(source)
    calls = [asyncio.create_task(features.ask(users)) for users in (["a", "b"], ["b", "c"], ["a"])]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    source.may.set()
    found = await asyncio.gather(*calls)
    assert found == [{"a": {"age": 1}, "b": {"age": 2}}, {"b": {"age": 2}, "c": {"age": 3}}, {"a": {"age": 1}}]
    assert source.asked == [["a", "b"], ["c"]]


async def test_who_gives_up_does_not_cut_short_the_others() -> None:
    source = slow(may=False)
    features = cached(source)
    first, second = (asyncio.create_task(features.ask(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    source.may.set()
    assert await second == {"a": {"age": 1}}
    assert features.kept(["a"]) == {"a": {"age": 1}}


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    source = slow(may=False)
    source.fails = True
    features = cached(source)
    calls = [asyncio.create_task(features.ask(["a", "b"])), asyncio.create_task(features.ask(["a"]))]
    await asyncio.sleep(0)
    source.may.set()
    for call in calls:
        with pytest.raises(DependencyUnavailable):
            await call
    source.fails = False
    assert await features.ask(["a"]) == {"a": {"age": 1}}


async def test_it_is_closed_while_it_asks() -> None:
    features = cached(slow(may=False))
    call = asyncio.create_task(features.ask(["a"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await features.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    await features.close()
