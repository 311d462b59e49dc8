"""The schema of heads for retrieval with more than one vector per text, or a sparse one."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from .activations import Activation
from .errors import short

__all__ = ["EmbedSparse", "EmbedTokens", "Expansion", "Side", "TokenLayer", "retrieval_problems"]

MAX_KEPT = 1 << 24  # as many as the largest vocabulary has
MAX_LAYERS = 64
MAX_WIDTH = 1 << 16


@dataclass(frozen=True)
class EmbedSparse:
    """A weight per token of the vocabulary for each text (SPLADE), from the logits of the fill_mask head.

    pooling     the largest activation over the tokens of a text, or the sum
    activation  "relu": log(1 + relu(logit)) (arXiv 2109.10086); "log1p_relu": log(1 + that) (arXiv 2504.14839)
    similarity  what rank() gives: the dot product, the cosine, or a distance times -1
    most        keep only so many of a text's largest weights; None: all that are not 0
    """

    pooling: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "dot"
    most: int | None = None


@dataclass(frozen=True)
class TokenLayer:
    """A linear map of the state of each token to `width` numbers, and an activation."""

    width: int
    bias: bool = False
    activation: Activation | None = None


@dataclass(frozen=True)
class Side:
    """How a query or a document becomes tokens.

    prompt  a text that is put before it
    marker  id of a token that is put behind the first one, which tells queries from documents; None: none
    tokens  the most tokens of a text, special ones and the marker included; None: max_tokens of the model
    """

    prompt: str = ""
    marker: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Expansion:
    """Query augmentation: queries shorter than `tokens` are filled up with a token, whose vectors count.

    token   its id, usually that of the mask token
    attend  whether tokens attend to these; False: they see the query, but no token sees them
    """

    tokens: int
    token: int
    attend: bool = False


@dataclass(frozen=True)
class EmbedTokens:
    """A vector per token, compared by the sum of each query token's best match (ColBERT, arXiv 2004.12832 and 2112.01488).

    layers      linear maps of hidden states; none: the states themselves
    expansion   None: queries are not filled up
    skip        ids of tokens whose vectors are left out of documents, such as punctuation
    normalize   scale each vector to length 1
    similarity  what rank() gives: the sum over the tokens of a query of the largest dot product, or the mean
    """

    layers: tuple[TokenLayer, ...] = ()
    query: Side = Side()
    document: Side = Side()
    expansion: Expansion | None = None
    skip: tuple[int, ...] = ()
    normalize: bool = True
    similarity: Literal["maxsim", "meanmaxsim"] = "maxsim"


def retrieval_problems(tasks: typing.Any, vocabulary: int, max_tokens: int, windows: bool) -> typing.Iterator[str]:
    """Yield a message for each rule that these heads of config.Tasks break, beyond types. windows: whether attention has some."""
    sparse: EmbedSparse | None = tasks.embed_sparse
    if tasks.embed_tokens is not None:
        yield from _token_problems(tasks.embed_tokens, vocabulary, max_tokens, windows)
    if sparse is not None and tasks.fill_mask is None:
        yield "tasks.embed_sparse is there without tasks.fill_mask, whose logits it needs"
    if sparse is not None and sparse.most is not None and not 1 <= sparse.most <= MAX_KEPT:
        yield f"tasks.embed_sparse.most is {sparse.most}, expected 1 to {MAX_KEPT}, or null"


def _token_problems(head: EmbedTokens, vocabulary: int, max_tokens: int, windows: bool) -> typing.Iterator[str]:
    at = "tasks.embed_tokens."
    if len(head.layers) > MAX_LAYERS:
        yield f"{at}layers lists {len(head.layers)} layers, expected at most {MAX_LAYERS}"
    for i, layer in enumerate(head.layers):
        if not 1 <= layer.width <= MAX_WIDTH:
            yield f"{at}layers[{i}].width is {short(layer.width)}, expected 1 to {MAX_WIDTH}"
    limits = {f"{name}.tokens": side.tokens for name, side in (("query", head.query), ("document", head.document))}
    filler = head.expansion
    limits["expansion.tokens"] = None if filler is None else filler.tokens
    for name, value in limits.items():
        if value is not None and not 2 <= value <= max_tokens:
            yield f"{at}{name} is {short(value)}, expected 2 to max_tokens={short(max_tokens)}"
    ids = {f"{name}.marker": side.marker for name, side in (("query", head.query), ("document", head.document))}
    ids |= {"expansion.token": None if filler is None else filler.token} | {f"skip[{i}]": id_ for i, id_ in enumerate(head.skip)}
    for name, value in ids.items():
        if value is not None and not 0 <= value < vocabulary:
            yield f"{at}{name} is {short(value)}, expected 0 to vocabulary-1={short(vocabulary - 1)}"
    if filler is not None and not filler.attend and windows:
        yield f"{at}expansion.attend is false, expected true where attention has windows: a filled-up token might see no other"
