"""What a group has committed: an answer that says only that the coordinator is not ready is no answer.

A coordinator that has just started says so in one field of its answer, and names no partition. aiokafka does not look
at that field: it would take it that nothing was committed, and all that is retained would be read again.
"""

from functools import wraps
from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest


def refuse_answers_of_nothing() -> None:
    """Have aiokafka ask again, the new coordinator if there is another one. May be called twice."""
    if not hasattr(GroupCoordinator._send_req, "__wrapped__"):
        GroupCoordinator._send_req = _checked(GroupCoordinator._send_req)


def _checked(send: Any) -> Any:
    @wraps(send)
    async def sent(coordinator: Any, request: Any) -> Any:
        response = await send(coordinator, request)
        code = getattr(response, "error_code", 0) if isinstance(request, OffsetFetchRequest) else 0
        if code:
            error = for_code(code)
            if error in {GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError}:
                coordinator.coordinator_dead()
            raise error
        return response

    return sent
