"""Position schemes: the tables that backends make from a Config once, when a model is loaded.

Sines are added to embeddings. Rotary tables turn q and k. Distances are added to the scores of attention.
"""

from __future__ import annotations

import math

import numpy as np

from .config import Alibi, Buckets, Disentangled

__all__ = ["alibi_slopes", "bucket_of", "distance_table", "log_bucket", "relative_rows", "rotary_table", "sinusoids"]


def sinusoids(positions: int, hidden: int) -> np.ndarray:
    """(positions, D) float32: sin(p w_i) in column 2i, cos(p w_i) in 2i + 1, w_i = 10000**(-2i / D) (Vaswani et al., arXiv 1706.03762)."""
    frequencies = 10000.0 ** (-np.arange(0, hidden, 2) / hidden)
    table = np.empty((positions, hidden), np.float32)
    for position, row in enumerate(table):
        np.sin(position * frequencies, out=row[0::2], casting="same_kind")
        np.cos(position * frequencies[: hidden // 2], out=row[1::2], casting="same_kind")
    return table


def rotary_table(positions: int, head_size: int, theta: float, scale: float) -> np.ndarray:
    """(positions, S) float32 for heads of S values: cos(p w_i) in column i, sin(p w_i) in column S/2 + i, i < S/2.

    w_i = scale * theta**(-2i / S) (Su et al., arXiv 2104.09864).
    """
    frequencies = scale * theta ** (-np.arange(0, head_size, 2) / head_size)
    table = np.empty((positions, head_size), np.float32)
    for begin in range(0, positions, 1024):  # in float64 a piece at a time
        part = table[begin : begin + 1024]
        angles = np.arange(begin, begin + len(part))[:, None] * frequencies
        part[:, : head_size // 2], part[:, head_size // 2 :] = np.cos(angles), np.sin(angles)
    return table


def distance_table(distances: Buckets | Alibi, positions: int, heads: int, bias: np.ndarray | None) -> np.ndarray:
    """(H, 2 * positions - 1) float32: what is added to the score of query i and key j, in column positions - 1 + j - i.

    bias  (H, buckets), the learned values of Buckets; None for Alibi
    """
    distance = np.arange(1 - positions, positions)
    if isinstance(distances, Alibi):
        return (-alibi_slopes(heads)[:, None] * np.abs(distance)).astype(np.float32)
    assert bias is not None
    return np.ascontiguousarray(bias[:, bucket_of(distance, distances.buckets, distances.reach)], np.float32)


def alibi_slopes(heads: int) -> np.ndarray:
    """(H,) float64, the slopes of ALiBi (Press et al., arXiv 2108.12409).

    For n = 2**k heads, slope h is 2**(-8 (h + 1) / n). For other numbers, the slopes of the largest power of two below are followed
    by every second slope of the next one.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: heads - power]])


def bucket_of(distance: np.ndarray, buckets: int, reach: int) -> np.ndarray:
    """The bucket of each distance j - i, from 0 to buckets - 1, as T5 numbers them (Raffel et al., arXiv 1910.10683).

    Half of the buckets are for j > i. In each half, the first half has one distance each; the rest grow as logarithms up to `reach`.
    """
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    # float32, as the published models computed it: float64 would put a few distances into another bucket
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(reach / exact))
    logarithmic = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    bucket: np.ndarray = half * (distance > 0) + np.where(far < exact, far, np.minimum(logarithmic, half - 1))
    return bucket


def relative_rows(distances: Disentangled, positions: int) -> np.ndarray:
    """(2 * positions - 1,) int32: the row of distance i - j in tables of 2 * buckets rows, in entry positions - 1 + i - j."""
    rows = distances.buckets + log_bucket(np.arange(1 - positions, positions), distances.buckets, distances.reach)
    clipped: np.ndarray = np.clip(rows, 0, 2 * distances.buckets - 1).astype(np.int32)
    return clipped


def log_bucket(distance: np.ndarray, buckets: int, reach: int) -> np.ndarray:
    """The bucket of each distance i - j, from -buckets to buckets, as DeBERTa-v2 numbers them (He et al., arXiv 2006.03654).

    Distances up to buckets / 2 have one bucket each; beyond them buckets grow as logarithms up to `reach`.
    """
    middle = buckets // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float64)
    steps = np.ceil(np.log(far / middle) / math.log((reach - 1) / middle) * (middle - 1)) + middle
    bucket: np.ndarray = np.where(np.abs(distance) <= middle, distance, steps * np.sign(distance)).astype(np.int64)
    return bucket
