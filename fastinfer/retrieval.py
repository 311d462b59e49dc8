"""The schema of heads for retrieval with more than one vector per text, or a sparse one."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

__all__ = ["EmbedSparse", "retrieval_problems"]

MAX_KEPT = 1 << 24  # as many as the largest vocabulary has


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


def retrieval_problems(sparse: EmbedSparse | None, has_fill_mask: bool) -> typing.Iterator[str]:
    """Yield a message for each rule that these heads break, beyond the types of their fields."""
    if sparse is not None and not has_fill_mask:
        yield "tasks.embed_sparse is there without tasks.fill_mask, whose logits it needs"
    if sparse is not None and sparse.most is not None and not 1 <= sparse.most <= MAX_KEPT:
        yield f"tasks.embed_sparse.most is {sparse.most}, expected 1 to {MAX_KEPT}, or null"
