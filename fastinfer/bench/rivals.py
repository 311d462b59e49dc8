"""Dense layers that need only fastinfer's dependencies, and the record to which tools/bench.py adds other projects' engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends
from ..checkpoint import Tensor
from .engines import FindEngines
from .timing import Run

# (w1 (W, D), b1 (W,), w2 (D, W), threads) -> run(x (T, D)): a dense layer on the CPU
Dense = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Run]
# (weight (N, K), threads) -> run(x (T, K)): a matrix product on the CPU
Product = Callable[[np.ndarray, int], Run]


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Other projects' engines for one device, by name, and the reasons why others cannot run.

    dense      dense layers: a Dense each, or on a GPU a gpu_layers.Rival
    grouped    on a GPU: layers of one tree with blocks at its leaves, a gpu_layers.Rival each
    products   on the CPU: single matrix products
    ladder     on a GPU: layers of the paper, make(stream, inputs, *arrays) -> work(tokens); names begin with "dense" or "fff"
    models     the function that finds engines of whole models
    left_out   {name: why it cannot run here}
    """

    dense: dict[str, Any] = dataclasses.field(default_factory=dict)
    grouped: dict[str, Any] = dataclasses.field(default_factory=dict)
    products: dict[str, Product] = dataclasses.field(default_factory=dict)
    ladder: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: FindEngines | None = None
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


def numpy_matmuls(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
    """run(x) of a dense layer's two matrix products by numpy's BLAS, without bias and GELU."""
    w1, w2 = np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)
    buffers: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(x: np.ndarray) -> np.ndarray:
        middle, out = buffers.setdefault(len(x), (np.empty((len(x), w1.shape[1]), np.float32), np.empty((len(x), w2.shape[1]), np.float32)))
        np.matmul(x, w1, out=middle)
        return np.matmul(middle, w2, out=out)

    return run


def numpy_with_gelu(kernels: Any) -> Dense:
    """A whole dense layer: two products of numpy, with the bias and this project's vectorised exact GELU between them."""

    def make(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
        w1, w2 = np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)

        def run(x: np.ndarray) -> np.ndarray:
            middle: np.ndarray = x @ w1
            middle += b1
            flat = middle.reshape(-1)
            kernels.array("gelu", flat, flat)
            out: np.ndarray = middle @ w2
            return out

        return run

    return make


def own_dense(isa: str, dtype: str) -> Dense:
    """This project's dense layer: two packed matrix products. The epilogue of the first adds the bias and applies GELU."""

    def make(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
        ops = backends.get(f"cpu:{isa}", dtype=dtype, threads=threads)
        first, second = ops.matrix(Tensor(w1, "float32")), ops.matrix(Tensor(w2, "float32"))
        buffers: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def run(x: np.ndarray) -> np.ndarray:
            middle, out = buffers.setdefault(len(x), (np.empty((len(x), len(w1)), np.float32), np.empty((len(x), len(w2)), np.float32)))
            ops.linear(x, first, bias=b1, activation="gelu", out=middle)
            ops.linear(middle, second, out=out)
            return out

        return run

    return make


def installed_dense(ops: Any) -> dict[str, Dense]:
    """The dense layers that need only fastinfer's dependencies, by name."""
    return {
        "numpy": numpy_matmuls,
        "numpy+gelu": numpy_with_gelu(ops.kernels),
        "own f32": own_dense(ops.isa, "float32"),
        "own bf16": own_dense(ops.isa, "bfloat16"),
        "own int8": own_dense(ops.isa, "int8"),
    }
