"""Pages under docs/ that are generated from declarations: written anew, or only compared."""

import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs"


def write_or_check(name: str, text: str, module: str, arguments: Sequence[str]) -> int:
    """Write a page; with --check, say whether it is what would be written. Returns the exit code of `module`."""
    page = FOLDER / name
    if "--check" not in arguments:
        page.write_text(text)
    elif not page.exists() or page.read_text() != text:
        print(f"{name} is out of date: python -m {module}", file=sys.stderr)  # noqa: T201
        return 1
    return 0
