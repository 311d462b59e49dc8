"""How alike vectors are: all against all, the most alike pairs, and groups of alike ones, a block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backends
from .backends.reference import Reference
from .backends.search import QUERIES, SCORES, Stored, queries_at_once
from .embedding import Similarity
from .errors import DtypeError, InputError, ShapeError, check_flag, check_int, short
from .heads.embed import normalized
from .progress import Progress

__all__ = ["communities", "host_backend", "paraphrase_pairs", "similarity"]

KINDS: tuple[Similarity, ...] = ("cosine", "dot", "euclidean", "manhattan")
DISTANCES = 1 << 22  # numbers of a block of differences, or of vectors in float64: 32 MB


def host_backend(threads: int | None = None) -> Reference:
    """The fastest backend whose arrays are on the host."""
    return backends.get("cpu" if backends.available()["cpu"] is None else "numpy", threads=threads)


def similarity(a: Any, b: Any = None, *, kind: str = "cosine", threads: int | None = None) -> np.ndarray:
    """How alike each vector of a (A, D) is to each of b (B, D): (A, B) float32, larger is more alike. b None: a itself.

    kind  "cosine", "dot", or a distance times -1: "euclidean", "manhattan"
    """
    if kind not in KINDS:
        raise InputError(f"kind is {short(kind)}, expected one of {', '.join(map(repr, KINDS))}")
    left = _vectors("a", a)
    right = left if b is None else _vectors("b", b)
    if left.shape[1] != right.shape[1]:
        raise ShapeError(f"a is {left.shape} and b is {right.shape}, expected vectors of as many numbers")
    out = np.empty((len(left), len(right)), np.float32)
    if kind in ("cosine", "dot"):
        if kind == "cosine":
            left, right = normalized(left), normalized(right)
        ops = host_backend(threads)
        for first in range(0, len(left) if len(right) else 0, QUERIES):
            ops.search(right, left[first : first + QUERIES], out=out[first : first + QUERIES])
        return out
    size = max(1, DISTANCES // max(1, left.shape[1]))
    for first in range(0, len(right), size):
        block = right[first : first + size]
        if kind == "manhattan":
            for i, vector in enumerate(left):
                out[i, first : first + size] = -np.abs(block - vector).sum(axis=1)
        else:
            for begin in range(0, len(left), QUERIES):
                out[begin : begin + QUERIES, first : first + size] = -_distances(left[begin : begin + QUERIES], block)
    return out


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Euclidean distances (A, B). In float64, since the squares of near vectors cancel."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    squares = np.einsum("ad,ad->a", x, x)[:, None] + np.einsum("bd,bd->b", y, y)
    found: np.ndarray = np.sqrt(np.maximum(squares - 2 * (x @ y.T), 0))
    return found


def paraphrase_pairs(
    vectors: Any, *, top_k: int = 100, max_pairs: int = 500_000, threads: int | None = None, progress: bool = False
) -> list[tuple[float, int, int]]:
    """The most alike pairs of vectors (N, D): (cosine, i, j) with i < j, the most alike first, at most max_pairs.

    top_k  pairs are sought among so many of the nearest of each vector

    This is sentence-transformers' paraphrase_mining_embeddings. Of equal pairs, the one with the smaller i and j is first.
    """
    units = normalized(_vectors("vectors", vectors))
    count, most = check_int("top_k", top_k, 1), check_int("max_pairs", max_pairs, 1)
    ops = host_backend(threads)
    pairs, scores = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    with Progress(len(units), enabled=check_flag("progress", progress)) as bar:
        keep = min(count + 1, len(units))
        step = queries_at_once(keep, ops.threads)
        for first in range(0, len(units), step):
            part = units[first : first + step]
            nearest = ops.nearest([Stored(0, units)], part, keep=keep, margin=np.zeros(len(part), np.float32))
            rows = [found for found in nearest if found is not None]  # all: none has more than `keep` within a margin of 0
            query, row = np.repeat(np.arange(first, first + len(part)), [len(some) for some in rows]), np.concatenate(rows)
            near = query != row
            # The vector itself need not be among its nearest, where others are equal to it: then one is too many.
            order = np.flatnonzero(near)
            place = np.arange(len(order)) - np.searchsorted(query[order], query[order])
            order = order[place < count]
            new = np.sort(np.stack([query[order], row[order]], 1), axis=1)
            pairs = np.concatenate([pairs, new])
            scores = np.concatenate([scores, np.einsum("pd,pd->p", units[new[:, 0]], units[new[:, 1]])])
            if len(pairs) > 2 * most or first + step >= len(units):
                pairs, once = np.unique(pairs, axis=0, return_index=True)
                best = np.argsort(-scores[once], kind="stable")[:most]
                pairs, scores = pairs[best], scores[once][best]
            bar.advance(min(step, len(units) - first))
    return [(score, i, j) for score, (i, j) in zip(scores.tolist(), pairs.tolist(), strict=True)]


def communities(
    vectors: Any, *, threshold: float = 0.75, min_size: int = 10, threads: int | None = None, progress: bool = False
) -> list[list[int]]:
    """Groups of at least min_size vectors (N, D) whose cosine with the first of the group is at least threshold, the largest group first.

    A vector is in one group at most. This is sentence-transformers' community_detection. In a group the others follow by their cosine.
    """
    units = normalized(_vectors("vectors", vectors))
    least = check_int("min_size", min_size, 1)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.floating)) or not -1 <= threshold <= 1:
        raise InputError(f"threshold is {short(threshold)}, expected a number from -1 to 1")
    ops = host_backend(threads)
    sizes = np.zeros(len(units), np.int64)
    everything = np.arange(len(units))
    with Progress(2 * len(units), enabled=check_flag("progress", progress)) as bar:
        for first in range(0, len(units), QUERIES):
            part = everything[first : first + QUERIES]
            for out, _ in _scores(units, part, ops):
                sizes[part] += np.count_nonzero(out >= np.float32(threshold), axis=1)
            bar.advance(len(part))
        found: list[list[int]] = []
        used = np.zeros(len(units), bool)
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] >= least]
        for first in range(0, len(order), QUERIES):
            part = order[first : first + QUERIES]
            part = part[~used[part]]  # those that a larger group has are not compared again
            for centre, members in zip(part.tolist(), _members(units, part, used, threshold, ops), strict=True):
                rest = members[~used[members] & (members != centre)]
                if not used[centre] and len(rest) + 1 >= least:
                    found.append([centre, *rest.tolist()])
                    used[found[-1]] = True
            bar.advance(len(units) * QUERIES // max(1, len(order)))
    return sorted(found, key=len, reverse=True)


def _scores(units: np.ndarray, which: np.ndarray, ops: Reference) -> Any:
    """Yield (scores (len(which), rows), first row) of blocks of rows. Read them before the next."""
    queries = np.ascontiguousarray(units[which])
    step = max(1, min(SCORES // max(1, len(which)), len(units)))
    scores = np.empty(len(which) * step, np.float32)
    for begin in range(0, len(units), step):
        rows = units[begin : begin + step]
        out = scores[: len(which) * len(rows)].reshape(len(which), len(rows))
        ops.search(rows, queries, out=out)
        yield out, begin


def _members(units: np.ndarray, which: np.ndarray, used: np.ndarray, threshold: float, ops: Reference) -> list[np.ndarray]:
    """For each vector of `which` the free ones whose cosine with it is at least the threshold, best first."""
    query, row, score = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    if len(which):
        for out, begin in _scores(units, which, ops):
            near, place = np.nonzero((out >= np.float32(threshold)) & ~used[begin : begin + out.shape[1]])
            query.append(near)
            row.append(begin + place)
            score.append(out[near, place])
    queries, rows, scores = np.concatenate(query), np.concatenate(row), np.concatenate(score)
    order = np.lexsort((rows, -scores, queries))
    return np.split(rows[order], np.searchsorted(queries[order], np.arange(1, len(which)))) if len(which) else []


def _vectors(name: str, values: Any) -> np.ndarray:
    """`values` as a C-contiguous (N, D) float32 array without NaN and infinity."""
    try:
        found = np.asarray(values)
    except ValueError:
        raise ShapeError(f"{name} has vectors of different lengths, expected an array (N, D)") from None
    if found.dtype.kind not in "fiu":
        raise DtypeError(f"{name} is {short(values)} of dtype {found.dtype}, expected floats (N, D), such as model.embed() gives")
    if found.ndim != 2 or not found.shape[1]:
        raise ShapeError(f"{name} is {found.shape}, expected (N, D)")
    vectors = np.ascontiguousarray(found, np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"{name}[{row}] has NaN, infinity or a number that is too large for float32")
    return vectors
