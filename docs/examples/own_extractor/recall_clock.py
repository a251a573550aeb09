"""An extractor: where in the day and in the week a request falls, and how long ago each of a user's events was.

In features.toml:   [extractors.clock]
                    version = "1"
                    outputs.phase = 4
                    outputs.recency = 3
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
CYCLES_MS = (DAY_MS, 7 * DAY_MS)
WITHIN_MS = (HOUR_MS, DAY_MS, 7 * DAY_MS)


def clock(users: Any, requests: Any) -> Mapping[str, np.ndarray]:
    """`phase` float32[B, 4]: sine and cosine of day and week; `recency` float32[B, 3]: share of events within a span.

    `users` are columns of what is known at the requests' times, `requests` has `as_of_ms` int64[B] and `contexts`.
    """
    angles = np.stack([2 * np.pi * (requests.as_of_ms % cycle) / cycle for cycle in CYCLES_MS], axis=1)
    phase = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    there = users.item_hashes != 0
    ago_ms = requests.as_of_ms[:, None] - users.timestamps_ms
    recent = [(there & (ago_ms < span)).sum(axis=1) for span in WITHIN_MS]
    recency = np.stack(recent, axis=1) / np.maximum(there.sum(axis=1, keepdims=True), 1)
    return {"phase": phase.astype(np.float32), "recency": recency.astype(np.float32)}


clock.version = "1"  # type: ignore[attr-defined]  # optional: then a spec that needs another one is refused
