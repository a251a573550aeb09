"""`recall ask USER`: one request over Kafka, its answer as a table."""

import asyncio
import time
import uuid
from contextlib import suppress
from typing import Annotated, cast, get_args

import orjson
import typer

from schemas import codec
from schemas.recall import (
    DEFAULT_K,
    DEFAULT_TIMEOUT_MS,
    MAX_K,
    MAX_TIMEOUT_MS,
    CandidateList,
    FilterClause,
    FilterOp,
    RecallRequest,
)
from workers.cli.console import cells, columns, harmless, results
from workers.client import RecallClient
from workers.errors import ConfigurationError
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings
from workers.titles import read_titles


def ask(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=MAX_K, help="How many candidates.")] = DEFAULT_K,
    timeout_ms: Annotated[
        int, typer.Option(min=1, max=MAX_TIMEOUT_MS, help="The request's deadline, after the broker took it.")
    ] = DEFAULT_TIMEOUT_MS,
    after_event: Annotated[str | None, typer.Option(help="Say whether this activity is already known.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="An item id to leave out; may be repeated.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--filter", help="A clause that must hold: 'year ge 1990', 'genres contains Drama'; repeatable."),
    ] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Keep what the user has seen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Send one recall request over Kafka and print the answer."""
    request = RecallRequest(
        request_id=str(uuid.uuid4()),
        user_id=user,
        k=k,
        timeout_ms=timeout_ms,
        after_event_id=after_event,
        filter=[_clause(text) for text in where or []],
        exclude_items=exclude or [],
        exclude_seen=not include_seen,
    )
    try:
        codec.decode_request(codec.encode_event(request))
    except codec.DecodeError as error:
        raise ConfigurationError(str(error)) from error
    except UnicodeEncodeError as error:
        raise ConfigurationError("an argument is not UTF-8 text") from error
    asyncio.run(_ask(with_local_stack(load_settings()), request, as_json))


def _clause(text: str) -> FilterClause:
    """FIELD OP VALUE; the value is JSON, or else the text as it stands."""
    parts = text.split(maxsplit=2)
    if len(parts) < 3 or parts[1] not in get_args(FilterOp):
        raise ConfigurationError(
            f"--filter: {text!r} is not FIELD OP VALUE with one of {', '.join(get_args(FilterOp))}"
        )
    field, op, value = parts
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(value)
    return FilterClause(field=field, op=cast("FilterOp", op), value=value)


async def _ask(settings: Settings, request: RecallRequest, as_json: bool) -> None:
    async with RecallClient(settings) as client:
        started = time.perf_counter()
        answer = await client.ask(request)
        elapsed_ms = (time.perf_counter() - started) * 1000
    if as_json:
        print(codec.encode_candidates(answer).decode())
        return
    print_answer(answer, await read_titles(settings, answer.item_ids), elapsed_ms)


def print_answer(answer: CandidateList, titles: dict[str, str], elapsed_ms: float, rows: int = 20) -> None:
    """Print an answer for a person: the first rows of the list, then one line about all of it."""
    console = results()
    table = columns("#", "score", "item", *(["title"] if titles else []))
    table.columns[0].justify = table.columns[1].justify = "right"
    table.columns[0].style = "dim"
    for rank, (item_id, score) in enumerate(zip(answer.item_ids[:rows], answer.scores[:rows], strict=True), 1):
        texts = [item_id, titles.get(item_id, "")] if titles else [item_id]
        table.add_row(*cells(str(rank), f"{score:.4f}", *texts))
    console.print(table)
    if len(answer.item_ids) > rows:
        console.print(f"... and {len(answer.item_ids) - rows} more", style="dim")
    reasons = f" ({', '.join(answer.reasons)})" if answer.reasons else ""
    field = f" field {answer.error_field}" if answer.error_field else ""
    line = f"{answer.status}{reasons}{field}: {len(answer.item_ids)} candidates in {elapsed_ms:.0f} ms; "
    console.print(harmless(f"{line}seen and left out: {answer.removed.seen}; model {answer.model_version}"))
