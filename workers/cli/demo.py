"""`recall demo`: the whole thing live, on real servers and real data."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from workers.settings import load_settings


def demo(
    data: Annotated[str, typer.Option(help="movielens-1m, movielens-100k or generated.")] = "movielens-1m",
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> None:
    """Start Kafka, Redis, Milvus and the workers; fit, stream, ask; show what changes. Ends all of it when it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from workers.demo.run import Demo, Stage

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _interrupt(stopping))
    console = Console(stderr=True) if as_json else Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TaskProgressColumn())
    started = time.perf_counter()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def progress(what: str, part: float | None) -> None:
            if stopping.is_set():
                raise KeyboardInterrupt
            bar.update(task, description=what, total=None if part is None else 1.0, completed=part or 0.0)

        stage = Stage(
            progress, lambda line: bar.console.print(f"• {line}", highlight=False), _Show(bar.console), stopping.is_set
        )
        live = Demo(load_settings(), stage)
        try:
            figures = live.run(data)
            bar.stop()
            figures["total_s"] = round(time.perf_counter() - started, 1)
            _print(console, figures)
            if as_json:
                print(orjson.dumps(figures).decode(), flush=True)
            if sys.stdin.isatty() and sys.stdout.isatty():
                _stay(console, live, figures, stopping)
        finally:
            bar.stop()
            live.stop()
    console.print("ended everything that the demo started", style="dim")


class _Show:
    """Prints the head of a list with titles."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, heading: str, rows: Sequence[tuple[float, str]]) -> None:
        self._console.print(f"\n{heading}", style="bold", highlight=False, markup=False)
        for rank, (score, title) in enumerate(rows, 1):
            self._console.print(f"  {rank:>2}  {score:.3f}  {title}", highlight=False, markup=False)


def _print(console: Console, figures: dict[str, Any]) -> None:
    console.print(
        f"\n{figures['answered']:,} of {figures['requests']:,} requests answered, "
        f"p50 {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms\n"
        f"recall@100 live {figures['recall_at_100']}, exact offline {figures['recall_at_100_offline']}, "
        f"most popular {figures['recall_at_100_popular']}\n"
        f"click to changed list {figures['click_to_change_ms']} ms, new item to retrievable "
        f"{figures['item_to_retrievable_ms']} ms, delete to gone {figures['delete_to_gone_ms']} ms\n"
        f"a click on the brand-new item changes the list: {'yes' if figures['new_item_click_changes_list'] else 'no'}",
        highlight=False,
    )


def _stay(console: Console, live: Any, figures: dict[str, Any], stopping: threading.Event) -> None:
    """Keep everything up until Ctrl-C."""
    folder = live.settings.data_dir
    console.print(
        f"\nIt is all still running. In another terminal:\n"
        f"  RECALL_DATA_DIR={folder} recall status\n"
        f"  RECALL_DATA_DIR={folder} recall ask {figures['user']}\n"
        f"Ctrl-C ends it. Then, for a system that stays: recall up -d",
        highlight=False,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.wait(0.5):
        live.check()


def _interrupt(stopping: threading.Event) -> NoReturn:
    stopping.set()  # the exception can be lost in a library's callback; this is not
    raise KeyboardInterrupt
