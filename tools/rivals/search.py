"""Exact search by others: NumPy, faiss and usearch, each over vectors of length 1 and for the largest products."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import numpy as np

BLOCK = 8192  # rows that NumPy multiplies at a time, so that its scores stay in a cache: faster than all at once

Search = Callable[[np.ndarray, int], np.ndarray]  # (queries (Q, D), k) -> rows (Q, k), best first


def numpy_float32(vectors: np.ndarray, threads: int) -> Search:
    """A product with all rows for one query, blocks for a batch; then argpartition."""

    def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return np.take_along_axis(scores, part, 1), np.take_along_axis(rows, part, 1)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        size = len(vectors) if len(queries) == 1 else BLOCK
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for first in range(0, len(vectors), size):
            block = vectors[first : first + size]
            new = (block @ queries[0])[None] if len(queries) == 1 else queries @ block.T
            found = best(new, np.broadcast_to(np.arange(first, first + len(block)), new.shape), min(k, len(block)))
            scores, rows = np.concatenate([scores, found[0]], 1), np.concatenate([rows, found[1]], 1)
            scores, rows = best(scores, rows, min(k, scores.shape[1]))
        return np.take_along_axis(rows, np.argsort(-scores, axis=1), 1)

    return search


def _faiss(kind: str) -> Callable[[np.ndarray, int], Search]:
    def build(vectors: np.ndarray, threads: int) -> Search:
        import faiss

        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = 1 << 30  # its own loops: the BLAS of its wheel is slow on a new CPU
        dim = vectors.shape[1]
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "int8":
            index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.IndexBinaryFlat(dim)

        def stored(rows: np.ndarray) -> np.ndarray:
            if kind == "int8":
                return np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.float32)
            return np.packbits(rows > 0, axis=1) if kind == "binary" else rows

        for first in range(0, len(vectors), 1 << 16):
            block = stored(vectors[first : first + (1 << 16)])
            if kind == "int8" and not index.is_trained:
                index.train(block)
            index.add(block)
        return lambda queries, k: index.search(stored(queries), k)[1]

    return build


def _usearch(kind: str) -> Callable[[np.ndarray, int], Search]:
    def build(vectors: np.ndarray, threads: int) -> Search:
        from usearch import index as usearch

        def stored(rows: np.ndarray) -> np.ndarray:
            if kind == "int8":
                return np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8)
            return np.packbits(rows > 0, axis=1) if kind == "binary" else rows

        held = vectors
        if kind != "flat":
            held = np.concatenate([stored(vectors[first : first + (1 << 16)]) for first in range(0, len(vectors), 1 << 16)])
        options = {"flat": "ip", "int8": "cos", "binary": "hamming"}

        def search(queries: np.ndarray, k: int) -> np.ndarray:
            types = {"dtype": "b1"} if kind == "binary" else {}
            found = usearch.search(held, stored(queries), k, options[kind], exact=True, threads=threads, **types)
            return found.keys.reshape(len(queries), -1)

        return search

    return build


ENGINES: dict[str, dict[str, Callable[[np.ndarray, int], Search]]] = {
    "float32": {
        "numpy": numpy_float32,
        "faiss flat": _faiss("flat"),
        "usearch exact": _usearch("flat"),
    },
    "int8": {"faiss scalar quantizer": _faiss("int8"), "usearch exact": _usearch("int8")},
    "binary": {"faiss binary flat": _faiss("binary"), "usearch exact": _usearch("binary")},
}


def versions() -> str:
    """The versions of the packages that are installed."""
    found = []
    for name in ("numpy", "faiss-cpu", "usearch"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return ", ".join(found)
