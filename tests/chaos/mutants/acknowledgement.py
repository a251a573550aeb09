"""A record is done before the broker has what is published of it: that is sent a second later, behind our backs."""

import asyncio

from workers.outbox import Outbox

_send = Outbox.send
_tasks = set()


async def send(self, topic, messages, told):
    async def later():
        await asyncio.sleep(1)
        await _send(self, topic, messages, lambda positions, acknowledged: None)

    task = asyncio.create_task(later())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    if messages:
        told(range(len(messages)), True)


Outbox.send = send
