"""The scores of stored vectors, for an index, and the rows whose scores are the largest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["QUERIES", "SCORES", "Best", "Search", "Stored", "queries_at_once"]

BITS = np.array([value.bit_count() for value in range(256)], np.uint8)  # the bits that are set in each byte

WIDENED = 1 << 22  # numbers of int8 rows that become float32 at a time: 16 MB
SCORES = 1 << 20  # scores at a time, 4 MB: they stay in a cache
LOWEST = np.finfo(np.float32).min  # below it are the scores of removed rows
ROOM = 1024  # rows of a query beyond the best that are kept because their scores are within the margin; FI_BEST_ROOM of src/cpu/kernels.h
QUERIES = 512  # queries at a time, at most
FOUND = 1 << 23  # rows that a call has room for: 64 MB


def queries_at_once(keep: int, threads: int | None) -> int:
    """Queries of a call of nearest(): each thread, or the one of NumPy (None), has room for the best of each."""
    return max(1, min(QUERIES, FOUND // ((threads or 1) * _room(keep))))


def _room(keep: int) -> int:
    """Rows of a query that there is room for, as in _cpu.pyx."""
    return 4 * keep + ROOM


class Stored(NamedTuple):
    """Rows (N, K) of an index, with the number of the first one, and what Search.search() takes. gone (N,): rows that were removed."""

    first: int
    rows: np.ndarray
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    gone: np.ndarray | None = None


class Best:
    """For each of `count` queries the `keep` best rows so far, and those within margin (count,) of the last of these.

    Each is the bits of its score, ordered as scores are, above those of ~row: the larger number is better, and of equal scores the
    earlier row.
    """

    def __init__(self, count: int, keep: int, margin: np.ndarray) -> None:
        self._keep, self._margin = keep, margin
        self._room = _room(keep)
        self._least = np.full(count, LOWEST)  # only scores of at least so much can be among the best
        self._parts: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._held = np.zeros(count, np.int64)
        self._crowded = np.zeros(count, bool)

    def add(self, out: np.ndarray, first: int) -> None:
        """Take the scores (count, rows) of the rows from `first` on. Rows come in ascending order."""
        if out.shape[1] > self._keep:
            least = np.partition(np.fmax(out, -np.inf), -self._keep, axis=1)[:, -self._keep]
            self._least = np.fmax(self._least, least - self._margin)
        for query in np.flatnonzero(~self._crowded).tolist():
            row = np.flatnonzero(out[query] >= self._least[query])
            bits = (out[query, row] + np.float32(0)).view(np.uint32)  # -0 becomes 0
            bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
            self._parts[query].append(bits << np.uint64(32) | (~np.uint64(first) - row.astype(np.uint64)) & np.uint64(0xFFFFFFFF))
            self._held[query] += len(row)
            if self._held[query] > self._room:
                self._reduce(query)
                self._crowded[query] = self._held[query] > self._room

    def _reduce(self, query: int) -> None:
        found = np.concatenate([np.empty(0, np.uint64), *self._parts[query]])
        if len(found) > self._keep:
            found = np.sort(found)[::-1]
            bound = _score(found[self._keep - 1]) - self._margin[query]
            self._least[query] = max(self._least[query], bound)
            found = found[(np.arange(len(found)) < self._keep) | (_score(found) > bound)]
        self._parts[query], self._held[query] = [found], len(found)

    def rows(self) -> list[np.ndarray | None]:
        """The rows of each query, the best first; None where too many are within the margin. No more rows can be added."""
        found: list[np.ndarray | None] = []
        for query, crowded in enumerate(self._crowded):
            self._reduce(query)
            best = np.sort(self._parts[query][0])[::-1]
            found.append(None if crowded else (~best & np.uint64(0xFFFFFFFF)).astype(np.int64))
        return found


def _score(found: np.ndarray) -> np.ndarray:
    ordered = (found >> np.uint64(32)).astype(np.uint32)
    scores: np.ndarray = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered).view(np.float32)
    return scores


class Search:
    """The base of Reference with the ops of an index. They use no weights, and their arrays are on the host."""

    def search(
        self,
        rows: np.ndarray,
        queries: np.ndarray,
        *,
        scale: np.ndarray | None = None,
        query_scale: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        out: np.ndarray,
    ) -> None:
        """out (Q, N) = queries (Q, K) @ rows.T * (query_scale (Q,) * scale (N,)) + bias (N,).

        Both are float32, int8, or bits in uint8, which stand for 1 and -1.
        """
        if rows.dtype == np.uint8:
            for query, products in zip(queries, out, strict=True):
                products[...] = 8 * rows.shape[1] - 2 * BITS[rows ^ query].sum(axis=1, dtype=np.int32)
        else:  # as float32, products of int8 are exact up to 1,040 numbers a vector
            asked, step = queries.astype(np.float32, copy=False), max(1, WIDENED // rows.shape[1])
            for first in range(0, len(rows), step):
                out[:, first : first + step] = asked @ rows[first : first + step].astype(np.float32, copy=False).T
        if scale is not None and query_scale is not None:
            out *= query_scale[:, None] * scale
        if bias is not None:
            out += bias

    def nearest(
        self, parts: list[Stored], queries: np.ndarray, *, keep: int, margin: np.ndarray, query_scale: np.ndarray | None = None
    ) -> list[np.ndarray | None]:
        """For each query the `keep` rows with the largest scores, and those within margin (Q,) of the last of these, the best first.

        Of equal scores, the earlier row is better. Rows whose score is nan or -inf are left out. Parts come in ascending order. None: more
        rows are within the margin than a query has room for.
        """
        best = Best(len(queries), keep, margin)
        step = max(1, SCORES // max(1, len(queries)))
        for part in parts:
            for begin in range(0, len(part.rows), step):
                some = slice(begin, begin + step)
                out = np.empty((len(queries), len(part.rows[some])), np.float32)
                given = {name: None if values is None else values[some] for name, values in (("scale", part.scale), ("bias", part.bias))}
                self.search(part.rows[some], queries, query_scale=query_scale, out=out, **given)
                if part.gone is not None:
                    out[:, part.gone[some]] = -np.inf
                best.add(out, part.first + begin)
        return best.rows()
