"""What came of every case by every way, from pytest's report."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

CASE = re.compile(r"(?:test_)?(?P<name>\w+)(?:\[(?P<parameters>.*)\])?")
ALL = "all"  # ways, of a case that has no parameter

Cases = dict[str, dict[str, str]]


def read(report: Path) -> Cases:
    """Results by case and way: ok, failed, skipped. Of a case that runs several times by one way the worst."""
    found: Cases = {}
    for case in Xml.parse(report).iter("testcase"):  # noqa: S314  # written by our own pytest
        matched = CASE.fullmatch(case.get("name", ""))
        assert matched is not None, case.get("name")
        name = matched["name"].replace("_", " ")
        result = "failed" if case.find("failure") is not None or case.find("error") is not None else "ok"
        result = "skipped" if case.find("skipped") is not None else result
        ways = found.setdefault(name, {})
        way = matched["parameters"] or ALL
        ways[way] = result if ways.get(way, "ok") == "ok" else ways[way]
    return found


def all_ok(cases: Cases) -> bool:
    """Whether there are cases, and every one of them passed: one that is skipped did not."""
    return bool(cases) and all(result == "ok" for ways in cases.values() for result in ways.values())


def table(result: dict[str, Any]) -> str:
    """As Markdown: a row a case, a column a way. A parameter behind a way's name belongs to that way."""
    ways = result["ways"]
    lines = [
        f"{result['name']} ({result['versions']}), {result['seconds']} s",
        "",
        f"| case | {' | '.join(ways)} |",
        f"|---|{'---|' * len(ways)}",
    ]
    for case, found in result["cases"].items():
        cells = [
            _worst([value for name, value in found.items() if name in {way, ALL} or _of(name, way)]) for way in ways
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(parameters: str, way: str) -> bool:
    return parameters.startswith(f"{way}-") or parameters.endswith(f"-{way}")


def _worst(results: list[str]) -> str:
    return next((each for each in ("failed", "skipped", "ok") if each in results), "")
