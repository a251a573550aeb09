"""How long a system may take after a fault until it answers normally by itself."""

from collections.abc import Sequence

LIMIT_S = 30.0
LIMITS_S = {"milvus_kill": 60.0, "milvus_stall": 60.0}  # it is started again, and loads
UNLIMITED = ("redis_emptied",)  # until all activity is read again, requests say so


def too_slow(faults: Sequence[str], recovery_s: float) -> str | None:
    """One line when these faults, ended together, took longer than they may."""
    if any(name in UNLIMITED for name in faults):
        return None
    limit_s = max(LIMITS_S.get(name, LIMIT_S) for name in faults)
    if recovery_s <= limit_s:
        return None
    return f"{', '.join(faults)}: well again after {recovery_s:.1f} s, the limit is {limit_s:.0f} s"
