"""The endpoints of text-embeddings-inference, with its names of requests, answers and headers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import heads
from ..config import FFF, Classify, Embed
from ..errors import InputError
from ..info import __version__
from . import requests as r
from .endpoint import CALL, endpoint
from .errors import Refusal
from .served import Served
from .settings import Limits

__all__ = ["ENDPOINTS", "default", "described"]


@endpoint("/embed", answered=r.Vectors)
async def embed(served: Served, asked: r.EmbedRequest) -> np.ndarray:
    """A vector per text."""
    return await served.embed(
        asked.inputs,
        prompt_name=asked.prompt_name,
        normalize=asked.normalize,
        dim=asked.dimensions,
        truncate=asked.truncate,
        direction=asked.truncation_direction,
    )


@endpoint("/embed_all", answered=list[r.Vectors])
async def embed_all(served: Served, asked: r.EmbedAllRequest) -> list[np.ndarray]:
    """A vector per token of each text, from the last layer, special tokens included."""
    texts = served.prompted(served.read(asked.inputs), asked.prompt_name)
    packed = await served.packed(texts, "inputs", asked.truncate, asked.truncation_direction)
    with served.queued():
        return await served.batcher.hidden_states(packed)


@endpoint("/embed_sparse", answered=list[list[r.SparseValue]])
async def embed_sparse(served: Served, asked: r.EmbedSparseRequest) -> list[list[dict[str, Any]]]:
    """A weight per token of the vocabulary, for each text (SPLADE). Weights of 0 are left out."""
    served.needs("fill_mask")
    texts = served.prompted(served.read(asked.inputs), asked.prompt_name)
    packed = await served.packed(texts, "inputs", asked.truncate, asked.truncation_direction)
    with served.queued():
        rows = await served.batcher.embed_sparse(packed)
    ends = zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True)
    ids, weights = rows.indices.tolist(), rows.data
    return [[{"index": ids[k], "value": weights[k]} for k in range(start, end)] for start, end in ends]


@endpoint("/predict", answered=list[r.Prediction | list[r.Prediction]])
async def predict(served: Served, asked: r.PredictRequest) -> Any:
    """The labels of each text or pair with their scores, best first. One text, or one pair, gets one list."""
    served.needs("classify")
    texts = _sequences(asked.inputs)
    call, head = CALL.get(), served.model.config.tasks.classify
    assert head is not None
    served.counted(len(texts), "inputs")
    call.method = "batch" if isinstance(asked.inputs, list) and isinstance(asked.inputs[0], list) else "single"
    logits = await served.logits(texts, "inputs", asked.truncate, asked.truncation_direction)
    found = [_predictions(row, head, asked.raw_scores) for row in logits]
    return found if call.method == "batch" else found[0]


def _sequences(inputs: str | list[str | list[str]]) -> list[Any]:
    """The texts and pairs of a request of /predict."""
    if isinstance(inputs, str):
        return [inputs]
    if inputs and all(isinstance(side, str) for side in inputs):
        inputs = [[side for side in inputs if isinstance(side, str)]]
    texts: list[Any] = []
    for i, sides in enumerate(inputs):
        if not isinstance(sides, list) or len(sides) not in (1, 2):
            raise InputError(f"inputs[{i}] is no list of one text or of two, expected a text, a pair, or a list of lists of these")
        texts.append(sides[0] if len(sides) == 1 else tuple(sides))
    return texts


def _predictions(logits: np.ndarray, head: Classify, raw: bool) -> list[dict[str, Any]]:
    scores = logits if raw else heads.classify.shares(logits, head)
    return [{"score": scores[k], "label": head.labels[k]} for k in np.argsort(-scores, kind="stable")]


@endpoint("/rerank", answered=list[r.Rank])
async def rerank(served: Served, asked: r.RerankRequest) -> list[dict[str, Any]]:
    """How well each text fits the query, best first: probabilities of a cross-encoder, or similarities of an embedder."""
    served.counted(len(asked.texts), "texts")
    CALL.get().method = "batch"
    scores = await served.scores(asked.query, asked.texts, asked.raw_scores, asked.truncate, asked.truncation_direction)
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"index": i, "score": scores[i]} | ({"text": asked.texts[i]} if asked.return_text else {}) for i in order]


@endpoint("/similarity", answered=list[float])
async def similarity(served: Served, asked: r.SimilarityRequest) -> np.ndarray:
    """The cosine between a sentence and each of several others."""
    if not asked.inputs.sentences:
        raise Refusal(400, "Empty", "inputs.sentences is empty, expected at least one sentence")
    how = asked.parameters or r.SimilarityParameters()
    vectors = await served.embed(
        [asked.inputs.source_sentence, *asked.inputs.sentences],
        prompt_name=how.prompt_name,
        normalize=True,
        truncate=how.truncate,
        direction=how.truncation_direction,
    )
    return heads.embed.scores(vectors[0], vectors[1:], "cosine")


@endpoint("/tokenize", answered=list[list[r.Token]])
async def tokenize(served: Served, asked: r.TokenizeRequest) -> list[list[dict[str, Any]]]:
    """The tokens of each text, not cut, with the characters where they begin and end."""
    texts = served.prompted(served.read(asked.inputs), asked.prompt_name)
    return await served.tokens(texts, asked.add_special_tokens)


@endpoint("/decode", answered=list[str])
async def decode(served: Served, asked: r.DecodeRequest) -> list[str]:
    """The text of token ids."""
    rows: list[Any] = [asked.ids] if set(map(type, asked.ids)) == {int} else asked.ids
    served.counted(len(rows), "ids")
    CALL.get().method = "single" if rows is not asked.ids else "batch"
    return served.decoded(rows, asked.skip_special_tokens)


ENDPOINTS = (embed, embed_all, embed_sparse, predict, rerank, similarity, tokenize, decode)


def default(served: Served) -> Any:
    """The endpoint that answers POST /, as text-embeddings-inference chooses it."""
    tasks = served.model.config.tasks
    if tasks.embed is not None:
        return embed
    return rerank if served.ranks else predict if tasks.classify is not None else embed


def described(served: Served, limits: Limits) -> dict[str, Any]:
    """What /info says of a model."""
    model = served.model
    return {
        "model_id": served.name,
        "model_sha": model.fingerprint,
        "model_dtype": served.dtype or "as stored",
        "served_model_name": served.name,
        "model_type": _kind(model.config.tasks.embed, model.config.tasks.classify),
        "max_concurrent_requests": limits.max_waiting,
        "max_input_length": model.config.max_tokens,
        "max_batch_tokens": served.batcher.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_texts,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "tasks": model.tasks,
        "trees": any(isinstance(ffn, FFF) for ffn in model.config.ffn),
        "device": model.device,
    }


def _kind(embed: Embed | None, classify: Classify | None) -> dict[str, Any]:
    if embed is not None:
        return {"embedding": {"pooling": "+".join(embed.poolings).replace("lasttoken", "last_token")}}
    if classify is None:
        return {}
    labels = {str(i): label for i, label in enumerate(classify.labels)}
    kind = "reranker" if len(labels) == 1 else "classifier"
    return {kind: {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}}
