"""No broken promise, but a bad moment: kill -9 between winners that were produced again and the record and commit."""

import os
import signal
from collections.abc import Sequence

from workers.pipelines.items import Standing
from workers.winners import WinnersAgain

produce = WinnersAgain.produce


async def last_produce(self: WinnersAgain, winners: Sequence[Standing]) -> None:
    """Produce, and end."""
    await produce(self, winners)
    os.kill(os.getpid(), signal.SIGKILL)


WinnersAgain.produce = last_produce  # type: ignore[method-assign]
