"""`recall model evaluate --through stream` on a small data set: all is answered, and places are the exact ones."""

from pathlib import Path

import numpy as np
import pytest

from models.datasets.generated import generate
from models.evaluation.metrics import metrics
from models.evaluation.report import Resampling
from models.spec import builtin_spec, load_spec
from workers.evaluating import Question, evaluate
from workers.fitting import Source
from workers.live.told import Told
from workers.settings import Settings

DATA = generate(items=300, users=60, events=5000)
TOLD = Told(lambda *_: None, lambda _: None, lambda: False)


@pytest.mark.timeout(300)
def test_a_window_asked_over_kafka_is_answered_as_exact_search_does(tmp_path: Path) -> None:
    path = builtin_spec(DATA.spec)
    source = Source(DATA.log, DATA.catalogue, load_spec(path), path.read_text(), DATA.test_ms, DATA.validation_ms, DATA)
    question = Question((), ("closed-form",), None, False, False, {}, {"stream": "FLAT"}, Resampling(100))
    found = evaluate(source, question, TOLD, Settings(data_dir=tmp_path))
    exact, live = found["models"]["closed-form"], found["models"]["closed-form@stream"]
    counts = found["streams"]["closed-form@stream"]
    assert counts["unanswered"] == 0
    assert counts["answered"] == counts["requests"] == found["requests"] + counts["asked_again"]
    assert counts["ok"] == found["requests"]
    for name in metrics(np.zeros(1)):
        assert live[name] == pytest.approx(exact[name], abs=0.005), name
        assert live["groups"]["new"][name] == pytest.approx(exact["groups"]["new"][name], abs=0.02), name
    assert exact["recall_at_10"] > 0.05
    assert live["coverage_at_100"] == pytest.approx(exact["coverage_at_100"], abs=0.02)
