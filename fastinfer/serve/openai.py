"""The protocol of OpenAI: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from .endpoint import CALL, endpoint
from .errors import openai_error
from .requests import Embeddings, EmbeddingsRequest
from .served import Served

__all__ = ["ENDPOINTS", "described"]


@endpoint("/v1/embeddings", "/embeddings", answered=Embeddings, failed=openai_error)
async def embeddings(served: Served, asked: EmbeddingsRequest) -> dict[str, Any]:
    """Vectors of texts or of token ids, as model.embed gives them."""
    vectors = await served.embed(asked.input, "input", dim=asked.dimensions)
    rows = vectors if asked.encoding_format == "float" else map(_base64, vectors)
    tokens = CALL.get().tokens
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": served.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).data).decode()


def described(name: str, since: int) -> dict[str, Any]:
    """A served model, as /v1/models lists it. since: when it was loaded, in seconds since 1970."""
    return {"id": name, "object": "model", "created": since, "owned_by": "fastinfer"}


ENDPOINTS = (embeddings,)
