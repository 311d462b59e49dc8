"""create(): the application that answers, for the server of the command or for another ASGI server."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .. import api
from ..errors import near, short
from . import metrics, openai, page, tasks, tei
from .endpoint import Endpoint, Gate, answer_of
from .errors import Refusal, openai_error, tei_error
from .openapi import openapi
from .served import Served
from .settings import Settings

__all__ = ["create"]

ENDPOINTS: tuple[Endpoint, ...] = (*openai.ENDPOINTS, *tei.ENDPOINTS, *tasks.ENDPOINTS, *page.ENDPOINTS)


def create(settings: Settings) -> Starlette:
    """The application for some models, which are loaded before this returns."""
    pool = ThreadPoolExecutor(2, thread_name_prefix="fastinfer-tokens")
    how = {"device": settings.device, "dtype": settings.dtype, "threads": settings.threads, "max_depth": settings.max_depth}
    models = {
        name: Served(name, api.load(path, **how), settings, pool)  # type: ignore[arg-type]
        for name, path in settings.models
    }
    first, since = next(iter(models.values())), int(time.time())

    def named(name: str | None) -> Served:
        if name is None:
            return first
        if name not in models:
            raise Refusal(404, "Validation", f"model is {short(name)}, expected one of {', '.join(models)}{near(name, models)}")
        return models[name]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for served in models.values():
            await served.batcher.close(cancel=True)  # the server has waited for its requests, so none is left unless it gave up
        pool.shutdown()

    gate = Gate(named, settings.limits, settings.key)
    described = functools.cache(lambda: openapi(ENDPOINTS))  # when it is asked for: it takes longer than the rest

    def every_model() -> dict[str, Any]:
        found = {name: tei.described(served, settings.limits) for name, served in models.items()}
        return {**found[first.name], "models": found}

    reads: dict[str, Callable[[Request], Any]] = {
        "/v1/models": lambda _: {"object": "list", "data": [openai.described(name, since) for name in models]},
        "/v1/models/{model:path}": lambda request: openai.described(named(request.path_params["model"]).name, since),
        "/info": lambda _: every_model(),
        "/openapi.json": lambda _: described(),
        "/api-doc/openapi.json": lambda _: described(),
    }
    return Starlette(
        routes=[
            *(Route(path, gate.handler(one), methods=["POST"]) for one in ENDPOINTS for path in one.paths),
            Route("/", gate.handler(tei.default(first)), methods=["POST"]),
            *(Route(path, _read(gate, path, make)) for path, make in reads.items()),
            *(Route(path, _health) for path in ("/health", "/ping")),
            Route("/metrics", _metrics),
            *(Route(path, _page(name)) for path, name in (("/", "page"), ("/docs", "docs"))),
        ],
        lifespan=lifespan,
    )


def _read(gate: Gate, path: str, make: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """The handler of a path that is read. What is said of models needs the key; what the endpoints are does not."""
    failed = openai_error if path.startswith("/v1/") else tei_error

    async def read(request: Request) -> Response:
        try:
            if not path.endswith("openapi.json"):
                gate.admit(request)
            return answer_of(make(request))
        except Refusal as refusal:
            return answer_of(failed(refusal), refusal.status, refusal.headers)

    return read


def _page(name: str) -> Callable[[Request], Any]:
    said = page.html(name)

    async def read(_: Request) -> Response:
        return HTMLResponse(said, headers=page.HEADERS)

    return read


async def _health(_: Request) -> Response:
    return Response()


async def _metrics(_: Request) -> Response:
    body, kind = metrics.written()
    return Response(body, media_type=kind)
