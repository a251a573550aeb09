"""`recall demo`: the whole thing live, on real servers and real data."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from workers.cli.bundles import bundle_folder
from workers.cli.console import Working, harmless, notes, results
from workers.cli.data_sets import DataSet
from workers.settings import load_settings
from workers.signals import Stopping


def demo(
    data: Annotated[DataSet, typer.Option(help="What to show it on.")] = DataSet.MOVIELENS_1M,
    bundle: Annotated[
        str | None, typer.Option(help="Serve this one, a folder or a version of <data_dir>/bundles; fit none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> None:
    """Start Kafka, Redis, Milvus and the workers; fit, stream, ask; show what changes. Ends all of it when it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from workers.demo.run import Demo, Stage

    stopping = Stopping()
    stopping.interrupt()
    console = notes() if as_json else results()
    started = time.perf_counter()
    with Working("starting") as working:

        def progress(what: str, part: float | None) -> None:
            if stopping:
                raise KeyboardInterrupt
            working.update(what, part)

        stage = Stage(progress, lambda line: working.say(f"• {line}"), lambda: bool(stopping), _Show(console, working))
        settings = load_settings()
        given = None if bundle is None else bundle_folder(bundle, settings)
        live = Demo(settings, stage)
        try:
            figures = live.run(data, given)
            working.stop()
            figures["total_s"] = round(time.perf_counter() - started, 1)
            _print(console, figures)
            if as_json:
                print(orjson.dumps(figures).decode(), flush=True)
            if sys.stdin.isatty() and sys.stdout.isatty():
                _stay(live, figures, stopping)
        finally:
            working.stop()
            live.stop()
    notes().print("ended everything that the demo started", style="dim")


class _Show:
    """Prints the head of a list with titles."""

    def __init__(self, console: Console, working: Working) -> None:
        self._console = console
        self._working = working

    def __call__(self, heading: str, rows: Sequence[tuple[float, str]]) -> None:
        with self._working.hidden():
            self._console.print(f"\n{harmless(heading)}", style="bold")
            for rank, (score, title) in enumerate(rows, 1):
                self._console.print(f"  {rank:>2}  {score:.3f}  {harmless(title)}")


def _print(console: Console, figures: dict[str, Any]) -> None:
    console.print(
        f"\n{figures['answered']:,} of {figures['requests']:,} requests answered, "
        f"p50 {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms\n"
        f"recall@100 live {figures['recall_at_100']}, exact offline {figures['recall_at_100_offline']}, "
        f"most popular {figures['recall_at_100_popular']}\n"
        f"click to changed list {figures['click_to_change_ms']} ms, new item to retrievable "
        f"{figures['item_to_retrievable_ms']} ms, delete to gone {figures['delete_to_gone_ms']} ms\n"
        f"filtered list of {figures['filtered']}; merged list from "
        f"{', '.join(f'{source} {count}' for source, count in figures['merged'].items())}\n"
        f"a click on the brand-new item changes the list: {'yes' if figures['new_item_click_changes_list'] else 'no'}"
    )


def _stay(live: Any, figures: dict[str, Any], stopping: Stopping) -> None:
    """Keep everything up until Ctrl-C."""
    folder = live.settings.data_dir
    notes().print(
        f"\nIt is all still running. In another terminal:\n"
        f"  RECALL_DATA_DIR={folder} recall status\n"
        f"  RECALL_DATA_DIR={folder} recall ask {figures['user']}\n"
        f"Ctrl-C ends it. Then, for a system that stays: recall up -d"
    )
    stopping.note()
    while not stopping:
        time.sleep(0.5)
        live.check()
