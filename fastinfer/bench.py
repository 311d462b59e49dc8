"""Benchmarks of the kernels: correctness first, then medians with spread beside every rival and the machine's limits.

Each row of a table is measured in one interleaved run: the layer and its rivals take turns on the same
tokens, fresh random ones at each turn, with the same number of threads. tools/bench.py adds rivals that are
not dependencies (PyTorch, onnxruntime).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backends
from .cases import FFFCase
from .checkpoint import Tensor
from .config import tree_nodes
from .errors import BackendError, InputError
from .layer import FFF

DENSE_WIDTH = 3072  # the dense feedforward that the paper compares with
INPUTS = 8  # different random inputs that take turns
TURN_SECONDS = 0.05
LONG_SECONDS = 0.5  # calls that take longer get no untimed ones before them
PAUSE_SECONDS = 0.05  # OpenBLAS threads spin for about 20 ms after a call
EVICT_BYTES = 128 << 20  # read before each cold run: beyond any cache
MASKED_ENV = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # set on some machines; they halve numpy's speed

Run = Callable[[np.ndarray], Any]
# name -> function (w1 (W, D), b1 (W,), w2 (D, W), threads) -> run(x (T, D)); None where it cannot run. tools/bench.py adds to it.
Rival = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Run]


class Spread(NamedTuple):
    """Microseconds per call: median, 10th and 90th percentile."""

    median: float
    low: float
    high: float


def reexecute(threads: int) -> None:
    """Start this process again with BLAS at `threads` threads and without settings that slow it, unless that is so already."""
    wanted = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OPENBLAS", "MKL", "OMP")}
    if all(os.environ.get(k) == v for k, v in wanted.items()) and not any(k in os.environ for k in MASKED_ENV):
        return
    environment = {k: v for k, v in os.environ.items() if k not in MASKED_ENV} | wanted
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def interleaved(
    runs: dict[str, Run],
    inputs: Sequence[Any],
    *,
    seconds: float,
    cold: bool = False,
    least: int = 7,
    pause: float = PAUSE_SECONDS,
) -> dict[str, Spread]:
    """Time the runs in turns, for about `seconds` each in all and at least `least` calls, the inputs rotating.

    A turn is a pause, two calls untimed (none before calls that were long), then calls for TURN_SECONDS:
    thread pools of BLAS libraries spin for a while after their last call, and would slow whoever comes next.
    """
    evict = np.ones(EVICT_BYTES // 4, np.float32) if cold else None
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent, last = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    waiting = list(runs)
    call = 0
    while waiting:
        for name in waiting:
            run, turn = runs[name], 0.0
            time.sleep(pause)
            for x in (inputs[0], inputs[-1]):
                if last[name] < LONG_SECONDS:
                    start = time.perf_counter()
                    run(x)
                    last[name] = time.perf_counter() - start
            while turn < TURN_SECONDS:
                x = inputs[call % len(inputs)]
                call += 1
                if evict is not None:
                    evict.max()
                start = time.perf_counter()
                run(x)
                last[name] = took = time.perf_counter() - start
                times[name].append(took * 1e6)
                turn += took
            spent[name] += turn
        waiting = [n for n in waiting if len(times[n]) < least or spent[n] < seconds]
    return {name: Spread(*np.percentile(t, [50, 10, 90]).tolist()) for name, t in times.items()}


def machine(ops: Any) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    import scipy

    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "isa": ops.isa,
        "threads": ops.threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
    }


# --- rivals ----------------------------------------------------------------------------------------


def numpy_matmuls(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
    """The dense layer's two matrix products through numpy's BLAS, nothing between them."""
    w1, w2 = np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)
    buffers: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(x: np.ndarray) -> np.ndarray:
        middle, out = buffers.setdefault(len(x), (np.empty((len(x), w1.shape[1]), np.float32), np.empty((len(x), w2.shape[1]), np.float32)))
        np.matmul(x, w1, out=middle)
        return np.matmul(middle, w2, out=out)

    return run


def numpy_with_gelu(kernels: Any) -> Rival:
    """The same with bias and this project's vectorised exact GELU between them: a whole dense layer."""

    def make(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
        w1, w2 = np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)

        def run(x: np.ndarray) -> np.ndarray:
            middle = x @ w1
            middle += b1
            flat = middle.reshape(-1)
            kernels.array("gelu", flat, flat)
            return middle @ w2

        return run

    return make


def own_dense(isa: str, dtype: str) -> Rival:
    """This project's 3072x0: two packed matrix products, bias and GELU in the first one's epilogue."""

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


def rivals(ops: Any) -> dict[str, Rival]:
    """The dense layers that need nothing beyond the dependencies."""
    return {
        "numpy": numpy_matmuls,
        "numpy+gelu": numpy_with_gelu(ops.kernels),
        "own f32": own_dense(ops.isa, "float32"),
        "own bf16": own_dense(ops.isa, "bfloat16"),
        "own int8": own_dense(ops.isa, "int8"),
    }


def dense_weights(hidden: int, width: int = DENSE_WIDTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w1 (W, D), b1 (W,), w2 (D, W) of a random dense layer."""
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((width, hidden), np.float32) / np.float32(hidden**0.5)
    w2 = rng.standard_normal((hidden, width), np.float32) / np.float32(width**0.5)
    return w1, rng.standard_normal(width, np.float32) * np.float32(0.1), w2


def gelu64(z: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * z * (1 + erf(z / 2**0.5))


def walk64(
    x: np.ndarray, nodes: np.ndarray, b_in: np.ndarray | None, depth: int, along: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trees in float64: (y (T, D), the visited nodes (T, P, depth + 1), the smallest deciding |z| (T, P)).

    x (T, D); nodes (P, N, 2, D); b_in (P, N) or None; along: the nodes to visit; None: where the signs of z lead.
    """
    x = x.astype(np.float64)
    y, margin = np.zeros(x.shape), np.full((len(x), len(nodes)), np.inf)
    visited = np.zeros((len(x), len(nodes), depth + 1), np.int32) if along is None else along
    for p in range(len(nodes)):
        for level in range(depth + 1):
            at = visited[:, p, level]
            z = np.einsum("td,td->t", x, nodes[p, at, 0].astype(np.float64)) + (0 if b_in is None else b_in[p, at])
            y += gelu64(z)[:, None] * nodes[p, at, 1]
            if level < depth:
                margin[:, p] = np.minimum(margin[:, p], np.abs(z))
                if along is None:
                    visited[:, p, level + 1] = 2 * at + 1 + (z > 0)
    return y, visited, margin


def dense64(x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, gelu: bool) -> np.ndarray:
    """The dense layer in float64."""
    middle = x.astype(np.float64) @ w1.T.astype(np.float64)
    return (gelu64(middle + b1) if gelu else middle) @ w2.T.astype(np.float64)


# --- limits of the machine -------------------------------------------------------------------------


class Roofline:
    """The machine's rates with this ISA and team, measured once: FMA, reads by working set."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.flops = max(ops.kernels.probe_fma(1 << 22, ops.threads) for _ in range(5))
        self._reads: dict[int, float] = {}

    def read(self, nbytes: float) -> float:
        """Bytes per second of reading a working set of `nbytes`, shared by the team, in order, again and again."""
        size = 1 << max(15, int(np.ceil(np.log2(max(nbytes, 1)))))
        if size not in self._reads:
            data = np.ones(size // 4, np.float32)
            self._reads[size] = max(self._ops.kernels.probe_read(data, max(1, (1 << 29) // size), self._ops.threads) for _ in range(3))
        return self._reads[size]

    def fff_seconds(self, case: FFFCase, itemsize: int, distinct: int) -> tuple[float, str]:
        """(the least time, what bounds it): the largest of the multiply-adds at the FMA rate; of one tree, the loads of x
        and both rows of every visited node at L1's rate (with more trees, register tiles share loads); distinct rows, x
        and y at the rate of the level that a set so large lies in.
        """
        visited = case.tokens * case.trees * (case.depth + 1)
        once = (2 * itemsize * distinct + 8 * case.tokens) * case.hidden
        bounds = {"FMA": 4.0 * visited * case.hidden / self.flops, f"{once / 1e6:.1f} MB once": once / self.read(once)}
        if case.trees == 1:
            fastest = max(self.read(size) for size in (16 << 10, 32 << 10, 64 << 10))  # short sets pay for the loop around them
            bounds["L1 loads"] = visited * case.hidden * (4 + 2 * itemsize) / fastest
        name = max(bounds, key=lambda k: bounds[k])
        return bounds[name], name


def _into(layer: FFF, out: np.ndarray, threads: int, x: np.ndarray) -> np.ndarray:
    return layer(x, out=out, threads=threads)


def _matmul(weight: np.ndarray, out: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.matmul(x, weight, out=out)


# --- conditional matrix multiplication -------------------------------------------------------------


def check_fff(layer: FFF, x: np.ndarray, arrays: tuple, dtype: str) -> tuple[float, float]:
    """(largest error, share of the tokens whose route differs) of a layer against float64.

    The output is compared with float64 sums of the weights as stored, along the layer's own route; the
    routes are compared with those of float64 logits of the float32 weights.
    """
    w_in, b_in, w_out = arrays
    weights = np.stack([w_in, w_out], 2)
    nodes, _ = layer.routes(x)
    want, _, _ = walk64(x, Tensor(weights, "float32").to(dtype).float32(), b_in, layer.depth, along=nodes)
    _, true, _ = walk64(x, weights, b_in, layer.depth)
    return float(np.abs(layer(x) - want).max()), float((nodes != true).any((1, 2)).mean())


def bench_cmm(
    ops: Any,
    *,
    shapes: Sequence[tuple[int, int]] = ((1, 11), (16, 7), (64, 5), (128, 4), (512, 2)),
    tokens: Sequence[int] = (1, 16, 128, 1024, 4096, 16384),
    dtypes: Sequence[str] = ("float32", "bfloat16", "int8"),
    hidden: int = 768,
    paths: str = "balanced",
    cold: bool = False,
    seconds: float = 1.0,
    dense: dict[str, Rival] | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """A row per (tokens, shape, dtype). Raises BackendError where a result is wrong: nothing wrong is timed."""
    if any(d not in ("float32", "bfloat16", "int8") for d in dtypes):
        raise InputError(f"dtypes is {dtypes!r}, expected some of float32, bfloat16, int8")
    roofline = Roofline(ops)
    weights = dense_weights(hidden)
    dense_runs = {name: make(*weights, ops.threads) for name, make in (rivals(ops) if dense is None else dense).items()}
    rows = []
    for count in tokens:
        layers: dict[tuple, tuple[FFFCase, FFF, tuple]] = {}
        for shape in shapes:
            case = FFFCase(*shape, hidden=hidden, tokens=count, paths=paths)  # type: ignore[arg-type]
            _, *arrays = case.build(0)
            for dtype in dtypes:
                layers[shape, dtype] = (
                    case,
                    FFF(arrays[0], arrays[1], arrays[2], depth=case.depth, dtype=dtype, device=ops.device),
                    tuple(arrays),
                )
        inputs = [FFFCase(1, 0, hidden, count).build(seed)[0] for seed in range(1, 1 + INPUTS)]
        errors = {}
        for (shape, dtype), (_, layer, arrays) in layers.items():
            error, rerouted = check_fff(layer, inputs[0][:256], arrays, dtype)
            if not error < 1e-3:
                raise BackendError(f"{layer} is wrong: its output differs from float64 by {error:g}; nothing is timed")
            errors[shape, dtype] = error, rerouted
        runs: dict[str, Run] = dict(dense_runs)
        for (shape, dtype), (_, layer, _) in layers.items():
            runs[f"{shape} {dtype}"] = functools.partial(_into, layer, np.empty_like(inputs[0]), ops.threads)
        spreads = interleaved(runs, inputs, seconds=seconds, cold=cold)
        for (shape, dtype), (case, layer, _) in layers.items():
            spread = spreads[f"{shape} {dtype}"]
            nodes, _ = layer.routes(inputs[0])
            distinct = sum(len(np.unique(nodes[:, p])) for p in range(case.trees))
            itemsize = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
            bound, bound_name = roofline.fff_seconds(case, itemsize, distinct)
            used = case.trees * (case.depth + 1)
            us = {name: spreads[name].median / count for name in dense_runs}
            best = min(us, key=lambda name: us[name])
            row = {
                "op": "fff",
                "shape": f"{case.trees}x{case.depth}",
                "tokens": count,
                "hidden": hidden,
                "dtype": dtype,
                "threads": ops.threads,
                "isa": ops.isa,
                "paths": paths,
                "cold": cold,
                "us_per_token": spread.median / count,
                "p10": spread.low / count,
                "p90": spread.high / count,
                "gb_per_s": (2 * itemsize * distinct + 8 * count) * hidden / spread.median / 1e3,
                "gflop_per_s": 4 * count * used * hidden / spread.median / 1e3,
                "nodes_touched": distinct / (case.trees * tree_nodes(case.depth)),
                "dense_us": us,
                "best_dense": best,
                "speedup": {name: value / (spread.median / count) for name, value in us.items()},
                "limit": DENSE_WIDTH / used,
                "share_of_limit": us[best] / (spread.median / count) / (DENSE_WIDTH / used),
                "roofline_us": bound * 1e6 / count,
                "bound_by": bound_name,
                "share_of_roofline": bound * 1e6 / spread.median,
                "max_error": errors[shape, dtype][0],
                "rerouted": errors[shape, dtype][1],
            }
            rows.append(row)
            report(row)
    return rows


CMM_HEADER = (
    f"{'shape':>7} {'tokens':>6} {'dtype':>8} {'us/token':>9} {'p10..p90':>15} {'GB/s':>6} {'GFLOP/s':>7} {'nodes':>6} "
    f"{'x numpy':>8} {'best dense, us':>20} {'x best':>7} {'limit':>6} {'roofline':>8} {'bound by':>12} {'max_err':>8} {'rerouted':>8}"
)


def cmm_line(r: dict) -> str:
    """A row of bench_cmm as a line under CMM_HEADER."""
    spread, best = f"{r['p10']:.3f}..{r['p90']:.3f}", f"{r['best_dense']} {r['dense_us'][r['best_dense']]:.2f}"
    numpy = f"{r['speedup']['numpy']:.1f}x" if "numpy" in r["speedup"] else "-"
    return (
        f"{r['shape']:>7} {r['tokens']:>6} {r['dtype']:>8} {r['us_per_token']:>9.3f} {spread:>15} {r['gb_per_s']:>6.0f} "
        f"{r['gflop_per_s']:>7.0f} "
        f"{r['nodes_touched']:>6.1%} {numpy:>8} {best:>20} {r['speedup'][r['best_dense']]:>6.1f}x {r['limit']:>5.0f}x "
        f"{r['share_of_roofline']:>8.0%} {r['bound_by']:>12} {r['max_error']:>8.0e} {r['rerouted']:>8.1%}"
    )


# --- matrix products -------------------------------------------------------------------------------


def bench_gemm(
    ops: Any,
    *,
    sizes: Sequence[tuple[int, int]] = ((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    tokens: Sequence[int] = (1, 16, 128, 1024, 4096),
    dtypes: Sequence[str] = ("float32", "bfloat16", "int8"),
    seconds: float = 1.0,
    others: dict[str, Callable[[np.ndarray, int], Run]] | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """A row per (tokens, outputs x inputs, dtype): the packed product, numpy's, and `others` {name: (weight, threads) -> run}."""
    roofline = Roofline(ops)
    rng = np.random.default_rng(2)
    rows = []
    for outputs, inputs in sizes:
        weight = rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)
        transposed = np.ascontiguousarray(weight.T)
        for count in tokens:
            xs = [np.random.default_rng(seed).standard_normal((count, inputs), np.float32) for seed in range(INPUTS)]
            out = np.empty((count, outputs), np.float32)
            runs: dict[str, Run] = {"numpy": functools.partial(_matmul, transposed, np.empty_like(out))}
            runs |= {name: make(weight, ops.threads) for name, make in (others or {}).items()}
            errors = {}
            for dtype in dtypes:
                of_dtype = backends.get(ops.device, dtype=dtype, threads=ops.threads)
                matrix = of_dtype.matrix(Tensor(weight, "float32"))
                of_dtype.linear(xs[0], matrix, out=out)
                want = xs[0][:256].astype(np.float64) @ transposed
                errors[dtype] = float(np.abs(out[:256] - want).max())
                limit = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 1e-1}[dtype]
                if not errors[dtype] < limit:
                    raise BackendError(
                        f"the {dtype} product {count}x{outputs}x{inputs} differs from float64 by {errors[dtype]:g}; nothing is timed"
                    )
                runs[dtype] = lambda x, ops=of_dtype, matrix=matrix, out=out: ops.linear(x, matrix, out=out)
            spreads = interleaved(runs, xs, seconds=seconds)
            flops = 2.0 * count * outputs * inputs
            for dtype in dtypes:
                row = {
                    "op": "gemm",
                    "tokens": count,
                    "outputs": outputs,
                    "inputs": inputs,
                    "dtype": dtype,
                    "threads": ops.threads,
                    "isa": ops.isa,
                    "us": spreads[dtype].median,
                    "p10": spreads[dtype].low,
                    "p90": spreads[dtype].high,
                    "gop_per_s": flops / spreads[dtype].median / 1e3,
                    "rivals_gop_per_s": {name: flops / spreads[name].median / 1e3 for name in runs if name not in dtypes},
                    "fma_peak": roofline.flops / 1e9,
                    "max_error": errors[dtype],
                }
                rows.append(row)
                report(row)
    return rows


GEMM_HEADER = f"{'T x N x K':>16} {'dtype':>8} {'us':>10} {'p10..p90':>19} {'GOP/s':>7} {'f32 FMA peak':>12} {'max_err':>8}  rivals, GOP/s"


def gemm_line(r: dict) -> str:
    """A row of bench_gemm as a line under GEMM_HEADER."""
    size, spread = f"{r['tokens']}x{r['outputs']}x{r['inputs']}", f"{r['p10']:.1f}..{r['p90']:.1f}"
    others = ", ".join(f"{name} {value:.0f}" for name, value in r["rivals_gop_per_s"].items())
    return (
        f"{size:>16} {r['dtype']:>8} {r['us']:>10.1f} {spread:>19} {r['gop_per_s']:>7.0f} {r['fma_peak']:>12.0f} "
        f"{r['max_error']:>8.0e}  {others}"
    )


# --- the paper's ladder ----------------------------------------------------------------------------


def bench_ladder(
    ops: Any, *, tokens: int = 128, hidden: int = 768, seconds: float = 1.0, report: Callable[[dict], None] = lambda row: None
) -> list[dict]:
    """The paper's comparison, rebuilt with a correct FFF: dense 3072 and FFF 1x11 on each BLAS level, and this project's kernel.

    Level 1: dot and axpy per neuron. Level 2: a gemv per token for the dense layer; for the FFF per token and level
    the two vectors of its node, as one-row gemvs. Level 3: two gemms (dense only). All single precision, through scipy's BLAS, from
    compiled loops, on one thread per token loop (BLAS itself may use ops.threads at level 3).
    """
    w1, b1, w2 = dense_weights(hidden)
    case = FFFCase(1, 11, hidden=hidden, tokens=tokens)
    _, w_in, b_in, w_out = case.build(0)
    layer = FFF(w_in, b_in, w_out, depth=11, device=ops.device)
    inputs = [case.build(seed)[0] for seed in range(1, 1 + INPUTS)]
    w2_rows = np.ascontiguousarray(w2.T)
    out = np.empty_like(inputs[0])
    ladder = ops.kernels.ladder
    runs: dict[str, Run] = {
        "dense level 1": lambda x: ladder("dense1", x, w1, b1, w2_rows, out),
        "dense level 2": lambda x: ladder("dense2", x, w1, b1, w2_rows, out),
        "dense level 3": numpy_with_gelu(ops.kernels)(w1, b1, w2, ops.threads),
        "fff level 1": lambda x: ladder("fff1", x, w_in[0], b_in[0], w_out[0], out),
        "fff level 2": lambda x: ladder("fff2", x, w_in[0], b_in[0], w_out[0], out),
        "fff kernel": lambda x: layer(x, out=out, threads=ops.threads),
    }
    wants = {"dense": dense64(inputs[0], w1, b1, w2, gelu=True), "fff": layer(inputs[0])}
    for name, run in runs.items():
        got = run(inputs[0])
        error = float(np.abs((out if got is None else got) - wants[name.split()[0]]).max())
        if not error < 1e-3:
            raise BackendError(f"{name} is wrong: it differs by {error:g}; nothing is timed")
    spreads = interleaved(runs, inputs, seconds=seconds)
    us = {name: s.median / tokens for name, s in spreads.items()}
    fastest = min(us[f"dense level {i}"] for i in (1, 2, 3))
    rows = []
    for name, spread in spreads.items():
        same = us["dense " + name.removeprefix("fff ")] / us[name] if name.startswith("fff level") else None
        rows.append(
            {
                "op": "ladder",
                "level": name,
                "tokens": tokens,
                "us_per_token": us[name],
                "p10": spread.low / tokens,
                "p90": spread.high / tokens,
                "against_same_level": same,
                "against_best_dense": fastest / us[name],
            }
        )
        report(rows[-1])
    return rows


LADDER_HEADER = f"{'':>14} {'tokens':>6} {'us/token':>9} {'p10..p90':>17} {'x same level':>12} {'x best dense':>12}"


def ladder_line(r: dict) -> str:
    """A row of bench_ladder as a line under LADDER_HEADER."""
    same = f"{r['against_same_level']:.1f}x" if r["against_same_level"] else "-"
    spread = f"{r['p10']:.2f}..{r['p90']:.2f}"
    return f"{r['level']:>14} {r['tokens']:>6} {r['us_per_token']:>9.2f} {spread:>17} {same:>12} {r['against_best_dense']:>11.2f}x"


# --- output ----------------------------------------------------------------------------------------


def plot_cmm(rows: list[dict], path: str, speedup: Callable[[dict], float], against: str) -> None:
    """Speed-up over `against` by tokens, a line per shape and dtype, each shape's limit dotted."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    styles = {"float32": "-", "float16": "-.", "bfloat16": "--", "int8": ":"}
    for i, shape in enumerate(shapes):
        mine = [r for r in rows if r["shape"] == shape]
        for dtype in dict.fromkeys(r["dtype"] for r in mine):
            line = [(r["tokens"], speedup(r)) for r in mine if r["dtype"] == dtype]
            axes.plot(*zip(*line, strict=True), styles[dtype], color=f"C{i}", marker="o", markersize=4, label=f"{shape} {dtype}")
        axes.axhline(mine[0]["limit"], color=f"C{i}", linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            f"limit of {shape}", (max(r["tokens"] for r in mine), mine[0]["limit"]), fontsize=7, color=f"C{i}", ha="right", va="bottom"
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens in the batch", ylabel=f"times faster than {against}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# --- the command -----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastinfer bench` and tools/bench.py."""
    from . import bench_model

    def listed(kind: Callable[[str], Any]) -> Callable[[str], list]:
        return lambda text: [kind(part) for part in text.split(",")]

    def shape(text: str) -> tuple[int, int]:
        trees, depth = map(int, text.split("x"))
        return trees, depth

    parser.add_argument(
        "what",
        choices=["cmm", "gemm", "ladder", "model"],
        help="fast feedforward layers; packed matrix products; the paper's BLAS levels; whole models",
    )
    parser.add_argument(
        "--shapes",
        type=listed(shape),
        metavar="PxD,...",
        help="cmm: trees x depth (default 1x11,16x7,64x5,128x4,512x2)",
    )
    parser.add_argument("--tokens", type=listed(int), metavar="T,...", help="tokens per call")
    parser.add_argument("--dtypes", type=listed(str), metavar="DTYPE,...", help="float32, float16 (GPU), bfloat16, int8 (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu, cpu:ISA, cuda or cuda:N (cmm, ladder, model)")
    parser.add_argument("--threads", type=int, help="threads of every engine (default: the CPUs this process may use)")
    parser.add_argument("--paths", default="balanced", choices=["balanced", "skewed"], help="cmm: how tokens spread over a tree")
    parser.add_argument("--cold", action="store_true", help="cmm: evict all caches before each call (on a GPU it is always measured, too)")
    parser.add_argument("--seconds", type=float, help="time per engine and row (default 1, on a GPU 0.05)")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--plot", metavar="FILE", help="cmm, model: draw the speeds (.svg or .png; needs matplotlib)")
    bench_model.add_arguments(parser, listed, shape)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `fastinfer bench` in an argument list, for run()."""
    parser = argparse.ArgumentParser(prog="fastinfer bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser.parse_args(argv)


def run(
    options: argparse.Namespace,
    *,
    dense: dict[str, Rival] | None = None,
    products: dict[str, Any] | None = None,
    models: Any = None,
    gpu: Any = None,
) -> None:
    """Run what parsed options say, and print it; gpu: a bench_cuda.Rivals."""
    ops = backends.get(options.device, threads=options.threads)
    if ops.name == "cuda":
        from . import bench_cuda

        bench_cuda.run(options, ops, gpu)
        return
    if ops.name != "cpu":
        raise InputError(f"device is {options.device!r}, expected cpu, cpu:ISA, cuda or cuda:N: the NumPy reference has no benchmark")
    options.seconds = 1.0 if options.seconds is None else options.seconds
    reexecute(ops.threads)
    about = machine(ops)
    if options.what == "model":
        from . import bench_model

        bench_model.run(options, ops, about, models)
        return
    header, line = {"cmm": (CMM_HEADER, cmm_line), "gemm": (GEMM_HEADER, gemm_line), "ladder": (LADDER_HEADER, ladder_line)}[options.what]
    if not options.json:
        print("  ".join(f"{k} {v}" for k, v in about.items()))
        print(header, flush=True)

    def report(row: dict) -> None:
        print(json.dumps({**row, "machine": about}) if options.json else line(row), flush=True)

    given = {k: v for k in ("tokens", "dtypes", "shapes") if (v := getattr(options, k)) is not None}
    if options.what == "ladder":
        for count in options.tokens or [128]:
            bench_ladder(ops, tokens=count, seconds=options.seconds, report=report)
    elif options.what == "gemm":
        given.pop("shapes", None)
        bench_gemm(ops, **given, seconds=options.seconds, others=products, report=report)
    else:
        all_dense = rivals(ops) | (dense or {})
        rows = bench_cmm(ops, **given, paths=options.paths, cold=options.cold, seconds=options.seconds, dense=all_dense, report=report)
        if options.plot:
            numpy = "numpy's two float32 products (3072 wide)"
            plot_cmm(rows, options.plot, lambda r: r["speedup"]["numpy"], numpy)
