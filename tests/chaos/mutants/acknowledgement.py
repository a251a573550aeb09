"""A record is done before the broker has what is published of it: that is sent a second later, behind everybody's back.

Not waiting for the delivery alone would show nothing: the engine flushes its producer before every commit.
"""

import asyncio

from workers.agents import Context

_publish = Context.publish
_tasks = set()


async def publish(self, topic, messages):
    async def later():
        await asyncio.sleep(1)
        await _publish(self, topic, messages)

    task = asyncio.create_task(later())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return []


Context.publish = publish
