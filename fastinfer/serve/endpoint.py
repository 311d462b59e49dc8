"""What every endpoint has: the key, limits, the check of the request, cancelling, headers, metrics and a line in the log."""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import inspect
import time
import typing
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from . import metrics
from .errors import Refusal, over, refusal_of, tei_error
from .logs import access
from .settings import Limits

if TYPE_CHECKING:
    from .served import Served

__all__ = ["CALL", "Call", "Endpoint", "Gate", "answer_of", "endpoint"]

WATCHED_AFTER = 0.05  # seconds from the body to the watch for a client that goes away, which takes 0.03 ms: most are answered before
GONE = 499  # the status in the log of a request whose client went away; nothing is sent


class Call:
    """What is known of a request while it is answered. Times are in seconds."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.model, self.method = "", "single"
        self.device = "cpu"
        self.texts = self.tokens = self.characters = self.cut = 0
        self.tokenized = self.waited = self.computed = 0.0
        self.read = False  # the whole body is here
        self.ended_by: Refusal | None = None

    def headers(self) -> dict[str, str]:
        """The headers of an answer, in milliseconds, with the names that text-embeddings-inference gives them."""
        whole = str(int((time.perf_counter() - self.began) * 1000))
        return {
            "x-compute-type": self.device,
            "x-compute-time": whole,
            "x-total-time": whole,
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.tokens),
            "x-tokenization-time": str(int(self.tokenized * 1000)),
            "x-queue-time": str(int(self.waited * 1000)),
            "x-inference-time": str(int(self.computed * 1000)),
            **({"x-truncated-texts": str(self.cut)} if self.cut else {}),
        }


CALL: contextvars.ContextVar[Call] = contextvars.ContextVar("call")


class Endpoint(NamedTuple):
    """A path that takes a request and gives an answer.

    paths     the path, and other names of it
    asked     the type of the request
    answered  the type of the answer
    run       (model, request) -> the answer, as values that orjson writes
    failed    a Refusal -> the body of an error
    """

    paths: tuple[str, ...]
    asked: Any
    answered: Any
    run: Callable[[Served, Any], Awaitable[Any]]
    failed: Callable[[Refusal], dict[str, Any]]

    @property
    def about(self) -> str:
        """What it does."""
        return inspect.getdoc(self.run) or ""


def endpoint(
    *paths: str, answered: Any, failed: Callable[[Refusal], dict[str, Any]] = tei_error
) -> Callable[[Callable[[Served, Any], Awaitable[Any]]], Endpoint]:
    """Make an Endpoint of a function whose parameter `asked` has the type of the request."""

    def made(run: Callable[[Served, Any], Awaitable[Any]]) -> Endpoint:
        return Endpoint(paths, typing.get_type_hints(run)["asked"], answered, run, failed)

    return made


def answer_of(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A Response in JSON. A float32 has the fewest digits that give the same number again."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


class Gate:
    """The way of requests to the endpoints of an application."""

    def __init__(self, models: Callable[[str | None], Served], limits: Limits, key: str | None) -> None:
        self._models, self._limits = models, limits
        self._key = None if key is None else f"Bearer {key}".encode()

    def handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The function with which Starlette answers the paths of an endpoint."""
        decoder = msgspec.json.Decoder(endpoint.asked)

        async def handle(request: Request) -> Response:
            call = Call()
            CALL.set(call)
            try:
                self.admit(request)
                answer = await self._bounded(call, request, decoder, endpoint)
                response = answer_of(answer, headers=call.headers())
            except (Exception, asyncio.CancelledError) as error:
                refusal = _why(call, error)
                response = answer_of(endpoint.failed(refusal), refusal.status, refusal.headers)
                metrics.failed(call, refusal)
            else:
                metrics.answered(call)
            access(request, response.status_code, call)
            return response

        return handle

    def admit(self, request: Request) -> None:
        """Raise a Refusal unless the request has the key, if there is one."""
        if self._key is not None and not hmac.compare_digest(request.headers.get("authorization", "").encode(), self._key):
            raise Refusal(401, "Unauthorized", "the key is missing or wrong, expected the header Authorization: Bearer KEY")

    async def _bounded(self, call: Call, request: Request, decoder: msgspec.json.Decoder[Any], endpoint: Endpoint) -> Any:
        """The answer. Its task is cancelled when the time is over, or when the client goes away."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        watching: asyncio.Task[None] | None = None
        assert task is not None

        def end(why: Refusal) -> None:
            call.ended_by = why
            task.cancel()

        def late(seconds: int) -> None:
            what, status = ("the request was not computed", 429) if call.read else ("the body was not complete", 408)
            say = f"{what} in {seconds} seconds (--max-seconds of this server): ask again later, or for less"
            end(Refusal(status, "Overloaded", say))

        def watch() -> None:
            nonlocal watching
            watching = loop.create_task(_gone(request, lambda: end(Refusal(GONE, "Dropped", "the client went away"))))

        seconds = self._limits.max_seconds
        timers = [loop.call_later(seconds, late, seconds)]
        try:
            asked = decoder.decode(await self._body(request))
            call.read = True
            timers.append(loop.call_later(WATCHED_AFTER, watch))
            served = self._models(asked.model)
            call.model, call.device = served.name, served.model.device
            return await endpoint.run(served, asked)
        finally:
            for timer in timers:
                timer.cancel()
            if watching is not None:
                watching.cancel()

    async def _body(self, request: Request) -> bytes:
        """The body of a request, of which no more than the limit is read."""
        most = self._limits.max_body
        said = request.headers.get("content-length", "0")
        if said.isdigit() and int(said[:20]) > most:
            raise over("the body has", f"{said[:20]} bytes", "max_body", most, 413)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise over("the body has", f"over {most} bytes", "max_body", most, 413)
        return bytes(body)


async def _gone(request: Request, then: Callable[[], None]) -> None:
    """Call `then` when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    then()


def _why(call: Call, error: BaseException) -> Refusal:
    """The Refusal for an error. Raises the error again if the server itself ends this task."""
    if isinstance(error, ClientDisconnect):
        return Refusal(GONE, "Dropped", "the client went away")
    if isinstance(error, asyncio.CancelledError):
        if call.ended_by is None:
            raise error
        return call.ended_by
    return refusal_of(error)
