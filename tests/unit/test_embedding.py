"""A tower asked for more than it can do within one deadline."""

import asyncio

import numpy as np

from tests.backends.served import Arrays
from workers.errors import DependencyTimeout, RowRefused
from workers.pipelines.embedding import AT_ONCE, embed_in_parts

DIM, ROWS, POISON = 4, 5 * AT_ONCE + 3, 70


class Slow:
    """Takes so long for 64 rows that no more of them are done within its deadline, and refuses one row."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def embed(self, inputs: Arrays) -> Arrays:
        rows = inputs["row"]
        self.asked.append(len(rows))
        if len(rows) > AT_ONCE:
            raise DependencyTimeout("tower", "no answer in 1000 ms")
        await asyncio.sleep(0)
        if POISON in rows:
            raise RowRefused("tower", "it fails")
        return {"vector": np.repeat(rows.astype(np.float32)[:, None], DIM, axis=1)}


async def test_each_part_has_the_deadline_to_itself_and_a_refused_row_is_looked_for_in_its_own() -> None:
    tower = Slow()
    found = (await embed_in_parts(tower, {"row": np.arange(ROWS)}, ["vector"], DIM))["vector"]
    others = np.delete(np.arange(ROWS), POISON)
    assert np.isnan(found[POISON]).all()
    assert np.array_equal(found[others], np.repeat(others.astype(np.float32)[:, None], DIM, axis=1))
    assert sum(tower.asked) <= ROWS + 2 * AT_ONCE, "only the rows of one part are asked for again"
