"""The answers that layers and models should give: layers in float64, models by the NumPy reference along an engine's routes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import checkpoint
from ..activations import ACTIVATIONS
from ..backends.reference import Reference
from ..batch import PackedBatch
from ..config import Config
from ..errors import BackendError
from ..workspace import Workspace
from .engines import Encode, Engine

CHECKED = 256  # tokens whose answers are compared, but at least one text
# Largest allowed mean error of an engine's hidden states against the float32 reference. Hidden states are of order 1.
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 0.03, "int8": 0.15}


def gelu64(z: np.ndarray) -> np.ndarray:
    """Exact GELU in float64."""
    erfc = np.frompyfunc(math.erfc, 1, 1)
    return np.asarray(0.5 * z * np.asarray(erfc(z / -(2**0.5)), np.float64))


def walk64(
    x: np.ndarray, nodes: np.ndarray, b_in: np.ndarray | None, depth: int, along: np.ndarray | None = None, leaf: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y (T, D), the visited nodes (T, P, depth + 1), the smallest deciding |z| (T, P)) of trees in float64.

    x (T, D); nodes (P, N, 2, D); b_in (P, N) or None; along: the nodes to visit; None: follow the signs of z. leaf: the neurons of a leaf,
    which lie side by side behind the nodes that decide.
    """
    x = x.astype(np.float64)
    y, margin = np.zeros(x.shape), np.full((len(x), len(nodes)), np.inf)
    visited = np.zeros((len(x), len(nodes), depth + 1), np.int32) if along is None else along
    inner = (1 << depth) - 1
    for p in range(len(nodes)):
        for level in range(depth + 1):
            at = visited[:, p, level]
            for number in range(1 if level < depth else leaf):
                row = at if level < depth else inner + (at - inner) * leaf + number
                z = np.einsum("td,td->t", x, nodes[p, row, 0].astype(np.float64)) + (0 if b_in is None else b_in[p, row])
                y += gelu64(z)[:, None] * nodes[p, row, 1]
            if level < depth:
                margin[:, p] = np.minimum(margin[:, p], np.abs(z))
                if along is None:
                    visited[:, p, level + 1] = 2 * at + 1 + (z > 0)
    return y, visited, margin


def dense64(x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, gelu: bool) -> np.ndarray:
    """The output (T, D) of the dense layer in float64. gelu: whether to add b1 and apply GELU between the products."""
    middle = x.astype(np.float64) @ w1.T.astype(np.float64)
    return np.asarray((gelu64(middle + b1) if gelu else middle) @ w2.T.astype(np.float64))


class Along(Reference):
    """The reference with routes that the caller gives. nodes: an array (T, P, depth + 1) per layer that has trees."""

    def __init__(self, nodes: Sequence[np.ndarray]) -> None:
        self._nodes = iter(nodes)

    def fff(
        self, x: np.ndarray, trees: Any, *, bias: Any = None, residual: Any = None, out: np.ndarray, nodes: Any = None, z: Any = None
    ) -> None:
        y = np.zeros_like(x) if residual is None else residual.copy()
        form = trees.form
        for p, path in enumerate(next(self._nodes).transpose(1, 2, 0)):
            for at in path:
                for block in np.unique(at[at >= trees.node_count]) - trees.node_count:
                    there = at == block + trees.node_count
                    y[there] += trees.block(x[there], p, block)
                there = (at >= 0) & (at < trees.node_count) & (not form.silent)
                logit = np.einsum("td,td->t", x[there], trees.nodes[p, at[there], 0])
                logit += 0 if trees.b_in is None else trees.b_in[p, at[there]]
                y[there] += ACTIVATIONS[form.activation](logit)[:, None] * trees.nodes[p, at[there], 1]
        out[...] = y if bias is None else y + bias


class Oracle:
    """The right answers of engines, from the NumPy reference with float32 weights.

    folder_of  folder_of(name of a model) gives the folder that has the model in float32
    """

    def __init__(self, folder_of: Callable[[str], Any]) -> None:
        self._folder_of = folder_of
        self._loaded: dict[str, tuple[Config, Any]] = {}
        self._dense: dict[bytes, np.ndarray] = {}

    def errors(self, engine: Engine, encode: Encode, ids: np.ndarray) -> tuple[float, float]:
        """(largest, mean) error over the first texts of a batch. Raises BackendError if the mean exceeds TOLERANCE.

        Routes come from the whole batch: on a GPU, its size decides how products round, and so which way a near-tie goes.
        """
        some = ids[: max(1, CHECKED // ids.shape[1])]
        got = np.stack([np.asarray(rows, np.float32) for rows in encode(ids)[: len(some)]])
        if engine.model not in self._loaded:
            self._loaded[engine.model] = checkpoint.load(self._folder_of(engine.model), validate=False)
        config, stored = self._loaded[engine.model]
        packed = PackedBatch.from_ids(some.tolist())
        routes = []
        if engine.own:
            per_text = encode.model.routes(PackedBatch.from_ids(ids.tolist()))[: len(some)]
            routes = [np.concatenate([r[0] for r in layer]) for layer in zip(*per_text, strict=True) if layer[0] is not None]
        key = some.tobytes()
        want = None if routes else self._dense.get(key)
        if want is None:
            ops = Along(routes)
            want = ops.encode(ops.prepare(config, stored), packed, Workspace()).reshape(*some.shape, -1).copy()
            if not routes:
                self._dense[key] = want
        error = np.abs(got - want)
        if not error.mean() < TOLERANCE[engine.dtype]:
            raise BackendError(f"{engine} is wrong: it differs from the reference by {error.mean():g} on average, at most {error.max():g}")
        return float(error.max()), float(error.mean())
