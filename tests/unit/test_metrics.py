"""The declared metrics: documented, in Prometheus' form, with bounded labels."""

from workers import metrics_doc
from workers.metrics import Metrics
from workers.settings import AGENT_KINDS

IDS = ("user", "item", "request", "event", "id")


def test_the_page_is_what_the_declarations_say() -> None:
    assert metrics_doc.main(["--check"]) == 0


def test_every_metric_of_the_registry_is_declared_and_the_other_way_round() -> None:
    metrics = Metrics()
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
        if not family.name.startswith("process_")
    }
    declared = [metric.name for metric in metrics.declared]
    assert sorted(declared) == sorted(exposed)
    assert len(set(declared)) == len(declared)


def test_names_meanings_and_labels() -> None:
    for metric in Metrics().declared:
        assert metric.name.startswith("recall_")
        assert metric.meaning
        assert "|" not in metric.meaning
        for label, values in metric.labels:
            assert values, f"{metric.name}: what may {label} be?"
            assert not any(label == name or label.endswith("_id") for name in IDS), f"{metric.name} has an id as label"
            if label == "kind":
                assert all(f"`{kind}`" in values for kind in AGENT_KINDS)
