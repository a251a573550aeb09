"""JSON Schemas and the AsyncAPI document, generated from the structs: `python -m schemas.generate [--check]`."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from schemas import dead_letter, dead_letter_marks
from schemas.activity import UserActivity
from schemas.items import AFTER, ItemUpdate
from schemas.recall import REPLY_PARTITION, CandidateList, RecallRequest

FOLDER = Path(__file__).parent
EVENTS: dict[str, type[msgspec.Struct]] = {
    "user-activity": UserActivity,
    "recall-requests": RecallRequest,
    "recall-candidates": CandidateList,
    "item-updates": ItemUpdate,
}
KEYS = {
    "user-activity": "user_id in UTF-8; with a null value it names the user to forget",
    "recall-requests": "user_id in UTF-8; it only routes",
    "recall-candidates": "user_id in UTF-8",
    "item-updates": "item_id in UTF-8; must equal the value's item_id; with a null value it names the item to delete",
    "recall-dead-letters": "as it came",
}
TITLES = {
    "user-activity": "What users do",
    "recall-requests": "Requests for candidates",
    "recall-candidates": "The answers",
    "item-updates": "The catalogue: the later offset wins",
    "recall-dead-letters": "Events that cannot be processed: the original bytes",
}
CLEANUP = {"item-updates": "compact"}
MARK = "dead-letter-mark"
WE_SEND = ("recall-candidates", "recall-dead-letters")
HEADERS = (
    dead_letter.TOPIC,
    dead_letter.PARTITION,
    dead_letter.OFFSET,
    dead_letter.STAGE,
    dead_letter.ERROR_CODE,
    dead_letter.ERROR_MESSAGE,
    dead_letter.TIMESTAMP_MS,
)
OPTIONAL_HEADERS = (dead_letter.RECORD_TIMESTAMP_MS, dead_letter.VALUE_OMITTED)
NULL_IS_AN_EVENT = ("user-activity", "item-updates")
TAKEN_HEADERS = {
    "recall-requests": {REPLY_PARTITION: "Decimal: the partition of recall-candidates for the answer"},
    "item-updates": {AFTER: "Decimal: only the items worker sends it, with what stands of an item once more"},
}


def json_schema(event: type[msgspec.Struct]) -> dict[str, Any]:
    """Draft 2020-12. Null equals absent for every optional field, which the structs leave to the codec."""
    schema: dict[str, Any] = msgspec.json.schema(event)
    for definition in schema["$defs"].values():
        required = set(definition.get("required", ()))
        for name, field in definition.get("properties", {}).items():
            if name not in required and event is not CandidateList:
                definition["properties"][name] = _or_null(field)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def asyncapi() -> dict[str, Any]:
    """One AsyncAPI 3 document of all topics, from the point of view of the workers."""
    topics = [*EVENTS, "recall-dead-letters"]
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for topic in topics:
        message = _message(topic)
        messages[topic] = message
        reference = {"$ref": f"#/components/messages/{topic}"}
        cleanup = CLEANUP.get(topic, "delete")
        channels[topic] = {
            "address": topic,
            "title": TITLES[topic],
            "messages": {topic: reference},
            "bindings": {"kafka": {"topicConfiguration": {"cleanup.policy": [cleanup]}, "bindingVersion": "0.5.0"}},
        }
        operations[f"{'send' if topic in WE_SEND else 'receive'}-{topic}"] = {
            "action": "send" if topic in WE_SEND else "receive",
            "channel": {"$ref": f"#/channels/{topic}"},
            "messages": [{"$ref": f"#/channels/{topic}/messages/{topic}"}],
        }
    messages[MARK] = _mark()
    channels["recall-dead-letters"]["messages"][MARK] = {"$ref": f"#/components/messages/{MARK}"}
    mark_in_channel = {"$ref": f"#/channels/recall-dead-letters/messages/{MARK}"}
    operations["send-recall-dead-letters"]["messages"].append(mark_in_channel)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "recall-worker",
            "version": "1.0.0",
            "description": "Two-tower recall as a stream processor. Topic names carry RECALL_NAMESPACE as prefix.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    generated = {
        FOLDER / "json" / f"{topic}.json": json.dumps(json_schema(event), indent=2) + "\n"
        for topic, event in EVENTS.items()
    }
    generated[FOLDER / "asyncapi.yaml"] = _yaml(asyncapi()) + "\n"
    return generated


def main(check: bool) -> int:
    """Write the files, or with `check` say which of them differ. Returns the exit code."""
    stale = []
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    for path in stale:
        what = "is not what the structs say; run python -m schemas.generate" if check else "written"
        print(f"{path.relative_to(FOLDER.parent)} {what}")  # noqa: T201  # a command
    return 1 if check and stale else 0


def _message(topic: str) -> dict[str, Any]:
    payload: dict[str, Any] = {"description": "The original value, untouched"}
    headers: dict[str, Any] = {"type": "object", "description": "Headers of the request, copied"}
    if topic in EVENTS:
        payload = {"$ref": f"./json/{topic}.json"}
    if topic in NULL_IS_AN_EVENT:
        payload = {"oneOf": [payload, {"type": "null"}]}
    if topic == "recall-dead-letters":
        names = {name: {"type": "string"} for name in (*HEADERS, *OPTIONAL_HEADERS)}
        headers = {"type": "object", "properties": names, "required": list(HEADERS)}
    if topic == "recall-candidates":
        headers |= {"properties": {"request_id": {"type": "string"}}, "required": ["request_id"]}
    message: dict[str, Any] = {"name": topic, "title": TITLES[topic], "payload": payload}
    if topic in TAKEN_HEADERS:
        names = {name: {"type": "string", "description": what} for name, what in TAKEN_HEADERS[topic].items()}
        headers = {"type": "object", "properties": names}
    if topic in WE_SEND or topic in TAKEN_HEADERS:
        message["headers"] = headers
    key = {"type": "string", "description": KEYS[topic]}
    return message | {"bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}}}


def _mark() -> dict[str, Any]:
    """A mark in the dead-letter topic."""
    kinds = [kind.decode() for kind in (dead_letter_marks.REPLAYED, dead_letter_marks.RESUME)]
    headers = {dead_letter_marks.MARK: {"enum": kinds}, dead_letter.TIMESTAMP_MS: {"type": "string"}}
    return {
        "name": MARK,
        "title": "Which letters of its partition were replayed, or that paused workers go on",
        "payload": {"description": "A JSON list of runs of letters, empty for `resume`: docs/events.md"},
        "headers": {"type": "object", "properties": headers, "required": list(headers)},
    }


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """The same field, or null."""
    if not field or {"type": "null"} in field.get("anyOf", ()):
        return field
    default = {"default": field["default"]} if "default" in field else {}
    return {"anyOf": [{k: v for k, v in field.items() if k != "default"}, {"type": "null"}]} | default


def _yaml(value: Any, indent: int = 0) -> str:
    """Plain block YAML: every scalar as JSON, which YAML includes."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, child in value.items():
            name = key if key.replace("-", "").replace(".", "").isalnum() else json.dumps(key)
            nested = isinstance(child, dict | list) and child
            lines.append(f"{pad}{name}:\n{_yaml(child, indent + 1)}" if nested else f"{pad}{name}: {json.dumps(child)}")
        return "\n".join(lines)
    if isinstance(value, list):
        items = []
        for child in value:
            text = _yaml(child, indent + 1) if isinstance(child, dict) else "  " * (indent + 1) + json.dumps(child)
            items.append(f"{pad}- {text.lstrip()}")
        return "\n".join(items)
    return pad + json.dumps(value)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
