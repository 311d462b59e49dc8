"""SparseEmbedder: texts to sparse vectors over the vocabulary, with the logits of a model's fill_mask head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .batch import PackedBatch
from .config import FillMask
from .errors import no_scipy
from .heads import embed_sparse
from .retrieval import EmbedSparse
from .run import Options, Runner
from .tokenizer import TruncationWarning, warn_of

__all__ = ["SparseEmbedder"]


class SparseEmbedder:
    """Makes sparse vectors with the heads of the model that a Runner runs."""

    def __init__(self, head: EmbedSparse, decoder: FillMask, runner: Runner) -> None:
        self._head, self._decoder, self._runner = head, decoder, runner

    def embed(self, texts: Any, options: Options, missing: Sequence[int] = ()) -> Any:
        """A scipy.sparse.csr_array (B, V) float32: a row per text, a column per token of the vocabulary. missing: rows without weights."""
        try:
            from scipy.sparse import csr_array  # no other call needs this package, and importing it takes longer than many calls
        except ImportError:
            raise no_scipy("embed_sparse() gives a scipy.sparse.csr_array") from None
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts, cuts)
        found: list[Any] = [None] * total

        def forward(ops: Any, weights: Any, x: Any, part: PackedBatch) -> Any:
            return embed_sparse.forward(ops, x, part, self._head, weights, self._decoder)

        for which, _, rows in self._runner.run(windows, total, forward, options):
            for b, row in zip(which.tolist(), rows, strict=True):
                found[b] = embed_sparse.weights_of(row, self._head)
        warn_of(cuts)
        for b in missing:
            found[b] = np.empty(0, np.int32), np.empty(0, np.float32)
        ids, values = ([np.empty(0, dtype), *(row[i] for row in found)] for i, dtype in enumerate((np.int32, np.float32)))
        starts = np.cumsum([0, *(len(row) for row, _ in found)])
        starts = starts.astype(np.int32 if starts[-1] <= np.iinfo(np.int32).max else np.int64)  # scipy gives the ids this dtype, too
        return csr_array((np.concatenate(values), np.concatenate(ids), starts), shape=(total, self._runner.config.vocabulary))

    def scores(self, query: str, documents: list[str], options: Options) -> np.ndarray:
        """How alike each document is to the query, as the head's similarity says: larger is more alike."""
        vectors = self.embed([query, *documents], options)
        asked, given = vectors[[0]].toarray()[0], vectors[1:]
        products: np.ndarray = given @ asked
        if self._head.similarity == "dot":
            return products
        if self._head.similarity == "cosine":
            lengths = np.sqrt([float(row @ row) for row in (asked, *(row.data for row in rows_of(given)))]).astype(np.float32)
            cosines: np.ndarray = products / np.maximum(lengths[1:] * lengths[0], np.float32(1e-12))
            return cosines
        distances = []
        for row in rows_of(given):
            apart = -asked
            apart[row.indices] += row.data
            distances.append(np.linalg.norm(apart) if self._head.similarity == "euclidean" else np.abs(apart).sum())
        return -np.array(distances, np.float32)


def rows_of(vectors: Any) -> Any:
    """The rows of a CSR array, each as one."""
    return (vectors[[i]] for i in range(vectors.shape[0]))
