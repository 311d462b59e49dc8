"""Refusals: errors as HTTP answers, in the form of each protocol."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from ..errors import BusyError, FastinferError, TaskError, printable

__all__ = ["Refusal", "openai_error", "over", "refusal_of", "tei_error"]

log = logging.getLogger("fastinfer.serve")

CLOSING = (408, 413)  # the rest of the body was not read, so the connection cannot be used again


class Refusal(Exception):
    """An HTTP answer that says why there is no other one.

    status  of HTTP
    kind    what text-embeddings-inference calls it: Validation, Empty, Overloaded, Backend
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(printable(message))
        self.status, self.kind = status, kind

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say what the client does next."""
        again = {"retry-after": "1"} if self.status == 429 else {}
        challenge = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return again | challenge | ({"connection": "close"} if self.status in CLOSING else {})


def over(what: str, got: object, limit: str, most: int, status: int = 422) -> Refusal:
    """The Refusal of a request that is over a limit, such as over("inputs has", "3000 texts", "max_texts", 2048)."""
    option = limit.replace("_", "-")
    return Refusal(status, "Validation", f"{what} {got}, expected at most {most} (--{option} of this server): ask in several requests")


def refusal_of(error: BaseException) -> Refusal:
    """The Refusal that an error stands for. An error that nobody expects is logged, and is a 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, msgspec.ValidationError):
        return Refusal(422, "Validation", f"the request does not fit: {error}")
    if isinstance(error, (msgspec.DecodeError, RecursionError, UnicodeDecodeError)):
        return Refusal(400, "Validation", f"the body is no JSON: {error}")
    if isinstance(error, (BusyError, MemoryError)):
        return Refusal(429, "Overloaded", str(error) or "not enough memory: ask again later, or with fewer texts")
    if isinstance(error, TaskError):
        return Refusal(424, "Backend", str(error))
    if isinstance(error, FastinferError):
        return Refusal(422, "Validation", str(error))
    log.error("a request failed", exc_info=error)
    return Refusal(500, "Backend", f"this request failed inside the server, which logged why: {type(error).__name__}")


def tei_error(refusal: Refusal) -> dict[str, Any]:
    """The body of an error, as text-embeddings-inference has it."""
    return {"error": str(refusal), "error_type": refusal.kind}


OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """The body of an error, as OpenAI has it."""
    kind = OPENAI_TYPES.get(refusal.status, "invalid_request_error")
    code = "model_not_found" if refusal.status == 404 else None
    return {"error": {"message": str(refusal), "type": kind, "param": None, "code": code}}
