"""Generated schemas are up to date; golden events of every release decode to what they meant."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from schemas import codec, generate
from schemas.activity import MAX_TIMESTAMP_MS

GOLDEN = Path(__file__).parents[1] / "golden"
DECODE = {
    "user-activity": lambda value: codec.decode_activity(value, record_timestamp_ms=MAX_TIMESTAMP_MS),
    "recall-requests": codec.decode_request,
    "item-updates": codec.decode_item,
    "recall-candidates": codec.decode_candidates,
}


def golden() -> list[tuple[str, str, dict[str, Any]]]:
    """(release and number, topic, {"event": as sent, "means": as decoded})."""
    cases = []
    for path in sorted(GOLDEN.glob("*/*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            cases.append((f"{path.parent.name}-{path.stem}-{number}", path.stem, json.loads(line)))
    return cases


def test_generated_files_are_what_the_structs_say() -> None:
    for path, text in generate.files().items():
        assert path.read_text() == text, f"{path} has drifted: python -m schemas.generate"


def _agrees(decoded: Any, means: Any) -> bool:
    """Whether both are the same, but for fields that came later: those are at a default that says nothing."""
    if not isinstance(decoded, dict):
        return bool(decoded == means)
    later = decoded.keys() - means.keys()
    return means.keys() <= decoded.keys() and all(
        not decoded[name] if name in later else _agrees(decoded[name], means[name]) for name in decoded
    )


@pytest.mark.parametrize(("topic", "case"), [case[1:] for case in golden()], ids=[case[0] for case in golden()])
def test_golden_events_decode_to_what_they_meant(topic: str, case: dict[str, Any]) -> None:
    decoded = DECODE[topic](json.dumps(case["event"]).encode())
    assert _agrees(msgspec.to_builtins(decoded), case["means"])
    jsonschema.validate(case["event"], generate.json_schema(generate.EVENTS[topic]))


def test_there_are_golden_events_for_every_topic() -> None:
    topics = [topic for _, topic, _ in golden()]
    assert {topic: topics.count(topic) >= 4 for topic in DECODE} == dict.fromkeys(DECODE, True)


def test_the_asyncapi_document_is_whole() -> None:
    document = yaml.safe_load((generate.FOLDER / "asyncapi.yaml").read_text())
    assert set(document["channels"]) == {*generate.EVENTS, "recall-dead-letters"}
    for operation in document["operations"].values():
        name = operation["channel"]["$ref"].rpartition("/")[2]
        assert name in document["channels"]
    for name, message in document["components"]["messages"].items():
        payload = message["payload"]
        reference = payload.get("oneOf", [payload])[0].get("$ref")
        assert name in {"recall-dead-letters", generate.MARK} or (generate.FOLDER / reference).exists()
        assert ({"type": "null"} in payload.get("oneOf", [])) is (name in {"user-activity", "item-updates"})


@pytest.mark.parametrize(
    "event",
    [
        {"request_id": "r", "user_id": "u", "k": 0},
        {"request_id": 1, "user_id": "u"},
        {"request_id": "r", "user_id": "u", "filter": [{"field": "a", "op": "eq", "value": 1}] * 17},
    ],
)
def test_the_schema_refuses_what_the_codec_refuses(event: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event, generate.json_schema(generate.EVENTS["recall-requests"]))
