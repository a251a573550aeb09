"""Logs: one line per lifecycle event and per error, on standard error; JSON when nobody watches. Never a secret."""

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from typing import Any

import structlog

from workers.hiding import forms, hide


def configure(secrets: Sequence[str] = (), *, libraries: bool = True) -> None:
    """Set up structlog and, with `libraries`, the standard library's logging. `secrets` are hidden in every line."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if sys.stderr.isatty():
        # plain: the colourful traceback prints local variables, and with them whatever they hold
        renderer: list[Any] = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    renderer.append(_Hide(secrets))
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(_Sink()),
    )
    if not libraries:
        return
    handler = logging.StreamHandler(_Sink())
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name], processors=[remove, *renderer]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)


class _Sink(io.StringIO):
    """Standard error as it is when a line is written. A full disk or a closed terminal must not stop a worker."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


class _Hide:
    """The last processor: replaces secrets in the finished line."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._written = forms(secrets)

    def __call__(self, _logger: Any, _method: str, line: str) -> str:
        return hide(line, self._written)
