"""`recall doctor`: what stands in the way, what would lose data, and what to do about it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.text import Text

from workers.cli.console import Working, harmless, results
from workers.cli.running import run
from workers.doctor import configuration
from workers.doctor.configuration import Shown
from workers.doctor.findings import Finding, Level, well
from workers.errors import RecallError
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings, read_toml, sources

COLOURS = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.UNSAFE: "bold red",
    Level.DOWN: "bold red",
    Level.WRONG: "bold red",
}


def doctor(
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure the brokers' clocks, with a topic that is deleted again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check backends, topics, bundle, clocks and settings; exit code 1 when something loses data or cannot work."""
    configured = load_settings()
    settings = with_local_stack(configured)
    origins = sources(os.environ, read_toml())
    origins |= dict.fromkeys(settings.model_fields_set - configured.model_fields_set, "local stack")
    with Working("asking every backend"):
        findings = run(_findings(settings, probe))
    shown = configuration.shown(settings, origins)
    if as_json:
        report = {"ok": well(findings), "findings": [asdict(each) for each in findings]}
        print(orjson.dumps(report | {"settings": [asdict(each) for each in shown]}).decode())
    else:
        _print(findings, shown)
    if not well(findings):
        raise RecallError(f"not well: {_counted(findings)}")
    if not as_json:
        print(f"all well: {_counted(findings)}")


async def _findings(settings: Settings, probe: bool) -> list[Finding]:
    from workers.doctor.examine import examine

    return [*await examine(settings, probe=probe), *configuration.judge(settings, os.environ, read_toml())]


def _print(findings: Sequence[Finding], settings: Sequence[Shown]) -> None:
    """Findings, then settings: a line each, in columns."""
    console = results()
    level_width, check_width = (max(map(len, words)) for words in (Level, (each.check for each in findings)))
    for finding in findings:
        level = (finding.level.ljust(level_width), COLOURS[finding.level])
        line = f"  {finding.check:<{check_width}}  {harmless(str(finding))}"
        console.print(Text.assemble(level, line), soft_wrap=True)
    print()
    name_width, value_width = (
        max(map(len, words)) for words in zip(*((s.name, s.value) for s in settings), strict=True)
    )
    for each in settings:
        line = f"{each.name:<{name_width}}  {harmless(each.value):<{value_width}}  {each.source}"
        console.print(Text(line), soft_wrap=True)
    print()


def _counted(findings: Sequence[Finding]) -> str:
    """How many of each level, the gravest first."""
    counts = Counter(finding.level for finding in findings)
    return ", ".join(f"{counts[level]} {level}" for level in reversed(Level) if counts[level])
