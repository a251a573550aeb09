"""What a worker remembers of its backends: one line per outage, however many calls fail, and when it is over."""

import asyncio

import pytest
import structlog

from workers.dependencies import SAY_EVERY_S, SETTLED_S, Dependencies
from workers.errors import DependencyError, DependencyTimeout, DependencyUnavailable
from workers.metrics import Metrics
from workers.retry import until_done

DOWN = DependencyUnavailable("redis", "connection refused")


class Time:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def dependencies(metrics: Metrics, time: Time) -> Dependencies:
    return Dependencies("recall", metrics, time)


def test_a_thousand_failures_are_few_lines_and_all_counted(
    dependencies: Dependencies, metrics: Metrics, time: Time
) -> None:
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            time.now_s += 0.025
            dependencies.failed(DOWN)
        dependencies.worked("redis")
    events = [line["event"] for line in lines]
    assert events == ["dependency failed", *["dependency still fails"] * int(25 / SAY_EVERY_S), "dependency is back"]
    counted = metrics.registry.get_sample_value(
        "recall_dependency_failures_total", {"kind": "recall", "dependency": "redis"}
    )
    assert counted == 1000


def test_missing_names_what_fails_until_it_works(dependencies: Dependencies, time: Time) -> None:
    assert dependencies.missing() is None
    dependencies.failed(DOWN)
    time.now_s += 7
    assert dependencies.missing() == "redis: connection refused (for 7 s)"
    dependencies.worked("milvus")
    assert dependencies.missing() is not None
    dependencies.worked("redis")
    assert dependencies.missing() is None


async def test_until_done_tells_of_failures_and_of_the_end(dependencies: Dependencies, metrics: Metrics) -> None:
    failures = 3

    async def work() -> str:
        nonlocal failures
        if failures:
            failures -= 1
            raise DOWN
        return "done"

    assert await until_done(work, dependencies) == "done"
    assert dependencies.missing() is None


async def probed(dependencies: Dependencies, error: DependencyError | None) -> None:
    """One round of questions. What comes of an answer follows it without a pause."""
    asked = asyncio.Event()

    async def probe() -> None:
        asked.set()
        if error is not None:
            raise error

    watching = asyncio.create_task(dependencies.watch({"redis": probe}))
    await asyncio.wait_for(asked.wait(), 10)
    watching.cancel()


async def test_an_idle_worker_notices_an_outage_and_its_end(
    dependencies: Dependencies, metrics: Metrics, time: Time
) -> None:
    await probed(dependencies, DOWN)
    assert dependencies.missing() is not None
    assert metrics.registry.get_sample_value("recall_dependency_failures_total", {"kind": "recall"}) is None
    time.now_s += 2
    await probed(dependencies, None)
    assert dependencies.missing() is None


async def test_an_answer_does_not_end_an_outage_while_work_fails(dependencies: Dependencies, time: Time) -> None:
    dependencies.failed(DOWN)
    time.now_s += SETTLED_S / 2
    await probed(dependencies, None)
    assert dependencies.missing() is not None
    time.now_s += SETTLED_S
    await probed(dependencies, None)
    assert dependencies.missing() is None


async def test_a_backend_that_never_answers_fails_its_probe(
    dependencies: Dependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.dependencies.PROBE_TIMEOUT_S", 0.01)

    async def hangs() -> None:
        await asyncio.Event().wait()

    watching = asyncio.create_task(dependencies.watch({"milvus": hangs}))
    while dependencies.missing() is None:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert "milvus: no answer" in (dependencies.missing() or "")


@pytest.mark.parametrize("error", [None, DOWN, DependencyTimeout("redis", "no answer in 1 s")], ids=str)
async def test_only_a_probe_without_any_answer_is_silence(
    dependencies: Dependencies, error: DependencyError | None
) -> None:
    breaker = dependencies.breaker("redis")
    await probed(dependencies, error)
    assert breaker.is_silent is isinstance(error, DependencyTimeout)
