"""Pooling in NumPy: one vector per text from the states of its tokens."""

from __future__ import annotations

import numpy as np

__all__ = ["pooled"]


def pooled(x: np.ndarray, cu_seqlens: np.ndarray, kind: str, skip: int) -> np.ndarray:
    """One vector per text, (B, D), from x (T, D). kind and skip: as in Reference.pool."""
    first, behind = cu_seqlens[:-1], cu_seqlens[1:]
    lengths = behind - first
    before = np.minimum(skip, lengths - 1) if skip else 0  # tokens of each text that are left out
    result: np.ndarray
    if kind in ("cls", "lasttoken"):
        result = x[first + before if kind == "cls" else behind - 1]
        return result
    if skip:
        x = x[np.arange(len(x)) >= np.repeat(first + before, lengths)]
        lengths = lengths - before
        first = np.cumsum(lengths) - lengths
    if kind == "mean":
        result = np.add.reduceat(x, first, axis=0)
        result /= lengths[:, None].astype(np.float32)
    elif kind == "sqrtmean":
        result = np.add.reduceat(x, first, axis=0) / np.sqrt(lengths[:, None].astype(np.float32))
    elif kind == "weightedmean":
        places = (np.arange(len(x)) - np.repeat(first - before, lengths) + 1).astype(np.float32)[:, None]
        result = np.add.reduceat(x * places, first, axis=0) / np.add.reduceat(places, first, axis=0)
    else:
        result = np.maximum.reduceat(x, first, axis=0)
        if kind == "lse":
            result += np.log(np.add.reduceat(np.exp(x - np.repeat(result, lengths, axis=0)), first, axis=0))
    return result
