"""`recall items reconcile`: whether topic, item table and collection agree, and mending what does not."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from workers.cli.console import Working, cells, columns, harmless, results
from workers.cli.running import run
from workers.errors import RecallError
from workers.local.discover import with_local_stack
from workers.missed import MISSED
from workers.settings import Settings, load_settings

if TYPE_CHECKING:
    from workers.reconcile.run import Options, Report


def reconcile(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is wrong; safe beside running workers.")] = False,
    limit_examples: Annotated[int, typer.Option(min=0, help="How many of each kind are named.")] = 3,
    sample: Annotated[int, typer.Option(min=0, help="Items whose vectors are compared with the tower's.")] = 1000,
    passes: Annotated[int, typer.Option(min=1, max=1024, help="Read everything so often, in as much less memory.")] = 1,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Go on although `recall doctor` says that the topic may lose items.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Compare what the active view holds with its topic. Ends with 1 when something is wrong, and is not mended."""
    from workers.reconcile.run import Options  # numpy and the towers take a second to load

    settings = with_local_stack(load_settings())
    if allow_unsafe:
        settings = settings.model_copy(update={"allow_unsafe": True})
    with Working("reading") as working:
        options = Options(repair=repair, examples=limit_examples, passes=passes, sample=sample)
        report = run(_reconcile(settings, options, working))
    if as_json:
        print(orjson.dumps(report.as_dict()).decode())
    else:
        _print(report)
    if report.left:
        todo = "they are still wrong after --repair; look at `recall status` and run it again"
        raise RecallError(f"{_found(report)}; {todo if repair else '--repair mends that'}")


async def _reconcile(settings: Settings, options: "Options", working: Working) -> "Report":
    from workers.reconcile.opening import open_reconciliation

    async with AsyncExitStack() as opened:
        reconciliation = await open_reconciliation(settings, options, opened, working.update)
        return await reconciliation.run()


def _print(report: "Report") -> None:
    console = results()
    table = columns("finding", "item", "where", "topic", "table")
    for name, kind in report.kinds.items():
        for each in kind.examples:
            place = (", ".join(each["where"]), each["topic"] or "-", each["table"] or "-")
            table.add_row(*cells(name, each["item_id"], *place))
    if table.row_count:
        console.print(table)
    held = f"{report.items:,} items, {report.table:,} in the table, {report.collection:,} in the collection"
    console.print(harmless(f"view {report.view}: {held}; {report.compared:,} vectors compared"))
    if report.lag:
        console.print(f"{report.lag:,} item updates are still to be taken in; what they change was left out")
    if report.refused:
        console.print(f"{report.refused:,} items have an update that cannot be taken in: recall dead-letters list")
    if report.missed_deletions:
        console.print(f"{MISSED}; the mark of that stands until --repair has left nothing wrong")
    mended = f"; {report.repaired:,} repaired, {report.left:,} left" if report.findings else ""
    console.print(f"{_found(report) or 'all agree'}{mended}; {report.seconds} s")


def _found(report: "Report") -> str:
    return ", ".join(f"{kind.count:,} {name.replace('_', ' ')}" for name, kind in report.kinds.items() if kind.count)
