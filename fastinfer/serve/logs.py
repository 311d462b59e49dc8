"""Structured logs: one JSON object a line, on standard error."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import printable

if TYPE_CHECKING:
    from starlette.requests import Request

    from .endpoint import Call

__all__ = ["access", "say", "start"]

log = logging.getLogger("fastinfer.serve")


class Lines(logging.Formatter):
    """Records as JSON. What a record has beside its message stands in its attribute `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc).isoformat(timespec="milliseconds")
        found = {"time": when, "level": record.levelname.lower(), "message": printable(record.getMessage())}
        found |= getattr(record, "fields", {})
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        line: str = orjson.dumps(found).decode()
        return line


def start(level: str) -> None:
    """Let the loggers of the server and of uvicorn write such lines, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in ("fastinfer.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False


def say(message: str, **fields: Any) -> None:
    """Log a message with fields."""
    log.info(message, extra={"fields": fields})


def access(request: Request, status: int, call: Call) -> None:
    """Log a request, without its texts."""
    if not log.isEnabledFor(logging.INFO):
        return
    client = request.client
    say(
        "request",
        method=request.method,
        path=printable(request.url.path, 200),
        status=status,
        client=client.host if client else "",
        ms=round((time.perf_counter() - call.began) * 1000, 1),
        model=call.model,
        texts=call.texts,
        tokens=call.tokens,
        truncated=call.cut,
    )
