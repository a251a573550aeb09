"""When a broken promise counts as seen: for its own difference alone, in a run that came to its end."""

import pytest

from tests.chaos.difference import KINDS, Difference
from tests.chaos.mutant_runs import MUTANTS, Exposure

EXPOSURE = Exposure(("quiet",), "lost", "stands, and not")
SHOWS = Difference("lost", "item i: 0@1 stands, and not item-updates/0@2")


@pytest.mark.parametrize(
    ("found", "caught"),
    [
        ([SHOWS], True),
        ([Difference("lost", "user u has no record"), SHOWS], True),
        ([], False),
        ([Difference("lost", "user u has no record")], False),
        ([Difference("wrong_state", SHOWS.line)], False),
        ([SHOWS, Difference("lost", "not taken in after 300 s", of_run=True)], False),
        ([Difference("wrong_state", "a worker ended", of_run=True), SHOWS], False),
    ],
)
def test_what_proves_that_a_promise_is_broken(found: list[Difference], caught: bool) -> None:
    assert EXPOSURE.seen_in(found) == caught


def test_every_mutant_says_what_is_seen() -> None:
    assert all(exposure.shows in KINDS and exposure.says for exposure in MUTANTS.values())
