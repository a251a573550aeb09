"""Offsets are committed as soon as Redis has acknowledged their writes."""

from workers.inflight import InFlight

_settles = InFlight.settles


def settles(self, in_ms):
    return _settles(self, 0)


InFlight.settles = settles
