"""Pooling in NumPy: one vector per text from the states of its tokens."""

from __future__ import annotations

import numpy as np

__all__ = ["pooled"]


def pooled(x: np.ndarray, cu_seqlens: np.ndarray, kind: str, skip: int) -> np.ndarray:
    """One vector per text, (B, D), from x (T, D). kind and skip: as in Reference.pool."""
    first, behind = cu_seqlens[:-1], cu_seqlens[1:]
    if kind == "lasttoken":
        return x[behind - 1]
    lengths = behind - first
    places = np.arange(len(x), dtype=np.int32) - np.repeat(first, lengths)
    if skip:
        kept = places >= np.repeat(np.minimum(skip, lengths - 1), lengths)
        x, places = x[kept], places[kept]
        lengths = np.maximum(lengths - skip, 1)
        first = np.cumsum(lengths) - lengths
    if kind == "cls":
        return x[first]
    counts = lengths[:, None].astype(np.float32)
    result: np.ndarray
    if kind == "mean":
        result = np.add.reduceat(x, first, axis=0) / counts
    elif kind == "sqrtmean":
        result = np.add.reduceat(x, first, axis=0) / np.sqrt(counts)
    elif kind == "weightedmean":
        weights = (places + 1).astype(np.float32)[:, None]
        result = np.add.reduceat(x * weights, first, axis=0) / np.add.reduceat(weights, first, axis=0)
    else:
        result = np.maximum.reduceat(x, first, axis=0)
        if kind == "lse":
            result += np.log(np.add.reduceat(np.exp(x - np.repeat(result, lengths, axis=0)), first, axis=0))
    return result
