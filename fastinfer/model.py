"""The forward pass: embed -> layers x (attention, feedforward) -> final norm, over T packed tokens.

It calls the ops that a backend supplies (backends/reference.py says what each does). A fast backend may replace
a block or the whole pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import feedforward
from .batch import PackedBatch
from .weights import Layer, Weights
from .workspace import Workspace

if TYPE_CHECKING:
    from .backends.reference import Reference


def encode(
    ops: Reference,
    weights: Weights,
    batch: PackedBatch,
    work: Workspace,
    taps: Mapping[int, Any] | None = None,
    routes: Sequence[Any] | None = None,
) -> Any:
    """The final hidden states (T, D), in a buffer of `work` that the next call reuses.

    taps    {i: buffer (T, D) to be filled}: 0 = embedding, i = after layer i
    routes  per layer None or (nodes, z), to be filled
    """
    x = work.take("x", len(batch.ids), weights.hidden)
    embedding = weights.embedding
    if embedding.project is None:
        ops.embed(batch, embedding, out=x)
    else:
        narrow = work.take("narrow", len(x), embedding.width)
        ops.embed(batch, embedding, out=narrow)
        ops.linear(narrow, embedding.project.weight, bias=embedding.project.bias, out=x)
    for i, layer in enumerate(weights.layers):
        if taps and i in taps:
            taps[i][...] = x
        ops.attention_block(x, layer, batch.cu_seqlens, weights, work, keys=batch.keys)
        ops.ffn_block(x, layer, weights, work, routes=routes[i] if routes else None)
    if taps and len(weights.layers) in taps:
        taps[len(weights.layers)][...] = x
    if weights.final_norm is not None:
        ops.norm(x, weights.final_norm, weights.eps, out=x)
    return x


def attention_block(ops: Reference, x: Any, layer: Layer, cu_seqlens: Any, weights: Weights, work: Workspace, keys: Any = None) -> None:
    """Replace x (T, D) by x + attention(norm(x)) or, in a post-norm model, by norm(x + attention(x)). keys: as ops.attention takes it."""
    attention = layer.attention
    h = work.take("h", *x.shape)
    width = weights.heads * weights.head_size
    qkv = work.take("qkv", len(x), 3 * width, dtype=ops.qkv_dtype(weights.head_size))
    attended = h if width == x.shape[1] else work.take("attended", len(x), width)
    before, after = (attention.norm, None) if weights.pre_norm else (None, attention.norm)
    if before is not None:
        ops.norm(x, before, weights.eps, out=h)
    ops.linear(x if before is None else h, attention.qkv.weight, bias=attention.qkv.bias, out=qkv)
    if attention.heads is not None:
        ops.norm_heads(qkv, weights.heads, *attention.heads, weights.eps)
    if attention.rotary is not None:
        ops.rotate(qkv, cu_seqlens, weights.heads, attention.rotary)
    ops.attention(qkv, cu_seqlens, weights.heads, scores=attention.scores, keys=keys, out=attended)
    ops.linear(attended, attention.out.weight, bias=attention.out.bias, residual=x, out=x)
    if after is not None:
        ops.norm(x, after, weights.eps, out=x)


def ffn_block(ops: Reference, x: Any, layer: Layer, weights: Weights, work: Workspace, routes: Any = None) -> None:
    """Replace x (T, D) by x + ffn(norm(x)) or, in a post-norm model, by norm(x + ffn(x))."""
    ffn = layer.ffn
    assert ffn.norm is not None
    h = work.take("h", *x.shape)
    if weights.pre_norm:
        ops.norm(x, ffn.norm, weights.eps, out=h)
        feedforward.forward(ops, h, ffn, residual=x, out=x, work=work, routes=routes)
    else:
        feedforward.forward(ops, x, ffn, residual=x, out=h, work=work, routes=routes)
        ops.norm(h, ffn.norm, weights.eps, out=x)
