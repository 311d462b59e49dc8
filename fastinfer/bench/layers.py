"""Benchmarks of the CPU's kernels: fast feedforward layers, packed matrix products, the paper's BLAS levels.

The layer and its rivals take turns in one interleaved run. They get the same random tokens, which change from call to call, and
the same number of threads. A result is compared with float64 before it is timed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..backends.cpu import on_bytes
from ..checkpoint import Tensor
from ..errors import BackendError, InputError, no_scipy
from ..layer import FFF
from .cases import DENSE_WIDTH, Arrays, FFFCase, Paths, dense_weights
from .machine import Roofline
from .oracle import dense64, walk64
from .report import Report, Row, ladder_rows, silent
from .rivals import Dense, Product, installed_dense, numpy_with_gelu, own_dense
from .timing import INPUTS, Run, Spread, interleaved

DTYPES = ("float32", "bfloat16", "int8")
ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}
PRODUCT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 1e-1}  # largest allowed error of a packed product of normal numbers


def _into(layer: FFF, out: np.ndarray, threads: int, x: np.ndarray) -> np.ndarray:
    """layer(x) into `out`, with x last for functools.partial."""
    return layer(x, out=out, threads=threads)


def _matmul(weight: np.ndarray, out: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x @ weight into `out`, with x last for functools.partial."""
    return np.matmul(x, weight, out=out)


# --- conditional matrix multiplication -------------------------------------------------------------


class Checked(NamedTuple):
    """A layer whose output was found right, with its largest error and the share of tokens whose route differs from float64's."""

    case: FFFCase
    dtype: str
    layer: FFF
    error: float
    rerouted: float

    @property
    def name(self) -> str:
        return f"{self.case.shape} {self.dtype}"

    @property
    def equal(self) -> str:
        """The name of the dense layer that has as many neurons as a token uses here, in the same dtype."""
        return f"{self.case.used} {self.dtype}"


def check_fff(layer: FFF, x: np.ndarray, arrays: Arrays, dtype: str) -> tuple[float, float]:
    """(largest error, share of the tokens whose route differs) of a layer against float64.

    The output is compared with float64 sums of the stored weights along the layer's own route. The
    routes are compared with those of float64 logits of the float32 weights.
    """
    w_in, b_in, w_out = arrays
    weights = np.stack([w_in, w_out], 2)
    nodes, _ = layer.routes(x)
    want, _, _ = walk64(x, Tensor(weights, "float32").to(dtype).float32(), b_in, layer.depth, along=nodes, leaf=layer.leaf)
    _, true, _ = walk64(x, weights, b_in, layer.depth, leaf=layer.leaf)
    return float(np.abs(layer(x) - want).max()), float((nodes != true).any((1, 2)).mean())


def checked_layers(device: str, cases: Sequence[FFFCase], dtypes: Sequence[str], x: np.ndarray) -> list[Checked]:
    """Layers of each case in each dtype, compared with float64 for the tokens x. Raises BackendError if one is wrong."""
    layers = []
    for case in cases:
        _, w_in, b_in, w_out = case.build(0)
        for dtype in dtypes:
            layer = FFF(w_in, b_in, w_out, depth=case.depth, leaf=case.leaf, dtype=dtype, device=device)
            error, rerouted = check_fff(layer, x, (w_in, b_in, w_out), dtype)
            rounds = case.leaf > 1 or (dtype == "int8" and on_bytes(case.trees, case.depth))  # x, as products do
            if not error < (PRODUCT_TOLERANCE[dtype] if rounds else 1e-3):
                raise BackendError(f"{layer} is wrong: its output differs from float64 by {error:g}; nothing is timed")
            layers.append(Checked(case, dtype, layer, error, rerouted))
    return layers


def bench_cmm(
    ops: Any,
    *,
    shapes: Sequence[tuple[int, ...]] = ((1, 11), (16, 7), (64, 5), (128, 4), (512, 2)),
    tokens: Sequence[int] = (1, 16, 128, 1024, 4096, 16384),
    dtypes: Sequence[str] = DTYPES,
    hidden: int = 768,
    paths: Paths = "balanced",
    cold: bool = False,
    seconds: float = 1.0,
    dense: Mapping[str, Dense] | None = None,
    report: Report = silent,
) -> list[Row]:
    """A row per (tokens, shape, dtype). dense: the dense layers to compare with (default: installed_dense).

    A shape is trees, depth and perhaps the neurons of a leaf; a leaf of several is also compared with a dense layer of equal neurons used.

    Raises BackendError if a result is wrong, before it is timed.
    """
    if any(d not in DTYPES for d in dtypes):
        raise InputError(f"dtypes is {dtypes!r}, expected some of {', '.join(DTYPES)}")
    roofline = Roofline(ops)
    weights = dense_weights(hidden)
    dense_runs = {name: make(*weights, ops.threads) for name, make in (installed_dense(ops) if dense is None else dense).items()}
    rows = []
    for count in tokens:
        cases = [FFFCase(shape[0], shape[1], hidden, count, paths, leaf=(*shape, 1)[2]) for shape in dict.fromkeys(map(tuple, shapes))]
        inputs = [FFFCase(1, 0, hidden, count).build(seed)[0] for seed in range(1, 1 + INPUTS)]
        layers = checked_layers(ops.device, cases, list(dict.fromkeys(dtypes)), inputs[0][:256])
        runs: dict[str, Run] = dict(dense_runs)
        runs |= {made.name: functools.partial(_into, made.layer, np.empty_like(inputs[0]), ops.threads) for made in layers}
        for made in layers:
            if made.case.leaf > 1 and made.case.used <= DENSE_WIDTH:
                first = slice(made.case.used)
                equal = weights[0][first], weights[1][first], np.ascontiguousarray(weights[2][:, first])
                runs[made.equal] = own_dense(ops.isa, made.dtype)(*equal, ops.threads)
        spreads = interleaved(runs, inputs, seconds=seconds, cold=cold)
        us = {name: spreads[name].median / count for name in dense_runs}
        for made in layers:
            nodes, _ = made.layer.routes(inputs[0])
            facts = {"threads": ops.threads, "isa": ops.isa, "paths": paths, "cold": cold}
            if made.equal in spreads:
                facts["equal_us"] = spreads[made.equal].median / count
            rows.append(cmm_row(made, spreads[made.name], us, roofline, nodes, facts))
            report(rows[-1])
    return rows


def cmm_row(made: Checked, spread: Spread, us: dict[str, float], roofline: Roofline, nodes: np.ndarray, facts: Row) -> Row:
    """The row of a layer.

    us     microseconds per token of each dense layer
    nodes  (T, P, depth + 1), the nodes that the tokens visit
    facts  columns that describe the run
    """
    case, itemsize, mine = made.case, ITEMSIZE[made.dtype], spread.median / made.case.tokens
    found = [np.unique(nodes[:, p]) for p in range(case.trees)]
    distinct = sum(int(np.where(at < case.nodes, 1, case.leaf).sum()) for at in found)  # neurons
    bound, bound_name = roofline.fff_seconds(case, itemsize, distinct)
    used = case.used
    best = min(us, key=lambda name: us[name])
    return {
        "op": "fff",
        "shape": case.shape,
        "tokens": case.tokens,
        "hidden": case.hidden,
        "dtype": made.dtype,
        **facts,
        "us_per_token": mine,
        "p10": spread.low / case.tokens,
        "p90": spread.high / case.tokens,
        "gb_per_s": (2 * itemsize * distinct + 8 * case.tokens) * case.hidden / spread.median / 1e3,
        "gflop_per_s": 4 * case.tokens * used * case.hidden / spread.median / 1e3,
        "nodes_touched": distinct / (case.trees * ((1 << case.depth) - 1 + (case.leaf << case.depth))),
        "dense_us": us,
        "best_dense": best,
        "speedup": {name: value / mine for name, value in us.items()},
        "limit": DENSE_WIDTH / used,
        "share_of_limit": us[best] / mine / (DENSE_WIDTH / used),
        "roofline_us": bound * 1e6 / case.tokens,
        "bound_by": bound_name,
        "share_of_roofline": bound * 1e6 / spread.median,
        "max_error": made.error,
        "rerouted": made.rerouted,
    }


# --- matrix products -------------------------------------------------------------------------------


def checked_product(ops: Any, weight: np.ndarray, dtype: str, x: np.ndarray, out: np.ndarray) -> tuple[Run, float]:
    """(run(x), which writes `out`, its largest error) of the packed product by a float32 weight (N, K). Raises BackendError if wrong."""
    of_dtype = backends.get(ops.device, dtype=dtype, threads=ops.threads)
    matrix = of_dtype.matrix(Tensor(weight, "float32"))
    of_dtype.linear(x, matrix, out=out)
    want = x[:256].astype(np.float64) @ weight.T
    error = float(np.abs(out[:256] - want).max())
    if not error < PRODUCT_TOLERANCE[dtype]:
        size = f"{len(x)}x{weight.shape[0]}x{weight.shape[1]}"
        raise BackendError(f"the {dtype} product {size} differs from float64 by {error:g}; nothing is timed")
    return lambda x: of_dtype.linear(x, matrix, out=out), error


def bench_gemm(
    ops: Any,
    *,
    sizes: Sequence[tuple[int, int]] = ((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    tokens: Sequence[int] = (1, 16, 128, 1024, 4096),
    dtypes: Sequence[str] = DTYPES,
    seconds: float = 1.0,
    others: Mapping[str, Product] | None = None,
    report: Report = silent,
) -> list[Row]:
    """A row per (outputs x inputs, tokens, dtype), which compares the packed product with numpy's and those of `others`."""
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
                runs[dtype], errors[dtype] = checked_product(ops, weight, dtype, xs[0], out)
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


# --- the paper's ladder ----------------------------------------------------------------------------


def bench_ladder(ops: Any, *, tokens: int = 128, hidden: int = 768, seconds: float = 1.0, report: Report = silent) -> list[Row]:
    """A row per level of the paper's comparison, with a correct FFF: dense 3072 and FFF 1x11, and this project's kernel.

    Level 1 has dot and axpy per neuron. Level 2 has a gemv per token for the dense layer, and two one-row gemvs per token and tree
    level for the FFF. Level 3 has two gemms (dense only). All use scipy's single-precision BLAS from compiled loops. A token loop
    has one thread, but BLAS itself may use ops.threads at level 3. Raises InputError where SciPy is missing.
    """
    if importlib.util.find_spec("scipy") is None:
        raise no_scipy("bench ladder calls the BLAS of SciPy")
    w1, b1, w2 = dense_weights(hidden)
    case = FFFCase(1, 11, hidden=hidden, tokens=tokens)
    _, w_in, b_in, w_out = case.build(0)
    assert b_in is not None
    bias = b_in[0]
    layer = FFF(w_in, b_in, w_out, depth=11, device=ops.device)
    inputs = [case.build(seed)[0] for seed in range(1, 1 + INPUTS)]
    w2_rows = np.ascontiguousarray(w2.T)
    out = np.empty_like(inputs[0])
    ladder = ops.kernels.ladder
    runs: dict[str, Run] = {
        "dense level 1": lambda x: ladder("dense1", x, w1, b1, w2_rows, out),
        "dense level 2": lambda x: ladder("dense2", x, w1, b1, w2_rows, out),
        "dense level 3": numpy_with_gelu(ops.kernels)(w1, b1, w2, ops.threads),
        "fff level 1": lambda x: ladder("fff1", x, w_in[0], bias, w_out[0], out),
        "fff level 2": lambda x: ladder("fff2", x, w_in[0], bias, w_out[0], out),
        "fff kernel": lambda x: layer(x, out=out, threads=ops.threads),
    }
    wants = {"dense": dense64(inputs[0], w1, b1, w2, gelu=True), "fff": layer(inputs[0])}
    for name, run in runs.items():
        got = run(inputs[0])
        error = float(np.abs((out if got is None else got) - wants[name.split()[0]]).max())
        if not error < 1e-3:
            raise BackendError(f"{name} is wrong: it differs by {error:g}; nothing is timed")
    rows = ladder_rows(interleaved(runs, inputs, seconds=seconds), tokens)
    for row in rows:
        report(row)
    return rows
