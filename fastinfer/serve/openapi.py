"""The OpenAPI page of the endpoints, made from the types of their requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..info import __version__
from . import requests as r
from .endpoint import Endpoint
from .errors import openai_error

__all__ = ["openapi"]

ERRORS = {
    400: "The body is no JSON, or there are no texts",
    401: "The key is missing or wrong",
    404: "No model of this name is served",
    408: "The body did not come in time",
    413: "The body is too large",
    422: "A value of the request does not fit, or is over a limit",
    424: "The model has no head for this",
    429: "Too many texts wait, or the answer took too long",
}
READ = {  # paths that are read, with the types of their answers
    "/v1/models": ("The models that are served", r.ServedModels),
    "/v1/models/{model}": ("One of them", r.ServedModel),
    "/info": ("The first model and the limits, and each model by its name", dict[str, Any]),
    "/health": ("Status 200 as long as the server answers", None),
    "/metrics": ("Metrics in the text format of Prometheus", None),
}


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The description of the endpoints, as OpenAPI 3.1 has it."""
    types: list[Any] = [r.TeiError, r.OpenAIError]
    types += [kind for one in endpoints for kind in (one.asked, one.answered)]
    types += [kind for _, kind in READ.values() if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    known = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for one in endpoints:
        failed = r.OpenAIError if one.failed is openai_error else r.TeiError
        errors = {str(status): _answer(said, known[repr(failed)]) for status, said in ERRORS.items()}
        posted = {
            "description": one.about,
            "operationId": one.paths[0].strip("/").replace("/", "_"),
            "requestBody": {"required": True, "content": _json(known[repr(one.asked)])},
            "responses": {"200": _answer("The answer", known[repr(one.answered)])} | errors,
        }
        paths |= {path: {"post": posted | ({} if path == one.paths[0] else {"operationId": path.strip("/")})} for path in one.paths}
    for path, (said, kind) in READ.items():
        responses = {"200": {"description": said} if kind is None else _answer(said, known[repr(kind)])}
        paths[path] = {"get": {"description": said, "operationId": "get" + path.replace("/", "_").strip("{}"), "responses": responses}}
        if "{model}" in path:
            paths[path]["get"]["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
            paths[path]["get"]["responses"]["404"] = _answer(ERRORS[404], known[repr(r.OpenAIError)])
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastinfer", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(about: str, schema: Any) -> dict[str, Any]:
    return {"description": about, "content": _json(schema)}
