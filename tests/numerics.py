"""The error of every op of a backend against float64 on random inputs. docs/numerics.md states it, and test_numerics.py checks it.

python tests/numerics.py [SEEDS]  measures all backends of this machine but a GPU, 100 seeds, and prints the tables of docs/numerics.md.

The oracle is separate float64 code. It first rounds factors of low precision as the op does, so that the numbers measure the op and not
the storage. Errors are divided by the sum of the magnitudes of the terms that the op adds, so that they do not depend on cancellation.
For norms and functions, the table names another divisor.
"""

import platform
import sys
from datetime import date
from typing import NamedTuple

import backends
import numpy as np
from scipy import special
from test_attention import in_float64 as attention_in_float64
from test_fff import as_stored, as_walked, on_bytes
from test_gemm import ACTIVATIONS, bfloat16, in_float64, int8

import fastinfer
from fastinfer import activations
from fastinfer.checkpoint import Tensor
from fastinfer.weights import Embedding, Norm

DEVICES = ["numpy", *backends.COMPILED]
MOST = np.finfo(np.float32).max
NORM_EPS = 1e-12
MEANS = (0, 10, 1e4, 1e6)  # means of the rows for norm; their standard deviation is 1
FUNCTIONS = {
    "exp": np.exp,
    "erf": special.erf,
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * special.erfc(-x * 0.5**0.5),  # erfc keeps the digits of the left tail
}
SPAN = {"exp": (-104, 88.7), "erf": (-5, 5), "tanh": (-11, 11), "gelu": (-15, 15)}  # the range where it bends


class Op(NamedTuple):
    """The bound of an op's error: the divisor of the error, and the largest quotient by dtype."""

    relative_to: str
    most: dict[str, float]


SUM = "the terms' magnitudes"
OPS = {
    "exp": Op("ulp", {"float32": 1.5}),
    "erf": Op("ulp", {"float32": 2.5}),
    "tanh": Op("ulp", {"float32": 3}),
    "gelu, x > -1": Op("ulp", {"float32": 5}),
    "gelu": Op("max(1, magnitude of x)", {"float32": 1.5e-7}),
    "embed": Op(SUM, {"float32": 1.5e-7, "bfloat16": 1.5e-7, "int8": 1.5e-7}),
    "linear": Op(SUM, {"float32": 1e-6, "bfloat16": 1e-6, "int8": 3e-7}),
    "linear with gelu, residual": Op(SUM, {"float32": 1e-6, "bfloat16": 1e-6, "int8": 2e-4}),
    "norm": Op("1", {"float32": 2e-6}),
    "attention": Op(SUM, {"float32": 2e-6, "bfloat16": 5e-3}),
    "fff, logits": Op(SUM, {"float32": 5e-7, "bfloat16": 5e-7, "int8": 5e-7}),
    "fff": Op(SUM, {"float32": 1e-6, "bfloat16": 1e-6, "int8": 1e-6}),
    "fff, wide": Op(SUM, {"int8": 1e-6}),
    "pool, mean": Op(SUM, {"float32": 5e-7}),
    "pool, max": Op("1", {"float32": 0}),
    "pool, cls": Op("1", {"float32": 0}),
    "pool, weightedmean": Op(SUM, {"float32": 5e-7}),
    "pool, sqrtmean": Op(SUM, {"float32": 5e-7}),
    "pool, lasttoken": Op("1", {"float32": 0}),
    "pool, lse": Op("max(1, magnitude of the answer)", {"float32": 5e-7}),
}


def dtypes(device, op):
    """The dtypes to measure for an op of a backend. On "numpy", exp, erf and tanh are NumPy's and SciPy's, so they have none."""
    return [dtype for dtype in OPS[op].most if device != "numpy" or (dtype == "float32" and op not in ("exp", "erf", "tanh"))]


def error(device, op, dtype, seed):
    """The largest error of an op on the inputs of one seed."""
    rng = np.random.default_rng([seed, *op.encode()])
    ops = fastinfer.backends.get(device, dtype=dtype, threads=1)
    name, _, kind = op.partition(", ")
    if name in FUNCTIONS:
        return of_function(ops, name, rng, kind)
    if name == "pool":
        return of_pool(ops, kind, rng)
    if name.startswith("linear"):
        return of_linear(ops, dtype, rng, name != "linear")
    return {"embed": of_embed, "norm": of_norm, "attention": of_attention, "fff": of_fff}[name](ops, dtype, rng, kind)


def apply(ops, function, x):
    """A backend's function of each value of an array."""
    if ops.name == "numpy":
        return activations.ACTIVATIONS[function](x)
    out = np.empty_like(x)
    ops.kernels.array(function, x, out)
    return out


def of_function(ops, name, rng, kind):
    patterns = rng.integers(0, 2**32, 2000, np.uint32).view(np.float32)  # every exponent of both signs, denormals included
    x = np.concatenate([rng.uniform(*SPAN[name], 4000).astype(np.float32), patterns[np.isfinite(patterns)]])
    x = x[x > -1] if kind else x
    with np.errstate(over="ignore", under="ignore"):
        want = FUNCTIONS[name](x.astype(np.float64))
        x, want = x[want <= MOST], want[want <= MOST]
        if name == "exp":  # the kernels give 0 where the result would be denormal; test_math.py holds that
            x, want = x[want >= np.finfo(np.float32).tiny], want[want >= np.finfo(np.float32).tiny]
        off = np.abs(apply(ops, name, x).astype(np.float64) - want)
    if OPS[name].relative_to != "ulp" and not kind:
        return (off / np.maximum(1, np.abs(x))).max()
    return (off / np.spacing(np.abs(want).astype(np.float32))).max()


def of_embed(ops, dtype, rng, kind):
    words, position, types = (rng.standard_normal((n, 40), np.float32) for n in (30, 8, 2))
    stored = Tensor(words, "float32").to(dtype)
    embedding = Embedding(ops.table(stored), position, types, None, 0.0)
    ids, kinds = rng.integers(0, 30, (4, 8)), rng.integers(0, 2, (4, 8))
    out = np.empty((32, 40), np.float32)
    ops.embed(fastinfer.PackedBatch.from_ids(ids, kinds), embedding, out=out)
    terms = [as_stored(words, dtype)[ids.ravel()], np.tile(position, (4, 1)).astype(np.float64), types[kinds.ravel()].astype(np.float64)]
    return (np.abs(out - sum(terms)) / sum(np.abs(t) for t in terms)).max()


def of_linear(ops, dtype, rng, dressed):
    x, weight = rng.standard_normal((5, 768), np.float32), rng.standard_normal((40, 768), np.float32)
    bias, residual = rng.standard_normal(40, np.float32), rng.standard_normal((5, 40), np.float32)
    rows = Tensor(weight, "float32").to(dtype)
    want, _ = in_float64(dtype, x, rows)
    terms = np.abs(want) if dtype == "int8" else np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    want, terms, options = want + bias, terms + np.abs(bias), {"bias": bias}
    if dressed:
        want, terms = ACTIVATIONS["gelu"](want) + residual, terms + np.abs(residual)
        options |= {"activation": "gelu", "residual": residual}
    out = np.empty((5, 40), np.float32)
    ops.linear(x, ops.matrix(rows), **options, out=out)
    return (np.abs(out - want) / terms).max()


def of_norm(ops, dtype, rng, kind):
    x = np.concatenate([rng.standard_normal((4, 768)) + mean for mean in MEANS]).astype(np.float32)
    norm, out = Norm(np.ones(768, np.float32), np.zeros(768, np.float32)), np.empty_like(x)
    ops.norm(x, norm, NORM_EPS, out=out)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    return np.abs(out - centred / np.sqrt((centred**2).mean(-1, keepdims=True) + NORM_EPS)).max()


def of_attention(ops, dtype, rng, kind):
    heads, size, lengths = 2, 32, [1, 5, 30]
    qkv = rng.standard_normal((36, 3 * heads * size), np.float32)
    out, cu = np.empty((36, heads * size), np.float32), np.cumsum([0, *lengths], dtype=np.int32)
    ops.attention(qkv, cu, heads, out=out)
    exact = qkv
    if dtype == "bfloat16" and ops.kernels.half:  # the other ISAs compute in float32
        exact = bfloat16(qkv)
    sizes = exact.copy()
    sizes[:, 2 * heads * size :] = np.abs(sizes[:, 2 * heads * size :])
    return (np.abs(out - attention_in_float64(exact, lengths, heads, size)) / attention_in_float64(sizes, lengths, heads, size)).max()


def of_fff(ops, dtype, rng, kind):
    worst = 0.0
    for trees, depth, tokens in ((2, 6, 12), (64, 1, 26)):  # deep trees, and many small ones
        count, wide = 2 ** (depth + 1) - 1, on_bytes(trees, depth, dtype)
        x = rng.standard_normal((tokens, 100), np.float32)
        w_in, w_out = (rng.standard_normal((trees, count, 100), np.float32) for _ in range(2))
        w_in /= 10
        b_in, bias = rng.standard_normal((trees, count), np.float32), rng.standard_normal(100, np.float32)
        if (kind == "wide") != wide and kind != "logits":
            continue
        nodes = np.empty((tokens, trees, depth + 1), np.int32)
        z, out = np.empty(nodes.shape, np.float32), np.empty_like(x)
        prepared = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, depth)
        ops.fff(x, prepared, bias=bias, out=out, nodes=nodes, z=z)
        at = np.arange(trees)[:, None], nodes  # along the route that the op took
        rows_in, rows_out, b = as_stored(w_in, dtype)[at], as_stored(w_out, dtype)[at], b_in[at].astype(np.float64)
        products = as_walked(x, trees, depth, dtype)[:, None, None] * rows_in
        logits = products.sum(-1) + b
        if kind == "logits":
            worst = max(worst, (np.abs(z - logits) / (np.abs(products).sum(-1) + np.abs(b))).max())
            continue
        neurons = logits * special.ndtr(logits)
        if wide:  # they are rounded once more, from the op's own logits, since near-ties may go either way
            stored, strengths = Tensor(w_out, "float32").to(dtype), np.empty(z.size, np.float32)
            ops.kernels.array("gelu", z.reshape(-1), strengths)
            integers, scale = int8((strengths.reshape(z.shape) * stored.scale[at]).reshape(tokens, -1))
            neurons, rows_out = (integers * scale[:, None].astype(np.float64)).reshape(z.shape), stored.data[at].astype(np.float64)
        terms = neurons[..., None] * rows_out
        off, sizes = np.abs(out - (terms.sum((1, 2)) + bias)), np.abs(terms).sum((1, 2)) + np.abs(bias)
        worst = max(worst, (off / sizes).max())
    return worst


def of_pool(ops, kind, rng):
    lengths = [1, 3, 50]
    x, out = rng.standard_normal((54, 40), np.float32) * np.float32(3), np.empty((3, 40), np.float32)
    ops.pool(x, np.cumsum([0, *lengths], dtype=np.int32), kind, out=out)
    texts = np.split(x.astype(np.float64), np.cumsum(lengths)[:-1])
    of = {
        "mean": lambda t: t.mean(0),
        "max": lambda t: t.max(0),
        "cls": lambda t: t[0],
        "lse": lambda t: np.log(np.exp(t).sum(0)),
        "lasttoken": lambda t: t[-1],
        "weightedmean": lambda t: np.average(t, 0, np.arange(1, len(t) + 1)),
        "sqrtmean": lambda t: t.sum(0) / len(t) ** 0.5,
    }[kind]
    want = np.array([of(t) for t in texts])
    terms = np.array([of(np.abs(t)) for t in texts]) if kind.endswith("mean") else 1
    return (np.abs(out - want) / (np.maximum(1, np.abs(want)) if kind == "lse" else terms)).max()


def stated():
    """The rows of the table of bounds in docs/numerics.md."""
    yield f"| op | error relative to | {' | '.join(backends.DTYPES)} |"
    yield "|---|---|" + "---|" * len(backends.DTYPES)
    for name, op in OPS.items():
        yield f"| {name} | {op.relative_to} | {' | '.join(f'{op.most[d]:g}' if d in op.most else '-' for d in backends.DTYPES)} |"


def measured(seeds):
    """The rows of the table of errors of this machine's backends, over `seeds` seeds."""
    yield f"| op, dtype | {' | '.join(DEVICES)} |"
    yield "|---|" + "---|" * len(DEVICES)
    for op in OPS:
        for dtype in OPS[op].most:
            each = [
                f"{max(error(device, op, dtype, seed) for seed in range(seeds)):.2g}" if dtype in dtypes(device, op) else "-"
                for device in DEVICES
            ]
            yield f"| {op}, {dtype} | {' | '.join(each)} |"


def processor():
    """The name of the CPU from /proc/cpuinfo, or else from Python."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print("\n".join(stated()))
    print(f"\n{date.today()}, {processor()}, seeds 0 to {seeds - 1}\n")
    print("\n".join(measured(seeds)))
