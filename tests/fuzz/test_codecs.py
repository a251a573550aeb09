"""Damaged messages through the codec. The million: `python -m tests.fuzz codecs`."""

from typing import Any

import msgspec
import pytest
from hypothesis import Phase, settings

from schemas import codec
from schemas.codec import ErrorCode
from schemas.recall import CandidateList
from tests.fuzz import codecs, examples


def test_damaged_messages_are_read_or_refused() -> None:
    outcomes: Any = codecs.run(seed=1, inputs=5000)["outcomes"]
    assert outcomes["read"] > 500, outcomes
    assert {"not_json", "not_utf8", "wrong_type", "missing_field", "unexpected_null", "unknown_op"} <= set(outcomes)
    assert {"out_of_range", "invalid_id"} <= set(outcomes) <= set(ErrorCode) | {"read"}


def unbounded(*_: object, **__: object) -> None:
    """A check that finds nothing."""


@pytest.fixture
def as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is not made smaller."""
    monkeypatch.setattr(examples, "LONG", settings(examples.LONG, phases=[Phase.generate]))


@pytest.mark.usefixtures("as_found")
@pytest.mark.parametrize(
    ("name", "broken"),
    [("_check_ids", unbounded), ("_check_object", unbounded), ("_without_nulls", lambda value, _: value)],
)
def test_a_codec_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any) -> None:
    monkeypatch.setattr(codec, name, broken)
    with pytest.raises((AssertionError, ExceptionGroup)):
        codecs.run(seed=1, inputs=50_000)


@pytest.mark.usefixtures("as_found")
def test_an_answer_that_is_read_as_it_stands_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codecs.READ, CandidateList, msgspec.json.Decoder(CandidateList).decode)
    with pytest.raises((AssertionError, ExceptionGroup)):
        codecs.run(seed=1, inputs=50_000)
