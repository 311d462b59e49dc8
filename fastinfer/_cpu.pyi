"""What the compiled module offers; tests/test_compiled.py compares this file with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.search import Stored

def dtypes() -> dict[str, int]: ...
def activations() -> dict[str | None, int]: ...
def isas() -> list[tuple[str, bool]]: ...
def use_openmp(parallel: int, barrier: int, rank: int, size: int) -> None: ...
def use_own() -> None: ...
def uses_openmp() -> bool: ...

class Memory:
    def __init__(self, size: int) -> None: ...

class Trees:
    def __init__(
        self,
        nodes: NDArray[Any],
        dtype: str,
        scale: NDArray[np.float32] | None,
        b_in: NDArray[np.float32] | None,
        children: NDArray[np.int32] | None,
        depth: int,
        activation: str,
        silent: bool,
        rows_of_bytes: NDArray[np.int8] | None,
        quads: NDArray[np.int8] | None,
    ) -> None: ...
    @property
    def depth(self) -> int: ...

class Matrix:
    @property
    def outputs(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Blocks:
    def __init__(
        self,
        first: Matrix,
        second: Matrix,
        blocks: int,
        nodes: int,
        b_in: NDArray[np.float32] | None,
        scale: NDArray[np.float32] | None,
        b_leaf: NDArray[np.float32] | None,
        children: NDArray[np.int32] | None,
        levels: int,
        depth: int,
        activation: str,
    ) -> None: ...

class Relative:
    def __init__(self, keys: Matrix, queries: Matrix, rows: NDArray[np.int32], width: int) -> None: ...

class Kernels:
    def __init__(self, name: str) -> None: ...
    @property
    def lanes(self) -> int: ...
    @property
    def block_rows(self) -> int: ...
    @property
    def strip_vectors(self) -> int: ...
    @property
    def bias(self) -> int: ...
    @property
    def half(self) -> bool: ...
    def fff(
        self,
        x: NDArray[np.float32],
        trees: Trees,
        bias: NDArray[np.float32] | None,
        residual: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        nodes: NDArray[np.int32] | None,
        z: NDArray[np.float32] | None,
        threads: int,
    ) -> None: ...
    def blocks(
        self,
        x: NDArray[np.float32],
        blocks: Blocks,
        path: NDArray[np.int32] | None,
        path_z: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        residual: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        nodes: NDArray[np.int32] | None,
        z: NDArray[np.float32] | None,
        threads: int,
    ) -> None: ...
    def pack(
        self,
        rows: NDArray[Any],
        stored: str,
        scale: NDArray[np.float32] | None,
        dtype: str,
        take: Callable[[int], NDArray[np.uint8]],
        threads: int,
    ) -> Matrix: ...
    def gemm(
        self,
        x: NDArray[np.float32],
        matrix: Matrix,
        bias: NDArray[np.float32] | None,
        activation: str | None,
        gate: NDArray[np.float32] | None,
        residual: NDArray[np.float32] | None,
        out: NDArray[Any],
        threads: int,
    ) -> None: ...
    def norm(
        self,
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        eps: float,
        out: NDArray[np.float32],
        threads: int,
    ) -> None: ...
    def norm_heads(
        self, qkv: NDArray[Any], heads: int, query: NDArray[np.float32], key: NDArray[np.float32], eps: float, threads: int
    ) -> None: ...
    def embed(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        types: NDArray[np.int32] | None,
        words: NDArray[Any],
        stored: str,
        scale: NDArray[np.float32] | None,
        position_rows: NDArray[np.float32] | None,
        type_rows: NDArray[np.float32] | None,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        eps: float,
        out: NDArray[np.float32],
        threads: int,
    ) -> None: ...
    def rotate(self, qkv: NDArray[Any], cu_seqlens: NDArray[np.int32], heads: int, table: NDArray[np.float32], threads: int) -> None: ...
    def attention(
        self,
        qkv: NDArray[Any],
        cu_seqlens: NDArray[np.int32],
        heads: int,
        window: int,
        causal: bool,
        distances: NDArray[np.float32] | None,
        relative: Relative | None,
        keys: NDArray[np.int32] | None,
        out: NDArray[np.float32],
        dtype: str,
        threads: int,
    ) -> None: ...
    def search(
        self,
        rows: NDArray[Any],
        queries: NDArray[Any],
        scale: NDArray[np.float32] | None,
        query_scale: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        threads: int,
    ) -> None: ...
    def nearest(
        self,
        parts: list[Stored],
        queries: NDArray[Any],
        query_scale: NDArray[np.float32] | None,
        keep: int,
        margin: NDArray[np.float32],
        threads: int,
    ) -> list[NDArray[np.int64] | None]: ...
    def array(self, function: str, x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
    def probe_dot(self) -> float | None: ...
    def probe_fma(self, rounds: int, threads: int) -> float: ...
    def probe_read(self, data: NDArray[np.float32], times: int, threads: int) -> float: ...
    def ladder(
        self,
        rung: str,
        x: NDArray[np.float32],
        w_in: NDArray[np.float32],
        b_in: NDArray[np.float32],
        w_out: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None: ...

class Program(Kernels):
    def __init__(self, kernels: Kernels) -> None: ...
    def run(self) -> None: ...
    def run_first(self, rows: int, texts: int, threads: int) -> None: ...
    def run_apart(self, result: NDArray[np.float32], texts: NDArray[np.int32], cu_seqlens: NDArray[np.int32], threads: int) -> None: ...
