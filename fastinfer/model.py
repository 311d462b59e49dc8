"""The forward pass.

Forward is written in terms of the primitives that a backend supplies (backends/reference.py says what
each does): embed, linear, norm, attention, fff. A fast backend may override a block or the whole.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import ffn
from .batch import PackedBatch


class Forward:
    """embed -> layers x (attention, feedforward) -> final norm, over T packed tokens."""

    def encode(
        self, weights: Any, batch: PackedBatch, work: Workspace, *, taps: dict | None = None, routes: list | None = None
    ) -> np.ndarray:
        """The final hidden states (T, D), in a buffer of `work` that the next call reuses.

        taps    {i: buffer (T, D)} to be filled: 0 = embedding, i = after layer i
        routes  per layer None or (nodes, z), to be filled
        """
        x = work.take("x", len(batch.ids), weights.hidden)
        self.embed(batch, weights.embedding, out=x)
        for i, layer in enumerate(weights.layers):
            if taps and i in taps:
                taps[i][...] = x
            self.attention_block(x, layer.attention, batch.cu_seqlens, weights, work)
            self.ffn_block(x, layer.ffn, weights, work, routes=routes[i] if routes else None)
        if taps and len(weights.layers) in taps:
            taps[len(weights.layers)][...] = x
        if weights.final_norm is not None:
            self.norm(x, weights.final_norm, weights.eps, out=x)
        return x

    def attention_block(self, x: np.ndarray, attention: Any, cu_seqlens: np.ndarray, weights: Any, work: Workspace) -> None:
        """x (T, D) in place: x + attention(norm(x)), or norm(x + attention(x)) where norms come after."""
        h = work.take("h", *x.shape)
        qkv = work.take("qkv", len(x), 3 * x.shape[1], dtype=self.qkv_dtype(x.shape[1] // weights.heads))
        if weights.pre_norm:
            self.norm(x, attention.norm, weights.eps, out=h)
        self.linear(h if weights.pre_norm else x, attention.qkv.weight, bias=attention.qkv.bias, out=qkv)
        self.attention(qkv, cu_seqlens, weights.heads, out=h)
        self.linear(h, attention.out.weight, bias=attention.out.bias, residual=x, out=x)
        if not weights.pre_norm:
            self.norm(x, attention.norm, weights.eps, out=x)

    def ffn_block(self, x: np.ndarray, layer: Any, weights: Any, work: Workspace, *, routes: Any = None) -> None:
        """x (T, D) in place: x + ffn(norm(x)), or norm(x + ffn(x)) where norms come after."""
        h = work.take("h", *x.shape)
        if weights.pre_norm:
            self.norm(x, layer.norm, weights.eps, out=h)
            ffn.forward(self, h, layer, residual=x, out=x, work=work, routes=routes)
        else:
            ffn.forward(self, x, layer, residual=x, out=h, work=work, routes=routes)
            self.norm(h, layer.norm, weights.eps, out=x)


class Workspace:
    """Named buffers that grow to the largest batch of one call and go when it ends. Entered around the ops of each batch."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        """The call has ended."""

    def take(self, name: str, *shape: int, dtype: Any = None) -> np.ndarray:
        """The buffer `name` as an uninitialised array of `shape`; the same memory at each call that asks for the same dtype.

        dtype  None: that of activations
        """
        dtype = np.float32 if dtype is None else dtype
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
