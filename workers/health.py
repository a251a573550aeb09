"""/healthz, /readyz and /metrics of one worker, over HTTP on loopback unless told otherwise."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from workers.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether all is well, and if not, one line that says what is missing."""

    well: bool
    detail: str = "ok"


class HealthServer:
    """Serves three pages until closed. `metrics`, `live` and `ready` are asked at every request and must not wait.

    `hide` takes out of a line what nobody may see: it may hold an error of somebody else's code.
    """

    def __init__(
        self,
        metrics: Callable[[], bytes],
        live: Callable[[], Condition],
        ready: Callable[[], Condition],
        hide: Callable[[str], str] = str,
    ) -> None:
        self._hide = hide
        self._metrics = metrics
        self._live = live
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; raises ConfigurationError when the port is taken."""
        application = web.Application()
        application.router.add_get("/healthz", partial(self._page, self._live))
        application.router.add_get("/readyz", partial(self._page, self._ready))
        application.router.add_get("/metrics", self._render)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.close()
            reason = os.strerror(error.errno) if error.errno else str(error)  # asyncio repeats the address
            raise ConfigurationError(f"web_port {host}:{port} cannot be used: {reason}") from error

    async def close(self) -> None:
        """Stop listening. May be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _render(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), content_type="text/plain")

    async def _page(self, judge: Callable[[], Condition], _: web.Request) -> web.Response:
        condition = judge()
        return web.Response(text=self._hide(condition.detail) + "\n", status=200 if condition.well else 503)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """Well when every one is; the detail is that of the first that is not."""
    found = list(conditions)
    return next((condition for condition in found if not condition.well), found[0])
