"""A worker whose wall clock is wrong: by as many seconds as the file says that `VARIABLE` names. Patches at import.

The clock of gRPC's deadlines is left as it is: a real jump would move it together with the one that they are compared
to, which is that of gRPC's code in C.
"""

import os
import sys
import time

VARIABLE = "RECALL_CHAOS_CLOCK"
LOOK_EVERY_S = 0.05

_time, _time_ns, _monotonic = time.time, time.time_ns, time.monotonic
_shift_s, _looked_s = 0, 0.0


def _shift() -> int:
    global _shift_s, _looked_s  # noqa: PLW0603  # read by every thread
    if _monotonic() - _looked_s > LOOK_EVERY_S:
        _looked_s = _monotonic()
        with open(os.environ[VARIABLE]) as file:  # noqa: PTH123  # pathlib reads clocks at import
            _shift_s = int(file.read() or "0")
    return 0 if sys._getframe(2).f_globals.get("__name__", "").startswith("grpc.") else _shift_s


def _shifted_time() -> float:
    return _time() + _shift()


def _shifted_time_ns() -> int:
    return _time_ns() + _shift() * 1_000_000_000


if VARIABLE in os.environ:
    time.time, time.time_ns = _shifted_time, _shifted_time_ns
