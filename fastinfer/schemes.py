"""Schemes of positions and attention: the dataclasses of a Config that say them, and their rules. positions.py makes their tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import short
from .schema import LATER, sizes

if TYPE_CHECKING:
    from .config import Config

__all__ = ["MAX_POSITIONS", "MAX_THETA", "Alibi", "Attention", "Buckets", "Disentangled", "Positions", "attention_problems"]

MAX_POSITIONS = 1 << 16
MAX_THETA = 1e9
MAX_COLUMNS = 1 << 16  # columns of all heads
MAX_NORMED_HEAD = 1024  # columns of a head with norms: the kernels widen it whole


@dataclass(frozen=True)
class Positions:
    """What is added to the embedding of a token at each position, and the most positions of a text.

    kind  a learned table; sines in even and cosines in odd columns times one learned scale; or nothing
    skip  id of a token that takes no position, as padding in RoBERTa: a row before the table's others is added to it; None: no token
    """

    kind: Literal["learned", "scaled-sinusoidal", "none"]
    max: int
    skip: int | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Attention:
    """What the attention of one layer does with positions.

    theta   the base of rotary positions, by which q and k are turned (positions.rotary_table); None: they are not
    scale   rotary frequencies are multiplied by it
    window  a token attends to tokens that are at most so far away; None: to all
    causal  a token attends to itself and to tokens before it alone
    """

    theta: float | None = None
    scale: float = 1.0
    window: int | None = None
    causal: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Buckets:
    """A learned value per head and bucket of distances is added to scores. All layers share it (T5, MPNet: positions.bucket_of)."""

    buckets: int = 32
    reach: int = 128
    kind: Literal["buckets"] = "buckets"


@dataclass(frozen=True)
class Alibi:
    """A slope per head times the distance is subtracted from scores (positions.alibi_slopes)."""

    kind: Literal["alibi"] = "alibi"


@dataclass(frozen=True)
class Disentangled:
    """Scores gain q_i . keys[d] + k_j . queries[d], where d is the bucket of i - j (DeBERTa: positions.log_bucket).

    A layer has 2 * buckets rows of keys and of queries.
    """

    buckets: int = 256
    reach: int = 512
    kind: Literal["disentangled"] = "disentangled"


def attention_problems(c: Config) -> Iterator[str]:
    """Yield a message for each rule about attention, distances and embeddings that a Config breaks."""
    if len(c.attention) != c.layers:
        yield f"attention lists {len(c.attention)} layers, expected one for all, or layers={short(c.layers)}"
    first = {layer: i for i, layer in reversed(list(enumerate(c.attention)))}
    for layer, i in first.items():
        at = f"attention[{i}]."
        if layer.theta is not None and not 1 < layer.theta <= MAX_THETA:
            yield f"{at}theta is {layer.theta}, expected more than 1, up to {MAX_THETA:g}"
        if layer.theta is not None and c.heads > 0 and c.width_of_head % 2:
            yield f"{at}theta turns pairs of columns, but a head has {c.width_of_head}, expected an even number"
        if not 0 < layer.scale <= 1:
            yield f"{at}scale is {layer.scale}, expected more than 0, up to 1"
        if layer.window is not None:
            yield from sizes(MAX_POSITIONS, **{at + "window": layer.window})
    if isinstance(c.distances, (Buckets, Disentangled)):
        low, high = (4, 512) if isinstance(c.distances, Buckets) else (2, 4096)
        if not low <= c.distances.buckets <= high or c.distances.buckets % low:
            yield f"distances.buckets is {short(c.distances.buckets)}, expected a multiple of {low} up to {high}"
        elif not c.distances.buckets < c.distances.reach <= MAX_POSITIONS:
            yield f"distances.reach is {short(c.distances.reach)}, expected more than buckets={c.distances.buckets}, up to {MAX_POSITIONS}"
    if c.activation == "tanh":
        yield "activation is 'tanh', which feedforwards do not have"
    if c.head_size is not None:
        yield from sizes(head_size=c.head_size)
    if c.head_norms and c.heads > 0 and c.width_of_head > MAX_NORMED_HEAD:
        yield f"head_norms is true for heads of {c.width_of_head} columns, expected at most {MAX_NORMED_HEAD}"
    if c.heads > 0 and c.heads * c.width_of_head > MAX_COLUMNS:
        yield f"heads is {short(c.heads)} of {short(c.width_of_head)} columns, expected at most {MAX_COLUMNS} columns"
    if c.embedding_width is not None:
        yield from sizes(embedding_width=c.embedding_width)
        if c.tasks.fill_mask and not c.tasks.fill_mask.transform:
            yield "tasks.fill_mask.transform is false, but only a transform gives embedding_width columns to the decoder"
