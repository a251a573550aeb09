"""What is kept of an answer for equal requests."""

import gc
from collections.abc import Hashable
from types import FunctionType, ModuleType

from tests.integration.recall_system import System, ask
from workers.pipelines.rows import Findings
from workers.remembered import Results

REUSE_MS = 60_000


async def test_of_a_question_nothing_is_kept_but_what_an_equal_one_takes_over(system: System) -> None:
    kept: list[Findings] = []

    class Watched(Results[Findings]):
        def put(self, key: Hashable, result: Findings) -> None:
            kept.append(result)
            super().put(key, result)

    asked = ask(context={"note": "x" * 10_000}, exclude_items=["film-9"])
    pipeline = system.pipeline(results=Watched(REUSE_MS))
    await pipeline.run([asked])
    (again,) = await pipeline.run([asked])
    assert again.timings_ms.reused is not None
    (record,) = await system.users.records(["known"])
    held = reached(kept)
    assert id(kept[0].query) in held
    assert held.isdisjoint(map(id, (asked, asked.request, asked.request.context["note"], record)))


def reached(start: object) -> set[int]:
    """The ids of all that an object keeps alive."""
    found: set[int] = set()
    waiting = [start]
    while waiting:
        each = waiting.pop()
        if id(each) not in found and not isinstance(each, type | ModuleType | FunctionType):
            found.add(id(each))
            waiting += gc.get_referents(each)
    return found
