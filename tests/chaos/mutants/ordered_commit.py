"""Commits go past records in flight: up to the last one that was polled."""

from workers.inflight import InFlight

_add, _committable = InFlight.add, InFlight.committable


def add(self, polled, starts=None):
    _add(self, polled, starts)
    last = self.__dict__.setdefault("last_polled", {})
    for partition, records in polled.items():
        last[partition] = records[-1].offset + 1


def committable(self):
    _committable(self)  # which others rely on, to know what is finished
    last = self.__dict__.get("last_polled", {})
    return {partition: offset for partition, offset in last.items() if self._confirmed.get(partition) != offset}


InFlight.add = add
InFlight.committable = committable
