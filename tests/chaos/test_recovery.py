"""Which recoveries are called slow."""

import pytest

from tests.chaos.recovery import too_slow


@pytest.mark.parametrize(
    ("faults", "recovery_s", "slow"),
    [
        (["redis_kill"], 30.0, False),
        (["redis_kill"], 30.1, True),
        (["milvus_kill"], 59.0, False),
        (["milvus_kill"], 61.0, True),
        (["redis_kill", "milvus_stall"], 59.0, False),
        (["redis_emptied"], 500.0, False),
    ],
)
def test_the_limit_is_that_of_the_slowest(faults: list[str], recovery_s: float, slow: bool) -> None:
    line = too_slow(faults, recovery_s)
    assert (line is not None) == slow
    assert line is None or all(name in line for name in faults)
