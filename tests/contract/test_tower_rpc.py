"""gRPC to a model server that answers as no server should, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from workers.errors import DependencyUnavailable
from workers.local.process import free_ports
from workers.settings import Settings
from workers.towers import torchserve
from workers.towers.kserve import PROTOCOL, _tensors
from workers.towers.rpc import Rpc
from workers.towers.server import Refused

METHOD = "inference.GRPCInferenceService/ModelInfer"
Answers = Callable[[bytes, Any], Awaitable[bytes]]


class Scripted(grpc.GenericRpcHandler):
    """Takes bytes of any method, and gives what a test says."""

    def __init__(self) -> None:
        self.answers: Answers = lambda _, __: asyncio.sleep(0, b"")

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        return await self.answers(request, context)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, Settings]]:
    handler, server = Scripted(), grpc.aio.server()
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield handler, Settings(tower="kserve", tower_url=f"grpc://127.0.0.1:{port}")
    await server.stop(None)


async def infer(rpc: Rpc, timeout_s: float = 5.0, **fields: Any) -> Any:
    return await rpc.call(METHOD, PROTOCOL["ModelInferRequest"](**fields), PROTOCOL["ModelInferResponse"], timeout_s)


async def test_what_is_no_message_is_unavailable(scripted: tuple[Scripted, Settings]) -> None:
    handler, settings = scripted
    handler.answers = lambda _, __: asyncio.sleep(0, b"\xff\xff\xff\xff")
    rpc = Rpc(settings)
    with pytest.raises(DependencyUnavailable, match=r"its answer to .* cannot be read"):
        await infer(rpc)
    await rpc.close()


async def test_a_call_in_flight_ends_as_unavailable_when_the_channel_is_closed(
    scripted: tuple[Scripted, Settings],
) -> None:
    handler, settings = scripted
    asked = asyncio.Event()

    async def never(_: bytes, __: Any) -> bytes:
        asked.set()
        await asyncio.sleep(60)
        return b""

    handler.answers = never
    rpc = Rpc(settings)
    call = asyncio.create_task(infer(rpc))
    await asyncio.wait_for(asked.wait(), 10)
    await rpc.close()
    with pytest.raises(DependencyUnavailable, match="the connection is closed"):
        await call


async def test_a_cancelled_call_is_cancelled(scripted: tuple[Scripted, Settings]) -> None:
    """At the server too."""
    handler, settings = scripted
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def never(_: bytes, __: Any) -> bytes:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.set()
            raise
        return b""

    handler.answers = never
    rpc = Rpc(settings)
    call = asyncio.create_task(infer(rpc, timeout_s=60.0))
    await asyncio.wait_for(asked.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(given_up.wait(), 20)
    await rpc.close()


async def test_a_message_that_the_server_finds_too_large_is_refused(scripted: tuple[Scripted, Settings]) -> None:
    _, settings = scripted
    rpc = Rpc(settings)
    with pytest.raises(Refused, match="larger than max"):
        await infer(rpc, raw_input_contents=[bytes(5_000_000)])  # gRPC takes 4 MiB unless it is told otherwise
    await rpc.close()


async def test_a_proxy_of_the_environment_is_not_used(
    scripted: tuple[Scripted, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = scripted
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    rpc = Rpc(settings)
    await infer(rpc)
    await rpc.close()


async def test_a_full_queue_of_torchserve_is_no_refusal(scripted: tuple[Scripted, Settings]) -> None:
    handler, settings = scripted

    async def full(_: bytes, context: Any) -> bytes:
        line = 'Model "user_tower" Version 1 has no worker to serve inference request. Please use scale workers API'
        await context.abort(grpc.StatusCode.INTERNAL, f"{line}\nInternalServerException.()")
        return b""

    handler.answers = full
    rpc = Rpc(settings, torchserve.WORDS)
    with pytest.raises(DependencyUnavailable, match=r"INTERNAL: Model .* has no worker to serve") as raised:
        await infer(rpc)
    assert "\n" not in str(raised.value)
    await rpc.close()


def test_values_that_are_missing_from_an_answer_are_one_error() -> None:
    answer = PROTOCOL["ModelInferResponse"]()
    for name in ("a", "b"):
        answer.outputs.add(name=name, datatype="FP32", shape=[1])
    answer.raw_output_contents.append(np.ones(1, np.float32).tobytes())
    with pytest.raises(ValueError, match="1 values of 2 outputs"):
        dict(_tensors(answer))
