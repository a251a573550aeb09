"""The options `--since` and `--until`: a duration before now, or a time."""

import re
from datetime import UTC, datetime

from workers.errors import ConfigurationError

DURATION = re.compile(r"([0-9]{1,9})([smhd])")
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def since_ms(text: str | None, now_ms: int, option: str = "--since") -> int | None:
    """Epoch milliseconds of `10m` (ago) or `2026-11-25T18:00Z` (UTC where it names no zone); None stays None.

    Raises ConfigurationError for anything else.
    """
    if text is None:
        return None
    duration = DURATION.fullmatch(text)
    if duration is not None:
        return max(0, now_ms - int(duration[1]) * UNITS_MS[duration[2]])
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError) as error:
        line = f"{option}: {text!r} is neither a duration (90s, 10m, 2h, 7d) nor a time (2026-11-25T18:00Z)"
        raise ConfigurationError(line) from error
