"""What a worker counts, as Prometheus metrics. Names, types and meanings stand here; labels are bounded, no ids."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "recall_events",
            "Events taken from a topic, by what came of them",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.answers = Counter(
            "recall_answers",
            "Answers published, by status and first reason",
            ["status", "reason"],
            registry=self.registry,
        )
        self.dead_letters = Counter(
            "recall_dead_letters", "Events sent to the dead-letter topic", ["kind", "code"], registry=self.registry
        )
        self.retries = Counter(
            "recall_retries",
            "Batches tried again because a dependency failed",
            ["kind", "dependency"],
            registry=self.registry,
        )
        self.batch_records = Histogram(
            "recall_batch_records", "Records in a batch", ["kind"], buckets=_RECORDS, registry=self.registry
        )
        self.batch_ms = Histogram(
            "recall_batch_ms",
            "From taking a batch to acknowledging it, ms",
            ["kind"],
            buckets=_MS,
            registry=self.registry,
        )
        self.step_ms = Histogram(
            "recall_step_ms", "Time of one step of recall, ms", ["step"], buckets=_MS, registry=self.registry
        )
        self.assigned = Gauge("recall_assigned_partitions", "Partitions assigned now", ["kind"], registry=self.registry)
        self.lag = Gauge(
            "recall_lag_records", "Records not yet taken, all partitions", ["kind"], registry=self.registry
        )

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
