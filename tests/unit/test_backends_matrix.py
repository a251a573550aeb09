"""The matrix of `python -m tests.backends`: from pytest's report to a table, and when all is well."""

from pathlib import Path

import pytest

from tests.backends import matrix
from tests.backends.registry import BACKENDS, backend

REPORT = """<testsuites><testsuite>
<testcase name="test_order[json]"/>
<testcase name="test_order[grpc]"><failure message="wrong"/></testcase>
<testcase name="test_missing[json-version0]"/>
<testcase name="test_missing[json-version1]"><error message="no server"/></testcase>
<testcase name="test_alone"/>
{more}
</testsuite></testsuites>"""


def test_a_case_is_a_row_and_a_way_a_column(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT.format(more=""))
    cases = matrix.read(tmp_path / "report.xml")
    lines = matrix.table({"name": "a", "versions": "1", "seconds": 2, "ways": ["json", "grpc"], "cases": cases})
    assert lines.splitlines()[4:] == ["| order | ok | failed |", "| missing | failed |  |", "| alone | ok | ok |"]
    assert not matrix.all_ok(cases)


@pytest.mark.parametrize(("more", "well"), [("", True), ("<skipped/>", False), ("<failure/>", False)])
def test_what_is_skipped_did_not_pass(tmp_path: Path, more: str, well: bool) -> None:
    (tmp_path / "report.xml").write_text(f'<testsuite><testcase name="test_a[b]">{more}</testcase></testsuite>')
    assert matrix.all_ok(matrix.read(tmp_path / "report.xml")) is well
    assert not matrix.all_ok({})


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_names_suites_that_are_there(name: str) -> None:
    found = backend(name)
    assert found.name == name
    assert found.ways
    assert all((Path(__file__).parents[2] / suite).exists() for suite in found.suites)
    found.stop()
