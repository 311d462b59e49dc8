"""The CPU backend: the reference, with most of its ops replaced by those of the compiled module."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from .. import _cpu
from ..batch import PackedBatch
from ..checkpoint.tensor import Tensor
from ..config import tree_nodes
from ..errors import BackendError
from ..weights import NODES, PLAIN, Embedding, Form, Norm, Scores, Weights
from ..workspace import Workspace
from .pages import SMALL, Pages
from .query import Buffers, Query, collect, serves
from .quota import cgroup_quota, first_line
from .reference import Reference, check_threads
from .search import Stored

SLOW_DOT = 1.5  # times an FMA's time: a dot instruction of bfloat16 that takes longer is not worth its rounding


# Trees of at most so many nodes, with at least so many levels together, are wide: in int8 they compute on bytes, as products do. More
# neurons of a token would not fit the int32 sums.
WIDE_NODES, WIDE_LEVELS, MOST_NEURONS = 255, 64, 1 << 16

# Tokens of a part of a batch, which one thread takes through the whole forward pass: few enough that their activations stay in its L2, and
# enough to repay reading all weights; twice as many where those of q, k and v take so many bytes. A part may have so many times the mean of
# all parts: beyond, threads would wait for the last one.
PART_TOKENS, LARGE_WEIGHTS, UNEVEN = 256, 4 << 20, 1.2


class Roots(NamedTuple):
    """Trees of depth 0 have no decisions, so they are also packed as two dense matrices, `first` and `second`. `trees` gives routes."""

    trees: Any
    first: Any
    second: Any
    b_in: np.ndarray | None
    activation: str
    depth: int


class Leaves(NamedTuple):
    """Trees whose leaves are blocks. nodes: the trees of those that decide, None at depth 0; a path has at most so many levels of nodes."""

    nodes: Any
    levels: int
    blocks: Any
    trees: int
    depth: int


class CPU(Reference):
    """The compiled kernels for one ISA. A call uses up to `threads` threads, and never more than `most`."""

    name = "cpu"
    most_neurons = 512 * 3072  # 6 MiB: with int8, nomic's 8x128 tokens take 12% less time than all at once, MPNet's 5% less
    dtypes = ("float32", "bfloat16", "int8")
    threads: int

    def __init__(
        self, isa: str | None = None, threads: int | None = None, dtype: str | None = None, kernels: Any = None, most: int | None = None
    ) -> None:
        self.isa = isa or default_isa()
        self.most = most or most_threads()  # counted only here, since counting takes 0.1 ms
        self.threads = min(check_threads(threads) or default_threads(), self.most)
        self.dtype = dtype
        self.kernels = kernels or _cpu.Kernels(self.isa)
        self._pages = Pages()
        self._others: dict[int, CPU] = {}  # the key is the number of threads
        self.spare: Query | None = None  # the Query that a call has left for the next

    @property
    def device(self) -> str:
        return f"cpu:{self.isa}"

    def using(self, threads: int | None) -> CPU:
        if threads is None or (type(threads) is int and threads == self.threads):
            return self
        if type(threads) is not int or threads not in self._others:  # a check takes a third of the time of a layer for one token
            threads = min(check_threads(threads) or self.threads, self.most)
            if threads == self.threads:
                return self
            self._others[threads] = CPU(self.isa, threads, self.dtype, self.kernels, self.most)
        return self._others[threads]

    def _computes_in(self, stored: Tensor) -> str:
        """The dtype in which a weight is used: the one asked for, else the stored one. Stored float16 becomes float32."""
        return self.dtype or ("float32" if stored.dtype == "float16" else stored.dtype)

    def workspace(self) -> Workspace:
        return Buffers(self)

    def release(self) -> None:
        for ops in (self, *self._others.values()):
            ops.spare = None

    def take_query(self, weights: Weights) -> Query:
        """The spare Query if it is of these weights, else a new one."""
        found, self.spare = self.spare, None
        if found is not None and found.weights is weights:
            return found
        program = _cpu.Program(self.kernels)
        return collect(weights, program, super(CPU, self._collecting(program, self.threads, whole=True)).encode)

    def _collecting(self, program: Any, threads: int, *, whole: bool) -> CPU:
        """A backend whose ops `program` collects. whole: each op gets all rows, to be confined to some of them when it runs."""
        made = CPU(self.isa, threads, self.dtype, program, self.most)
        if whole:
            made.most_neurons = sys.maxsize
        return made

    def encode(
        self, weights: Weights, batch: PackedBatch, work: Workspace, *, taps: dict[int, Any] | None = None, routes: list[Any] | None = None
    ) -> Any:
        """The forward pass of model.py. Its ops are collected, for few tokens by an earlier call. Then each thread runs them all for parts
        of the batch, or a team runs them one after another where the batch is too small for that, or has few long texts. They run one by
        one if NumPy runs some."""
        if taps or weights.head_size % 8:
            return super().encode(weights, batch, work, taps=taps, routes=routes)
        if isinstance(work, Buffers) and routes is None and serves(weights, batch):
            return work.query(weights).run(batch, self.threads)
        large = weights.layers[0].attention.qkv.weight.nbytes > LARGE_WEIGHTS
        parts = parts_of(batch.cu_seqlens, self.threads, 2 * PART_TOKENS if large else PART_TOKENS)
        program = _cpu.Program(self.kernels)
        collecting = self._collecting(program, self.threads if parts is None else 1, whole=parts is not None)
        x = super(CPU, collecting).encode(weights, batch, work, routes=routes)
        if parts is None:
            program.run()
        else:
            program.run_apart(x, parts, batch.cu_seqlens, self.threads)
        return x

    def matrix(self, weight: Tensor) -> Any:
        weight = weight.to(self._computes_in(weight))
        return self.kernels.pack(weight.data, weight.dtype, weight.scale, weight.dtype, self._pages.take, self.threads)

    def outputs(self, weight: Any) -> int:
        return int(weight.outputs)

    def linear(
        self,
        x: np.ndarray,
        weight: Any,
        *,
        bias: np.ndarray | None = None,
        activation: str | None = None,
        gate: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        out: np.ndarray,
    ) -> None:
        self.kernels.gemm(x, weight, bias, activation, gate, residual, out, self.threads)

    def table(self, rows: Tensor) -> Any:
        return rows.to("float32") if rows.dtype == "float16" else rows

    def embed(self, batch: PackedBatch, embedding: Embedding, *, out: np.ndarray) -> None:
        word, norm = embedding.word, embedding.norm
        fused = norm if norm is not None and norm.bias is not None else None  # the kernel has no RMSNorm
        table, places = embedding.placed(batch)
        self.kernels.embed(
            batch.ids,
            places,
            batch.token_types,
            word.data,
            word.dtype,
            word.scale,
            table,
            embedding.token_type,
            None if fused is None else fused.weight,
            None if fused is None else fused.bias,
            embedding.eps,
            out,
            self.threads,
        )
        if norm is not fused and norm is not None:
            self.norm(out, norm, embedding.eps, out=out)

    def norm(self, x: np.ndarray, norm: Norm, eps: float, *, out: np.ndarray) -> None:
        self.kernels.norm(x, norm.weight, norm.bias, eps, out, self.threads)

    @property
    def _attends_in(self) -> str:
        """The dtype in which attention multiplies."""
        return "float32" if self.dtype in (None, "float32") else "bfloat16"

    def qkv_dtype(self, head_size: int) -> Any:
        """bfloat16 (as uint16) where attention would round to bfloat16 anyway: this gives the same answers in half the memory."""
        return np.uint16 if self._attends_in == "bfloat16" and self.kernels.half and head_size % 8 == 0 else np.float32

    def norm_heads(self, qkv: np.ndarray, heads: int, query: np.ndarray, key: np.ndarray, eps: float) -> None:
        self.kernels.norm_heads(qkv, heads, query, key, eps, self.threads)

    def rotate(self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, table: np.ndarray) -> None:
        self.kernels.rotate(qkv, cu_seqlens, heads, table, self.threads)

    def relative(self, keys: Tensor, queries: Tensor, rows: np.ndarray, heads: int) -> Any:
        if keys.data.shape[1] // heads % 8:
            return super().relative(keys, queries, rows, heads)
        width = -(-len(keys.data) // 32) * 32  # a multiple of every ISA's panel, so that each head begins with a panel
        packed = []
        for table in (keys, queries):
            by_head = np.zeros((heads, width, table.data.shape[1] // heads), np.float32)
            by_head[:, : len(table.data)] = table.float32().reshape(len(table.data), heads, -1).transpose(1, 0, 2)
            flat = Tensor(by_head.reshape(heads * width, -1), "float32").to(self._attends_in if self.kernels.half else "float32")
            packed.append(self.kernels.pack(flat.data, flat.dtype, None, flat.dtype, self._pages.take, self.threads))
        return _cpu.Relative(packed[0], packed[1], rows, width)

    def attention(
        self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, *, scores: Scores = PLAIN, keys: Any = None, out: np.ndarray
    ) -> None:
        if out.shape[1] // heads % 8:
            super().attention(qkv, cu_seqlens, heads, scores=scores, keys=keys, out=out)
        else:
            added = scores.window or 0, scores.causal, scores.distances, scores.relative
            self.kernels.attention(qkv, cu_seqlens, heads, *added, keys, out, self._attends_in, self.threads)

    def own(self, rows: Tensor) -> Tensor:
        """A copy in huge pages, if it is large and the system gives them."""
        rows = rows.to(self._computes_in(rows))
        if rows.data.nbytes < SMALL:
            return rows
        data = self._pages.take(rows.data.nbytes).view(rows.data.dtype).reshape(rows.data.shape)
        data[...] = rows.data
        return Tensor(data, rows.dtype, rows.scale)

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form = NODES) -> Any:
        nodes = nodes.to(self._computes_in(nodes))
        if form.blocks:
            return self._leaves(nodes, b_in, children, depth, form)
        packed = self._bytes(nodes, depth) if nodes.dtype == "int8" and children is None else (None, None)
        made = _cpu.Trees(nodes.data, nodes.dtype, nodes.scale, b_in, children, depth, form.activation, False, *packed)
        if depth or nodes.dtype != "float32":  # products of bfloat16 or int8 would round x, and trees do not
            return made
        roots = [Tensor(np.ascontiguousarray(rows), nodes.dtype) for rows in (nodes.data[:, 0, 0], nodes.data[:, 0, 1].T)]
        bias = None if b_in is None else np.ascontiguousarray(b_in[:, 0])
        return Roots(made, self.matrix(roots[0]), self.matrix(roots[1]), bias, form.activation, depth)

    def _bytes(self, nodes: Tensor, depth: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(in-rows, out-rows) of wide int8 trees packed as src/cpu/fff_bytes.inc takes them; (None, None) for other shapes."""
        trees, count, _, hidden = nodes.data.shape
        if not on_bytes(trees, depth) or count > WIDE_NODES:
            return None, None
        lanes, bias, width = self.kernels.lanes, self.kernels.bias, -(-hidden // 64) * 64
        rows = np.zeros((trees, count, width + 64), np.int8)
        rows[:, :, :hidden] = nodes.data[:, :, 0]
        sums = rows[:, :, :width].reshape(trees, count, -1, lanes, 4).sum((2, 4), dtype=np.int32)
        rows[:, :, width : width + 4 * lanes] = (-bias * sums).view(np.int8).reshape(trees, count, -1)
        columns = self.kernels.strip_vectors * lanes
        strips, top = -(-hidden // columns), (depth + 1) % 4
        bundle = {1: 4, 2: 2}.get(top, 1)
        outs = np.zeros((-(-trees // bundle) * bundle, count, strips * columns), np.int8)
        outs[:trees, :, :hidden] = nodes.data[:, :, 1]
        outs = outs.reshape(-1, bundle, count, strips * columns)
        quads = []
        if top:
            last = range((1 << top - 1) - 1, (1 << top) - 1)  # the nodes at the last of these levels
            ends = itertools.product(last, repeat=bundle)
            quads += [[row for j, end in enumerate(way) for row in upwards(outs[:, j], end, top)] for way in ends]
        for j in range(bundle):
            for level in range(top + 3, depth + 1, 4):
                quads += [upwards(outs[:, j], end, 4) for end in range((1 << level) - 1, (2 << level) - 1)]
        packed = np.zeros((strips, len(outs), len(quads), columns, 4), np.int8)
        for i, quad in enumerate(quads):
            for place, row in enumerate(quad):
                packed[:, :, i, :, place] = row.reshape(len(outs), strips, columns).transpose(1, 0, 2)
        packed ^= np.int8(-bias)
        return rows, packed

    def _leaves(self, rows: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form) -> Leaves:
        """The Leaves of trees with blocks. rows (P, N, 2, D) are of the dtype of computing; the rest is as trees() takes it."""
        trees, neurons, _, hidden = rows.data.shape
        count = neurons - form.blocks * form.leaf
        levels = depth + 1 if children is not None else min(depth + 1, count.bit_length())
        nodes = None
        if levels:
            scale, bias = (None if a is None else np.ascontiguousarray(a[:, :count]) for a in (rows.scale, b_in))
            ends = None if children is None else np.where(children < count, children, np.int32(-1))
            inner = np.ascontiguousarray(rows.data[:, :count])
            nodes = _cpu.Trees(inner, rows.dtype, scale, bias, ends, levels - 1, form.activation, form.silent, None, None)
        scale_in, scale_out, bias = None, None, None
        if rows.scale is not None:
            scale_in, scale_out = (np.ascontiguousarray(rows.scale[:, count:, side]) for side in (0, 1))
        if b_in is not None:
            bias = np.ascontiguousarray(b_in[:, count:])
        ins = np.ascontiguousarray(rows.data[:, count:, 0]).reshape(-1, hidden)
        padded = -(-hidden // self.kernels.block_rows) * self.kernels.block_rows
        outs = np.zeros((trees * form.blocks, padded, form.leaf), rows.data.dtype)
        outs[:, :hidden] = rows.data[:, count:, 1].reshape(-1, form.leaf, hidden).transpose(0, 2, 1)
        ones = None if rows.scale is None else np.ones(outs.shape[0] * outs.shape[1], np.float32)  # scale_out is applied to neurons
        scale = None if scale_in is None else scale_in.reshape(-1)
        first = self.kernels.pack(ins, rows.dtype, scale, rows.dtype, self._pages.take, self.threads)
        second = self.kernels.pack(outs.reshape(-1, form.leaf), rows.dtype, ones, rows.dtype, self._pages.take, self.threads)
        made = (form.blocks, count, bias, scale_out, form.b_leaf, children, levels, depth, form.activation)
        return Leaves(nodes, levels, _cpu.Blocks(first, second, *made), trees, depth)

    def fff(
        self,
        x: np.ndarray,
        trees: Any,
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        out: np.ndarray,
        nodes: np.ndarray | None = None,
        z: np.ndarray | None = None,
    ) -> None:
        if isinstance(trees, Roots):
            if nodes is None and z is None:
                middle = np.empty((len(x), trees.first.outputs), np.float32)
                self.linear(x, trees.first, bias=trees.b_in, activation=trees.activation, out=middle)
                self.linear(middle, trees.second, bias=bias, residual=residual, out=out)
                return
            trees = trees.trees
        if isinstance(trees, Leaves):
            path = path_z = None
            if trees.nodes is not None:
                path = np.empty((len(x), trees.trees, trees.levels), np.int32)
                path_z = np.empty(path.shape, np.float32)
                self.kernels.fff(x, trees.nodes, bias, residual, out, path, path_z, self.threads)
                bias = residual = None
            self.kernels.blocks(x, trees.blocks, path, path_z, bias, residual, out, nodes, z, self.threads)
            return
        self.kernels.fff(x, trees, bias, residual, out, nodes, z, self.threads)

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
        self.kernels.search(rows, queries, scale, query_scale, bias, out, self.threads)

    def nearest(
        self, parts: list[Stored], queries: np.ndarray, *, keep: int, margin: np.ndarray, query_scale: np.ndarray | None = None
    ) -> list[np.ndarray | None]:
        return self.kernels.nearest(parts, queries, query_scale, keep, margin, self.threads)


def parts_of(cu_seqlens: np.ndarray, threads: int, size: int) -> np.ndarray | None:
    """The first text of each part of a batch, then the number of texts; None where its texts give no parts of nearly equal size.

    size  tokens that a part should have
    """
    texts, tokens = len(cu_seqlens) - 1, int(cu_seqlens[-1])
    for each in range(min(round(tokens / (threads * size)), texts // threads), 0, -1):  # parts of a thread
        count = each * threads
        parts = np.searchsorted(cu_seqlens, np.arange(count + 1) * tokens // count).astype(np.int32)
        sizes = np.diff(cu_seqlens[parts])
        if sizes.all() and sizes.max() * count <= UNEVEN * tokens:
            return parts
    return None


def on_bytes(trees: int, depth: int) -> bool:
    """Whether full int8 trees of this shape are wide, and compute on bytes."""
    return depth > 0 and tree_nodes(depth) <= WIDE_NODES and WIDE_LEVELS <= trees * (depth + 1) <= MOST_NEURONS


def upwards(rows: np.ndarray, node: int, levels: int) -> list[np.ndarray]:
    """rows (..., N, D) of the nodes on the way to `node`, those of so many levels, the uppermost first."""
    way = [node]
    while len(way) < levels:
        way.append((way[-1] - 1) // 2)
    return [rows[..., at, :] for at in reversed(way)]


def isas() -> list[str]:
    """The ISAs that are compiled in and that this CPU has, best first."""
    return [name for name, usable in _cpu.isas() if usable]


@functools.cache
def dot_time(isa: str) -> float | None:
    """How many times as long as an FMA a dot instruction of bfloat16 takes here, which replaces two; None if the ISA has none."""
    return _cpu.Kernels(isa).probe_dot()


def default_isa() -> str:
    """The ISA that the environment variable FASTINFER_ISA names, else the fastest one here. Raises BackendError if this CPU lacks it."""
    return choose_isa()[0]


def choose_isa() -> tuple[str, str]:
    """(default_isa(), why it is that one).

    The fastest is the first of isas(), but not avx512_bf16 or neon_bf16 where its dot instruction takes as long as the FMAs that it
    replaces, as on Intel. This is measured in 0.2 ms, once a process, and only where the answer depends on it.
    """
    wanted = os.environ.get("FASTINFER_ISA")
    if wanted and wanted not in isas():
        raise BackendError(f"FASTINFER_ISA is {wanted!r}, but this CPU has only {', '.join(isas())}")
    if wanted:
        return wanted, "FASTINFER_ISA names it"
    first = isas()[0]
    if first not in ("avx512_bf16", "neon_bf16"):
        return first, "the first that this CPU has"
    time = dot_time(first) or 0.0
    measured = f"a dot instruction of {first} takes {time:.1f} times an FMA (limit {SLOW_DOT})"
    return (first, f"the first that this CPU has; {measured}") if time < SLOW_DOT else (isas()[1], measured)


def most_threads() -> int:
    """The most threads that a call may use, whatever the caller asks for: threads of a team that share a CPU wait for each other."""
    return _within_quota(len(_cpus()))


def default_threads() -> int:
    """Threads of a call that says nothing: a thread for each core, since hyper-threads share one, and no more than OMP_NUM_THREADS."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # with a comma, it has a number for each level of nesting
    cores = _within_quota(len({_core(cpu) for cpu in _cpus()}))
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) else cores


def _within_quota(cpus: int) -> int:
    quota = cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _cpus() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _core(cpu: int, root: str = "/sys/devices/system/cpu") -> str:
    """What the hyper-threads of a core have in common: the list of them, or the CPU itself where the system does not say."""
    try:
        return first_line(os.path.join(root, f"cpu{cpu}", "topology", "thread_siblings_list"))
    except OSError:
        return str(cpu)
