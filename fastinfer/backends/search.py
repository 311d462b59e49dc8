"""The scores of stored vectors, for an index."""

from __future__ import annotations

import numpy as np

__all__ = ["SEARCH_GROUP", "Search"]

SEARCH_GROUP = 64  # rows that have one `best` in search(); FI_SEARCH_GROUP of src/cpu/kernels.h
BITS = np.array([value.bit_count() for value in range(256)], np.uint8)  # the bits that are set in each byte

WIDENED = 1 << 22  # numbers of int8 rows that become float32 at a time: 16 MB


class Search:
    """The base of Reference with the op of an index. It uses no weights."""

    def search(
        self,
        rows: np.ndarray,
        queries: np.ndarray,
        *,
        scale: np.ndarray | None = None,
        query_scale: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        out: np.ndarray,
        best: np.ndarray,
    ) -> None:
        """out (Q, N) = queries (Q, K) @ rows.T * (query_scale (Q,) * scale (N,)) + bias (N,); best (Q, groups): the largest of each group.

        Both are float32, int8, or bits in uint8, which stand for 1 and -1. A group has SEARCH_GROUP rows. The arrays are on the host.
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
        best[...] = np.fmax.reduceat(out, np.arange(0, len(rows), SEARCH_GROUP), axis=1)
