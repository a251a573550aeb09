"""A request has a minute more than it says."""

from workers.pipelines.admission import Incoming

Incoming.deadline_ms = property(lambda self: self.taken_ms + self.request.timeout_ms + 60_000)
