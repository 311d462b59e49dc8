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
LOWEST = np.finfo(np.float32).min  # below it are the scores of removed rows and what is no number
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
        self._least = np.full(count, LOWEST)  # only scores of at least so much can be among the best
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # queries, rows and scores of candidates
        self._added = self._held = 0  # candidates, and those that the last _prune() left
        self.crowded = np.zeros(count, bool)

    def add(self, out: np.ndarray, best: np.ndarray, first: int) -> None:
        """Take the scores (count, rows) of the rows from `first` on, and the largest of each group. Rows come in ascending order."""
        # As many rows score at least the keep-th largest of `best`, or of all scores where there are few groups. That takes longer.
        known = best if best.shape[1] >= 2 * self._keep else out if self._least.min() == LOWEST and out.shape[1] > self._keep else None
        if known is not None:
            least = np.partition(known, -self._keep, axis=1)[:, -self._keep]
            self._least = np.fmax(self._least, least - self._margin)
        place = np.flatnonzero(out >= self._least[:, None])  # of one axis, it is ten times as fast as np.nonzero() of two
        if not len(place):
            return
        query = place // out.shape[1]
        self._parts.append((query, first + place - query * out.shape[1], out.ravel()[place]))
        self._added += len(place)
        if self._added > self._held + self._room * self._count // 4:
            self._prune()

    def _prune(self) -> None:
        """Drop candidates that cannot be among the best, and order the others by query, best first."""
        if not self._parts:
            return
        query, row, score = map(np.concatenate, zip(*self._parts, strict=True))
        order = np.lexsort((row, -score, query)) if self._count > 1 else np.lexsort((row, -score))
        query, row, score = query[order], row[order], score[order]
        begin = np.searchsorted(query, np.arange(self._count + 1))
        full = begin[1:] - begin[:-1] >= self._keep
        self._least[full] = score[begin[:-1][full] + self._keep - 1] - self._margin[full]
        good = (np.arange(len(query)) - begin[query] < self._keep) | (score > self._least[query])
        if len(query) > self._room:
            self.crowded |= np.bincount(query[good], minlength=self._count) > self._room
            self._least[self.crowded] = np.inf
            good &= ~self.crowded[query]
        self._parts = [(query[good], row[good], score[good])]
        self._added = self._held = len(self._parts[0][0])

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(query, row) of all candidates: by query, best first. No more rows can be added."""
        self._prune()
        return self._parts[0][:2] if self._parts else (np.empty(0, np.int64), np.empty(0, np.int64))

    def rows(self) -> list[np.ndarray]:
        """The rows of the candidates of each query, ascending. No more rows can be added."""
        query, row = self.found()
        ends = [len(row)] if self._count == 1 else np.searchsorted(query, np.arange(1, self._count + 1)).tolist()
        return [np.sort(row[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


class Scan:
    """Buffers for the scores of blocks of at most `most` rows, and the backend that fills them."""

    def __init__(self, ops: Reference, queries: int, most: int) -> None:
        self._ops, self.rows = ops, min(block_rows(queries), -(-max(most, 1) // SEARCH_GROUP) * SEARCH_GROUP)
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
