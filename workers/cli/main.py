"""The command `recall`: finds the command that was typed, imports that one alone, and turns every error into one line.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 ended by Ctrl-C.
"""

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import typer

from workers.errors import ConfigurationError, RecallError

COMMANDS: Final[dict[tuple[str, ...], tuple[str, str]]] = {
    ("demo",): ("workers.cli.demo:demo", "Show the whole thing live, on real servers and real data."),
    ("up",): ("workers.cli.up:up", "Start the local stack and the workers."),
    ("down",): ("workers.cli.down:down", "Stop the local stack and the workers."),
    ("status",): ("workers.cli.status:status", "Say what runs, where, and how far behind it is."),
    ("worker",): ("workers.cli.worker:worker", "Run one kind of worker: activity, items, recall, or all."),
    ("ask",): ("workers.cli.ask:ask", "Send one recall request over Kafka and print the answer."),
    ("explain",): ("workers.cli.explain:explain", "Show why a user's list is what it is."),
    ("send",): ("workers.cli.send:send", "Send JSON lines as events: activity, requests or items."),
    ("watch",): ("workers.cli.watch:watch", "Print candidate lists as they come."),
    ("doctor",): ("workers.cli.doctor:doctor", "Check backends, topics, bundle and settings; say what to do."),
    ("bench",): ("workers.cli.bench:bench", "Measure the whole on this machine: throughput, latency, freshness."),
    ("topics", "apply"): ("workers.cli.topics:apply", "Create the topics, or check those that exist."),
    ("items", "load"): ("workers.cli.items:load", "Stream a catalogue in as item updates."),
    ("items", "reconcile"): (
        "workers.cli.reconcile:reconcile",
        "Compare the active view with its topic, and mend it.",
    ),
    ("users", "forget"): ("workers.cli.users:forget", "Forget users, and keep copies of what they did out."),
    ("users", "load"): ("workers.cli.users:load", "Build user records from history in bulk."),
    ("model", "fit"): ("workers.cli.model:fit", "Fit a bundle in closed form and make it the active one."),
    ("model", "pack"): ("workers.cli.model_pack:pack", "Make a bundle from towers that were trained elsewhere."),
    ("model", "activate"): ("workers.cli.model_activate:activate", "Make a bundle that is there the active one."),
    ("model", "verify"): ("workers.cli.model_verify:verify", "Check a bundle: files, towers, metric, and a floor."),
    ("model", "evaluate"): (
        "workers.cli.model_evaluate:evaluate",
        "Compare bundles and baselines over the whole catalogue.",
    ),
    ("model", "train"): ("workers.cli.model_train:train", "Train a bundle with PyTorch and make it the active one."),
    ("model", "dataset"): ("workers.cli.model_dataset:dataset", "Write training samples, as a worker would see them."),
    ("model", "export"): ("workers.cli.model_export:export", "Write a bundle's towers as files for model servers."),
    ("dead-letters", "list"): ("workers.cli.dead_letters:list_", "Show what could not be processed, and why."),
    ("dead-letters", "replay"): ("workers.cli.dead_letters_replay:replay_", "Send dead letters to their topics again."),
    ("dead-letters", "resume"): ("workers.cli.dead_letters_resume:resume", "Let workers that have paused go on."),
}
GROUPS: Final[dict[str, str]] = {
    "topics": "The five Kafka topics.",
    "items": "The catalogue.",
    "users": "Records of users.",
    "model": "Bundles: the two towers and what belongs to them.",
    "dead-letters": "Events that no worker could process.",
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; always ends the process."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    if not debug:
        logging.getLogger().addHandler(logging.NullHandler())  # else libraries print beside the one line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding lacks
    arguments = [argument for argument in arguments if argument != "--debug"]
    sys.unraisablehook = _unraisable
    try:
        app = build(arguments)
        if "structlog" in sys.modules:  # the command may log: to standard error, which is not structlog's default
            import_module("workers.logs").configure(libraries=False)
        code = app(arguments, standalone_mode=False, prog_name="recall")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has gone, and wants no word about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            _print_error("".join(traceback.format_exception(error)).rstrip())
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def _unraisable(what: Any) -> None:
    """A Ctrl-C that came while a library's callback ran is not told: the command knows of it in another way."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)


def build(arguments: list[str]) -> typer.Typer:
    """The application for these arguments: the command named in them is real, every other one only its line of help."""
    app = typer.Typer(
        help="Two-tower recall as a stream processor.",
        epilog="--debug shows tracebacks. Settings: recall.toml or RECALL_* in the environment; see docs/cli.md.",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    groups: dict[str, typer.Typer] = {}
    words = tuple(argument for argument in arguments if not argument.startswith("-"))
    for path, (target, help_line) in COMMANDS.items():
        parent = app
        if len(path) > 1:
            if path[0] not in groups:
                groups[path[0]] = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
                app.add_typer(groups[path[0]], name=path[0], help=GROUPS[path[0]])
            parent = groups[path[0]]
        function = _load(target) if words[: len(path)] == path else _unused
        parent.command(path[-1], help=help_line if function is _unused else None)(function)
    return app


def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _unused() -> None:
    """Stands for a command that was not typed."""


def _report(error: Exception) -> int:
    """Print one line for an error and return the exit code it stands for."""
    if isinstance(error, ConfigurationError):
        _print_error(f"recall: {error}")
        return 2
    if isinstance(error, RecallError):
        _print_error(f"recall: {error}")
        return 1
    exit_code = getattr(error, "exit_code", None)
    if isinstance(exit_code, int):  # an error of the command line itself: typer's own exceptions carry their code
        message = str(error.format_message() if hasattr(error, "format_message") else error)
        message = message.replace("Value error, ", "")
        if message.startswith("Usage:"):  # a group without a command: its whole help
            _print_error(message)
        elif message:
            _print_error(f"recall: {' '.join(message.split())}")
        return exit_code
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        _print_error(f"recall: {where}{error.strerror} (--debug shows where)")
        return 1
    line = " ".join(str(error).split())
    _print_error(f"recall: {type(error).__name__}: {line} (--debug shows where)")
    return 1


def _print_error(text: str) -> None:
    """To standard error, secrets hidden: messages of libraries may repeat what they were given."""
    settings = sys.modules.get("workers.settings")  # without it nothing secret was read
    if settings is not None:
        with contextlib.suppress(Exception):  # what is wrong with them may be what is to be said
            text = settings.load_settings().hide(text)
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
