"""`recall ask USER`: one request over Kafka, its answer as a table."""

import time
from typing import Annotated

import typer

from schemas import codec
from schemas.recall import DEFAULT_SCENE, DEFAULT_TIMEOUT_MS, CandidateList, RecallRequest
from workers.cli.console import cells, columns, harmless, results
from workers.cli.request_options import Anchor, Exclude, IncludeSeen, K, Scene, TimeoutMs, User, Where, request_of
from workers.cli.running import run
from workers.client import RecallClient
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings
from workers.titles import read_titles


def ask(
    user: User,
    k: K = None,
    timeout_ms: TimeoutMs = DEFAULT_TIMEOUT_MS,
    scene: Scene = DEFAULT_SCENE,
    after_event: Annotated[str | None, typer.Option(help="Wait a moment for this activity to be known.")] = None,
    exclude: Exclude = None,
    anchor: Anchor = None,
    where: Where = None,
    include_seen: IncludeSeen = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Send one recall request over Kafka and print the answer."""
    request = request_of(
        user,
        k=k,
        where=where,
        include_seen=include_seen,
        timeout_ms=timeout_ms,
        scene=scene,
        after_event_id=after_event,
        exclude_items=exclude,
        anchor_items=anchor,
    )
    run(_ask(with_local_stack(load_settings()), request, as_json))


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
    mixed = len(set(answer.sources)) > 1
    table = columns("#", "score", "item", *(["title"] if titles else []), *(["source"] if mixed else []))
    table.columns[0].justify = table.columns[1].justify = "right"
    table.columns[0].style = "dim"
    for rank, (item_id, score) in enumerate(zip(answer.item_ids[:rows], answer.scores[:rows], strict=True), 1):
        texts = [item_id, titles.get(item_id, "")] if titles else [item_id]
        texts += [answer.sources[rank - 1]] if mixed else []
        table.add_row(*cells(str(rank), f"{score:.4f}", *texts))
    console.print(table)
    if len(answer.item_ids) > rows:
        console.print(f"... and {len(answer.item_ids) - rows} more", style="dim")
    reasons = f" ({', '.join(answer.reasons)})" if answer.reasons else ""
    field = f" field {answer.error_field}" if answer.error_field else ""
    line = f"{answer.status}{reasons}{field}: {len(answer.item_ids)} candidates in {elapsed_ms:.0f} ms; "
    console.print(harmless(f"{line}seen and left out: {answer.removed.seen}; model {answer.model_version}"))
