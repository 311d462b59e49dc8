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
        result = _reduced(np.add, x, first, lengths)
        result /= lengths[:, None].astype(np.float32)
    elif kind == "sqrtmean":
        result = _reduced(np.add, x, first, lengths) / np.sqrt(lengths[:, None].astype(np.float32))
    elif kind == "weightedmean":
        places = (np.arange(len(x)) - np.repeat(first - before, lengths) + 1).astype(np.float32)[:, None]
        result = _reduced(np.add, x * places, first, lengths) / _reduced(np.add, places, first, lengths)
    else:
        result = _reduced(np.maximum, x, first, lengths)
        if kind == "lse":
            result += np.log(_reduced(np.add, np.exp(x - np.repeat(result, lengths, axis=0)), first, lengths))
    return result


def _reduced(function: np.ufunc, x: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """function.reduceat(x, first, axis=0), which takes three times as long: it goes through x (T, D) column by column."""
    result = np.empty((len(first), x.shape[1]), x.dtype)
    for row, start, length in zip(result, first.tolist(), lengths.tolist(), strict=True):
        function.reduce(x[start : start + length], axis=0, out=row)
    return result
