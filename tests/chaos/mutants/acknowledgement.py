"""Nobody waits for the acknowledgement of what is published: a record is done before the broker has it."""

import asyncio

from workers import publisher


async def gather(*deliveries):
    for delivery in deliveries:
        delivery.add_done_callback(lambda done: done.cancelled() or done.exception())
    return []


class _Asyncio:
    """asyncio, but for `gather`."""

    gather = staticmethod(gather)

    def __getattr__(self, name):
        return getattr(asyncio, name)


publisher.asyncio = _Asyncio()
