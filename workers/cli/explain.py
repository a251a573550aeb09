"""`recall explain USER [--item X]`: why a user's list is what it is."""

from contextlib import AsyncExitStack
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from schemas.recall import DEFAULT_SCENE, MAX_TIMEOUT_MS, RecallRequest
from workers.cli.console import cells, columns, harmless, results
from workers.cli.request_options import Anchor, Exclude, IncludeSeen, K, Scene, User, Where, request_of
from workers.cli.running import run
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings
from workers.titles import read_titles

ROWS = 10


def explain(
    user: User,
    item: Annotated[str | None, typer.Option(help="Say where this item stands, and what keeps it out.")] = None,
    k: K = None,
    scene: Scene = DEFAULT_SCENE,
    exclude: Exclude = None,
    anchor: Anchor = None,
    where: Where = None,
    include_seen: IncludeSeen = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Answer one request in this process and show every step: record, inputs, each source's list, what was removed."""
    request = request_of(
        user,
        k=k,
        where=where,
        include_seen=include_seen,
        timeout_ms=MAX_TIMEOUT_MS,
        scene=scene,
        exclude_items=exclude,
        anchor_items=anchor,
    )
    settings = with_local_stack(load_settings())
    report, titles = run(_explain(settings, request, item))
    if as_json:
        print(orjson.dumps(report).decode())
    else:
        _print(results(), report, titles)


async def _explain(
    settings: Settings, request: RecallRequest, item: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    from workers.explain import open_explainer  # ONNX Runtime and Milvus' client take a second to load

    async with AsyncExitStack() as opened:
        explainer = await open_explainer(settings, opened)
        report = await explainer.explain(request, item)
    shown = {item_id for each in _lists(report) for item_id in each} | ({item} if item else set())
    return report, await read_titles(settings, sorted(shown))


def _lists(report: dict[str, Any]) -> list[list[str]]:
    events = [event["item_id"] for event in report.get("user", {}).get("events", [])[:ROWS] if event["item_id"]]
    sources = [[each["item_id"] for each in found[:ROWS]] for found in report.get("sources", {}).values()]
    return [events, report["answer"]["item_ids"][:ROWS], *sources]


def _print(console: Console, report: dict[str, Any], titles: dict[str, str]) -> None:
    def named(item_id: str | None) -> str:
        return "-" if item_id is None else f"{item_id} ({titles[item_id]})" if item_id in titles else item_id

    if "user" in report:
        _print_user(console, report, named)
        _print_features(console, report)
        _print_inputs(console, report)
    for name, found in report.get("sources", {}).items():
        console.print(f"\n{name}: {len(found)} candidates", style="bold")
        table = columns("#", "score", "item", "left out as")
        for each in found[:ROWS]:
            score, removed = f"{each['score']:.4f}", each["removed"] or ""
            table.add_row(*cells(str(each["rank"]), score, named(each["item_id"]), removed))
        console.print(table)
    answer = report["answer"]
    reasons = f" ({', '.join(answer['reasons'])})" if answer["reasons"] else ""
    field = f" field {answer['error_field']}" if answer["error_field"] else ""
    removed = ", ".join(f"{count} {cause}" for cause, count in answer["removed"].items() if count) or "nothing"
    line = f"{answer['status']}{reasons}{field}: {len(answer['item_ids'])} candidates; taken out: {removed}"
    console.print()
    console.print(harmless(f"answer {line}"), style="bold")
    if "item" in report:
        _print_item(console, report["item"], named)


def _print_user(console: Console, report: dict[str, Any], named: Any) -> None:
    user = report["user"]
    if "unreadable" in user:
        console.print(harmless(f"user {user['user_id']}: {user['unreadable']}"), style="bold")
        return
    if not user["known"]:
        console.print(harmless(f"user {user['user_id']}: nothing is known"), style="bold")
        return
    line = (
        f"user {user['user_id']}: {user['event_count']} events with an item, {user['seen_items']} items count as seen"
    )
    console.print(harmless(line), style="bold")
    profile = ", ".join(f"{name} {each['value']}" for name, each in user["profile"].items())
    console.print(harmless(f"profile: {profile or 'none'}; segment of popularity: {user['segment'] or 'none'}"))
    table = columns("newest events", "item", "value")
    for event in user["events"][:ROWS]:
        value = "" if event["value"] is None else f"{event['value']:g}"
        table.add_row(*cells(event["action"] or "(not in the spec)", named(event["item_id"]), value))
    console.print(table)


def _print_features(console: Console, report: dict[str, Any]) -> None:
    if not report["features"]:
        return
    console.print("\nfeatures that have a source", style="bold")
    table = columns("name", "value", "from")
    for name, told in report["features"].items():
        value = "-" if told["value"] is None else str(told["value"])
        table.add_row(*cells(name, value, told["from"]))
    console.print(table)


def _print_inputs(console: Console, report: dict[str, Any]) -> None:
    console.print("\ninputs of the user tower", style="bold")
    table = columns("name", "shape", "values")
    for name, told in report["inputs"].items():
        values = told["values"] if isinstance(told["values"], list) else [told["values"]]
        tail = ", ".join(f"{value:g}" for value in values[-ROWS:])
        table.add_row(*cells(name, str(told["shape"]), f"... {tail}" if len(values) > ROWS else tail))
    console.print(table)


def _print_item(console: Console, item: dict[str, Any], named: Any) -> None:
    console.print()
    console.print(harmless(f"item {named(item['item_id'])}: {item['verdict']}"), style="bold")
    ranks = ("exact_rank", "ann_rank", "score", "found_by", "list_rank")
    for name in (*ranks, "removed", "fails_filter", "full_cap", "attributes"):
        console.print(harmless(f"{name}: {item[name] if item[name] not in (None, [], {}) else '-'}"))
