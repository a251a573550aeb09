"""`recall topics apply`."""

from dataclasses import asdict
from typing import Annotated

import orjson
import typer

from workers import topics
from workers.cli.running import run
from workers.errors import RecallError
from workers.local.discover import with_local_stack
from workers.settings import load_settings


def apply(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Create the topics that are missing and check those that exist. Exit code 1 when one differs."""
    findings = run(topics.apply(with_local_stack(load_settings())))
    if as_json:
        print(orjson.dumps({"topics": [asdict(finding) for finding in findings]}).decode())
    else:
        for finding in findings:
            print(f"{finding.topic}: {finding.result} {finding.detail}".rstrip())
    differing = [finding.topic for finding in findings if finding.result == "differs"]
    if differing:
        raise RecallError(f"{', '.join(differing)} must be changed before workers may use them")
