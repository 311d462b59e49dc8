"""The best rows for each query, found block by block: memory does not grow with the number of rows.

A backend's search() gives the scores of a block and the largest score of each group of rows. Only groups that may hold one of the best
are looked at again, so nearly all scores are written once and read once.
"""

from __future__ import annotations

import numpy as np

from .backends.reference import Reference
from .backends.search import SEARCH_GROUP

__all__ = ["QUERIES", "Best", "Scan", "block_rows"]

BLOCK_SCORES = 1 << 20  # scores of a block, 4 MB: Python's cost of a block is 1% of the products, and scores stay in a cache
QUERIES = 512  # queries at a time: the most of a block


def block_rows(queries: int) -> int:
    """Rows of a block for so many queries, a multiple of SEARCH_GROUP."""
    return max(16, min(1024, BLOCK_SCORES // max(queries, 1) // SEARCH_GROUP)) * SEARCH_GROUP


class Best:
    """For each of `count` queries the `keep` best rows so far. Of equal scores, the row that came first is better.

    margin  scores may be wrong by half of this (count,), so rows within it of the last of the best are kept, too
    crowded  queries that had more such rows than are kept: what is kept of them does not suffice
    """

    def __init__(self, count: int, keep: int, margin: np.ndarray) -> None:
        self._count, self._keep, self._margin = count, keep, margin
        self._room = 4 * keep + 1024  # candidates of a query
        self._above = np.full(count, -np.inf, np.float32)  # only scores above can be among the best
        self._query, self._row = np.empty(0, np.int64), np.empty(0, np.int64)
        self._held = 0  # candidates that the last _prune() left
        self._score = np.empty(0, np.float32)
        self.crowded = np.zeros(count, bool)

    def add(self, out: np.ndarray, best: np.ndarray, first: int) -> None:
        """Take the scores (count, rows) of the rows from `first` on, and the largest of each group. Rows come in ascending order."""
        # As many rows score at least the keep-th largest of `best`, or of all scores where there are few groups. That takes longer.
        known = best if best.shape[1] >= 2 * self._keep else out if self._above.min() == -np.inf and out.shape[1] > self._keep else None
        if known is not None:
            least = np.partition(known, -self._keep, axis=1)[:, -self._keep]
            self._above = np.fmax(self._above, np.nextafter(least - self._margin, np.float32(-np.inf), dtype=np.float32))
        query, group = np.nonzero(best > self._above[:, None])
        if not len(query):
            return
        row = group[:, None] * SEARCH_GROUP + np.arange(SEARCH_GROUP)
        score = out[query[:, None], np.minimum(row, out.shape[1] - 1)]
        which, place = np.nonzero((score > self._above[query][:, None]) & (row < out.shape[1]))
        self._query = np.concatenate([self._query, query[which]])
        self._row = np.concatenate([self._row, first + row[which, place]])
        self._score = np.concatenate([self._score, score[which, place]])
        if len(self._query) > self._held + self._room * self._count // 4:
            self._prune()

    def _prune(self) -> None:
        """Drop candidates that cannot be among the best."""
        order = np.lexsort((self._row, -self._score, self._query))
        query, score = self._query[order], self._score[order]
        begin = np.searchsorted(query, np.arange(self._count + 1))
        place = np.arange(len(query)) - begin[query]
        full = np.flatnonzero(np.diff(begin) >= self._keep)
        self._above[full] = score[begin[full] + self._keep - 1] - self._margin[full]
        good = (place < self._keep) | (score > self._above[query])
        many = np.bincount(query[good], minlength=self._count) > self._room
        self.crowded |= many
        self._above[self.crowded] = np.inf
        good &= ~self.crowded[query]
        self._query, self._row, self._score = query[good], self._row[order][good], score[good]
        self._held = len(self._query)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(query, row) of all candidates: by query, best first. No more rows can be added."""
        self._prune()
        return self._query, self._row


class Scan:
    """Buffers for the scores of blocks of rows, and the backend that fills them."""

    def __init__(self, ops: Reference, queries: int) -> None:
        self._ops, self.rows = ops, block_rows(queries)
        self._scores = np.empty(queries * self.rows, np.float32)
        self._best = np.empty(queries * (self.rows // SEARCH_GROUP), np.float32)

    def block(
        self,
        rows: np.ndarray,
        queries: np.ndarray,
        scale: np.ndarray | None = None,
        query_scale: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        gone: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores (Q, N) of at most self.rows rows, and the largest of each group, until the next call. gone (N,): rows of -inf."""
        count, groups = len(queries), -(-len(rows) // SEARCH_GROUP)
        out = self._scores[: count * len(rows)].reshape(count, len(rows))
        best = self._best[: count * groups].reshape(count, groups)
        self._ops.search(rows, queries, scale=scale, query_scale=query_scale, bias=bias, out=out, best=best)
        if gone is not None and gone.any():
            out[:, gone] = -np.inf
            best[...] = np.fmax.reduceat(out, np.arange(0, len(rows), SEARCH_GROUP), axis=1)
        return out, best
