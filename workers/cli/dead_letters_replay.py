"""`recall dead-letters replay`: events go back to their topics as they came, once what refused them is mended."""

from collections import Counter
from typing import Annotated, Any

import orjson
import typer

from workers.cli.console import Working, cells, columns, results
from workers.cli.dead_letters import Reason, Since, Topic
from workers.cli.running import run
from workers.cli.since import since_ms
from workers.clock import SystemClock
from workers.dead_letter_topic import Wanted
from workers.local.discover import with_local_stack
from workers.replay import ReplayOptions, Report, Verdict, replay
from workers.settings import load_settings


def replay_(
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; else all.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Also requests whose asker waits no longer.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send dead letters to their topics again, byte for byte, and mark them. May be repeated: each goes once."""
    wanted = Wanted(topic, reason, since_ms(since, SystemClock().now_ms()))
    settings = with_local_stack(load_settings())
    options = ReplayOptions(wanted, limit, expired=expired, do=yes)
    with Working("reading") as working:
        report = run(replay(settings, options, SystemClock(), working.update))
    if as_json:
        print(orjson.dumps(_as_dict(report, yes)).decode())
    else:
        _print(report, yes)


def _rows(report: Report) -> dict[tuple[str, str], Counter[str]]:
    """(topic, code) -> letters by verdict."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for (topic, code, verdict), count in sorted(report.counts.items()):
        rows.setdefault((topic, code), Counter())[str(verdict)] += count
    return rows


def _as_dict(report: Report, yes: bool) -> dict[str, Any]:
    by = [
        {"topic": topic, "code": code, "replay": counts[Verdict.REPLAY], "left_out": _left_out(counts)}
        for (topic, code), counts in _rows(report).items()
    ]
    totals = Counter({str(verdict): report.total(verdict) for verdict in Verdict})
    done = {"replayed" if yes else "would_replay": totals[Verdict.REPLAY]}
    return {"dry_run": not yes, "count": totals.total(), **done, "left_out": _left_out(totals), "by": by}


def _left_out(counts: Counter[str]) -> dict[str, int]:
    return {verdict: count for verdict, count in counts.items() if count and verdict != Verdict.REPLAY}


def _print(report: Report, yes: bool) -> None:
    rows = _rows(report)
    if not rows:
        print("no dead letters")
        return
    table = columns("topic", "code", "replayed" if yes else "would be replayed", "left out")
    for (topic, code), counts in rows.items():
        left_out = ", ".join(f"{count:,} {verdict}" for verdict, count in _left_out(counts).items())
        table.add_row(*cells(topic, code, f"{counts[Verdict.REPLAY]:,}", left_out))
    results().print(table)
    replayed, all_ = report.total(Verdict.REPLAY), report.counts.total()
    line = f"{replayed:,} of {all_:,} dead letters"
    print(f"{line} replayed" if yes else f"{line} would be replayed; --yes does it")
