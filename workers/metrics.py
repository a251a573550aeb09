"""What a worker counts, as Prometheus metrics. Every one is declared in `Metrics`: name, type, meaning, labels.

Labels are bounded: kinds, steps, codes and the like, never an id. docs/metrics.md is generated from these declarations
(`python -m workers.metrics_doc`), and a test fails when the two have drifted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

MS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
EXTRACTOR_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
RECORD_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
AGE_MS_BUCKETS = tuple(float(ms) for ms in (100, 1000, 10_000, 60_000, 600_000, 3_600_000, 86_400_000, 7 * 86_400_000))

KIND = "`activity`, `items`, `recall`"
DEPENDENCY = (
    "`kafka`, `redis`, `tower`, `features.NAME` (a feature source), the item index (`milvus`, or what `index` says)"
)


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as a reader of /metrics finds it; `labels` are pairs of name and values."""

    name: str
    type: str
    meaning: str
    labels: tuple[tuple[str, str], ...]


class Metrics:
    """The metrics of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files, start: not ours, so not declared
        self.declared: list[Declared] = []

        # What came in, and what came of it
        outcomes = (
            "activity: `accepted`, `duplicate`, `too_late`, `forgotten`, and beside them `unknown_action` and "
            "`counted` (into popularity); "
            "items: `upserted`, `deleted`, `superseded`, `refused`, and beside them `produced_again` "
            "and `repaired`; "
            "recall: `answered`, `unreadable`"
        )
        self.events = self._counter(
            "recall_events", "Events taken from a topic, by what came of them", kind=KIND, outcome=outcomes
        )
        self.answers = self._counter(
            "recall_answers",
            "Answers published, by status and first reason",
            status="`ok`, `degraded`, `expired`, `rejected`",
            reason="the first of the answer's reasons, `none` without one (docs/events.md)",
        )
        self.dead_letters = self._counter(
            "recall_dead_letters",
            "Events sent to the dead-letter topic",
            kind=KIND,
            code="the letter's `dlq.error.code` (docs/events.md)",
        )
        self.feature_age_ms = self._histogram(
            "recall_feature_age_ms",
            "Age of the newest event with an item that an answer knew of its user, ms; not counted where there is none",
            AGE_MS_BUCKETS,
        )

        self.event_waits = self._counter(
            "recall_event_waits",
            "Requests with `after_event_id`, by how their waiting ended",
            result=(
                "`found` (maybe at once), `timed_out`, `full` (too many waited already), `unavailable` (user records "
                "cannot be read)"
            ),
        )

        # Where the time goes
        self.batch_records = self._histogram("recall_batch_records", "Records in a batch", RECORD_BUCKETS, kind=KIND)
        self.batch_ms = self._histogram(
            "recall_batch_ms", "From taking a batch to acknowledging it, ms", MS_BUCKETS, kind=KIND
        )
        self.step_ms = self._histogram(
            "recall_step_ms",
            "Time of one step of a batch, ms",
            MS_BUCKETS,
            kind=KIND,
            step=(
                "all: `decode`; activity: `records`, `merge`, `popular`, `write`; "
                "items: `records`, `tower`, `index`, `table`; "
                "recall: `features`, `tower`, `search`, `select`, `publish`"
            ),
        )
        self.vector_cache = self._counter(
            "recall_vector_cache", "History vectors looked up", result="`hit`, `miss` (read from Redis)"
        )
        self.reused = self._counter(
            "recall_reused_results",
            "Search results looked up that an equal request found a moment ago",
            result="`hit`, `miss` (searched)",
        )

        self.features = self._counter(
            "recall_features",
            "Values of features that have a source, by where they came from",
            source="a name of the setting `sources`",
            feature="a field of the spec's context",
            origin=(
                "`request`, `cache`, `source`; and missing ones: `absent`, `unusable` (of another type, NaN), "
                "`unavailable` (the source gave no answer in time)"
            ),
        )
        self.extractor_ms = self._histogram(
            "recall_extractor_ms",
            "Time of one call of an extractor, for a whole batch, ms",
            EXTRACTOR_BUCKETS,
            extractor="a name of the spec",
        )
        self.extractor_failures = self._counter(
            "recall_extractor_failures",
            "Calls of an extractor that failed, or gave something else than the spec declares",
            extractor="a name of the spec",
        )

        # How far behind, and how busy
        self.assigned = self._gauge("recall_assigned_partitions", "Partitions assigned now", kind=KIND)
        self.lag = self._gauge("recall_lag_records", "Records not yet taken, all partitions", kind=KIND)
        self.lag_age_ms = self._gauge(
            "recall_lag_age_ms", "Age of the oldest record taken and not finished, ms; 0 when there is none", kind=KIND
        )
        self.in_flight = self._gauge("recall_in_flight_batches", "Batches being worked on now", kind=KIND)

        # Whether all is well
        self.failures = self._counter(
            "recall_dependency_failures",
            "Calls to a dependency that failed or took too long; what must not be lost is tried again",
            kind=KIND,
            dependency=DEPENDENCY,
        )
        self.breaker_open = self._gauge(
            "recall_breaker_open",
            "1 while calls to a dependency that fails are given up at once, else 0; recall workers alone have breakers",
            kind=KIND,
            dependency="as above without `kafka`",
        )
        self.ready = self._gauge(
            "recall_ready",
            "1 while `/readyz` says 200: partitions are assigned, every dependency answers, dead letters are not "
            "paused and retained events are not read again; else 0",
            kind=KIND,
        )
        self.dead_letters_paused = self._gauge(
            "recall_dead_letters_paused",
            "1 while a worker has reached its cap of dead letters and waits for `recall dead-letters resume`, else 0",
            kind=KIND,
        )
        self.missed_deletions = self._gauge(
            "recall_missed_deletions",
            "1 in an items worker while items that are gone may still be listed, because nobody fed the view for "
            "longer than its topic keeps deletions, else 0; `recall items reconcile --repair` mends it",
        )
        self.restarts = self._gauge(
            "recall_restarts",
            "How often `recall worker all` or `recall up` started this kind again; 0 where another supervises",
            kind=KIND,
        )
        self.info = self._gauge(
            "recall_worker_info",
            "Always 1; the labels say what runs",
            kind=KIND,
            version="of recall-worker",
            model_version="of the bundle",
            collection="in the index",
        )

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, **labels: str) -> Counter:
        self._declare(f"{name}_total", "counter", meaning, labels)
        return Counter(name, meaning, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, meaning: str, **labels: str) -> Gauge:
        self._declare(name, "gauge", meaning, labels)
        return Gauge(name, meaning, tuple(labels), registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], **labels: str) -> Histogram:
        self._declare(name, "histogram", meaning, labels)
        return Histogram(name, meaning, tuple(labels), buckets=buckets, registry=self.registry)

    def _declare(self, name: str, kind: str, meaning: str, labels: dict[str, str]) -> None:
        self.declared.append(Declared(name, kind, meaning, tuple(labels.items())))
