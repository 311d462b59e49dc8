"""Benchmarks of layers on a GPU: fast feedforward layers against dense ones, and the paper's layers.

A layer and its rivals take turns on one stream. Sets of few tokens stay in the L2 cache between replays, so they are timed a
second time with the cache flushed before every call. A result is compared with float64 before it is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..checkpoint import Tensor
from ..errors import BackendError, InputError
from ..weights import NODES, Form
from .cases import DENSE_WIDTH, Arrays, DenseArrays, FFFCase, Paths, dense_weights
from .gpu_timing import SETS, Call, Replay, Work, copy_rate, elapsed, flusher, interleaved, own_work, replay
from .oracle import dense64, walk64
from .report import Report, Row, ladder_rows, silent
from .timing import Spread

DTYPES = ("float16", "float32", "bfloat16", "int8")
CHECKED = 256  # most tokens whose output is compared
CHECKED_NODES = 8192  # visited nodes: fewer tokens are compared if theirs are more
# Largest allowed error, relative to the largest value. It covers sums in float32 and one rounding to the dtype.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
DENSE_TOLERANCE = 0.03  # the same for a dense layer in any dtype
# If a deciding |z| is less, a tree may take another path than in float64. Logits are of order 1, and some strategies round them.
MARGIN = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}
COLD_TOKENS = 1024  # most tokens measured also with a cold cache: more tokens exceed the cache anyway

Make = Callable[..., Callable[[int], Work]]


class Rival(NamedTuple):
    """Another project's dense layer.

    make  (stream, inputs, w1 (W, D), b1 (W,), w2 (D, W)) -> work(tokens); inputs has an array (T, D) float32 on the device per set
    """

    dtype: str
    make: Make


# --- arithmetic ------------------------------------------------------------------------------------


def rows_once(trees: int, depth: int, tokens: int, leaf: int = 1) -> int:
    """The most distinct neurons that so many tokens can use: per tree and level, one node or leaf per token or all of them."""
    return trees * sum(min(1 << level, tokens) * (leaf if level == depth else 1) for level in range(depth + 1))


def case_of(shape: tuple[int, ...], hidden: int, tokens: int, paths: Paths) -> FFFCase:
    """The case of a shape: trees, depth and perhaps the neurons of a leaf."""
    return FFFCase(shape[0], shape[1], hidden, tokens, paths, leaf=(*shape, 1)[2])


def floor_bytes(case: FFFCase, dtype: str) -> int:
    """The least bytes of memory traffic: x, y, and both rows of each node that may be visited (int8 rows with their scales)."""
    act = 4 if dtype == "float32" else 2
    row = case.hidden + 4 if dtype == "int8" else act * case.hidden
    return 2 * case.tokens * case.hidden * act + 2 * row * rows_once(case.trees, case.depth, case.tokens, case.leaf)


def cmm_row(
    case: FFFCase,
    dtype: str,
    key: str,
    spreads: Mapping[str, Spread],
    cold: Mapping[str, Spread],
    dense: Mapping[str, Rival | None],
    rate: float,
) -> Row:
    """The row of a layer. spreads, cold: us per call by name; dense: dense layers by name; rate: bytes per us of a copy."""
    mine, floor = spreads[key].median, floor_bytes(case, dtype) / rate
    us = {name: spreads[name].median for name in dense}
    exact = [name for name, rival in dense.items() if rival is None or rival.dtype != "tf32"]
    best = min(exact, key=lambda name: us[name])
    chilled = cold[key].median if cold else None
    return {
        "op": "fff",
        "shape": case.shape,
        "tokens": case.tokens,
        "hidden": case.hidden,
        "dtype": dtype,
        "us": mine,
        "p10": spreads[key].low,
        "p90": spreads[key].high,
        "ns_per_token": 1e3 * mine / case.tokens,
        "dense_us": us,
        "best_dense": best,
        "speedup": {name: value / mine for name, value in us.items()},
        "tf32": min((us[n] / mine for n in dense if n not in exact), default=None),
        "cold_us": chilled,
        "cold_speedup": min(cold[n].median for n in exact) / chilled if chilled else None,
        "floor_us": floor,
        "share_of_floor": floor / mine,
        "copy_tb_per_s": rate / 1e6,
        "limit": DENSE_WIDTH / case.used,
    }


# --- correctness -----------------------------------------------------------------------------------


def check_dense(works: Mapping[str, Work], x: np.ndarray, weights: DenseArrays) -> None:
    """Compare dense layers with float64 on the tokens x. Raises BackendError if one is wrong."""
    want = dense64(x, *weights, gelu=True)
    for name, work in works.items():
        work.calls[0]()
        error = float(np.abs(work.result()[: len(x)] - want).max() / np.abs(want).max())
        if not error < DENSE_TOLERANCE:
            raise BackendError(f"the dense layer {name!r} is wrong: it differs from float64 by {error:g}; nothing is timed")


def check_fff(ops: Any, x: Any, trees: Any, arrays: Arrays, y: np.ndarray, dtype: str, leaf: int = 1) -> tuple[float, float]:
    """(largest error relative to the largest value, share of tokens rerouted) of a layer's output y for the tokens x on the device.

    Both are compared with float64 on the stored weights and the rounded x. A tree's route, and so the token's output, may differ
    only if a deciding |z| is less than MARGIN. Rerouted tokens are those whose route differs from that of the float32 weights.
    Raises BackendError if the layer is wrong.
    """
    w_in, b_in, w_out = arrays
    depth = trees.depth
    weights = np.stack([w_in, w_out], 2)
    host = ops.bring(x)()
    want, visited, margin = walk64(host, Tensor(weights, "float32").to(dtype).float32(), b_in, depth, leaf=leaf)
    near = margin < MARGIN[ops.act]
    nodes = ops.empty(len(host), len(w_in), depth + 1, dtype=np.int32)
    ops.fff(x, trees, out=ops.empty(*x.shape), nodes=nodes, z=ops.empty(*nodes.shape, dtype=np.float32))
    wrong = (ops.bring(nodes)() != visited).any(2) & ~near
    error = np.abs(y - want).max(1) / np.abs(want).max()
    error[near.any(1) & (error > TOLERANCE[ops.act])] = 0
    if wrong.any() or not error.max() < TOLERANCE[ops.act]:
        raise BackendError(
            f"the layer is wrong: {wrong.sum()} of {wrong.size} routes differ where no |z| is near 0, the output by {error.max():g}; "
            "nothing is timed"
        )
    return float(error.max()), float((visited != walk64(host, weights, b_in, depth, leaf=leaf)[1]).any((1, 2)).mean())


def check_work(ops: Any, work: Work, x: Any, out: Any, trees: Any, arrays: Arrays, dtype: str, leaf: int = 1) -> tuple[float, float]:
    """check_fff for some tokens of the output `out` of the first call. Raises BackendError also if a token is not written."""
    out.view(np.uint8).fill(0xFF)  # NaN in every dtype
    work.calls[0]()
    y = work.result()
    if not np.isfinite(y).all():
        raise BackendError(f"{(~np.isfinite(y)).any(1).sum()} of {len(y)} tokens are unwritten or not finite; nothing is timed")
    checked = min(CHECKED, max(8, CHECKED_NODES // (len(arrays[0]) * (trees.depth + 1))))
    some = np.random.default_rng().permutation(len(y))[:checked]
    return check_fff(ops, ops.rows(x, some), trees, arrays, y[some], dtype, leaf)


def check_grouped(work: Work, x: np.ndarray, shape: tuple[int, ...], arrays: Arrays, act: str) -> None:
    """Compare another project's trees with float64 on the tokens x. Raises BackendError if they are wrong."""
    w_in, b_in, w_out = arrays
    want, _, margin = walk64(x, np.stack([w_in, w_out], 2), b_in, shape[1], leaf=(*shape, 1)[2])
    work.calls[0]()
    error = np.abs(work.result()[: len(x)] - want)[(margin > 2 * MARGIN[act]).all(1)].max(initial=0) / np.abs(want).max()
    if not error < DENSE_TOLERANCE:
        raise BackendError(f"grouped products are wrong: they differ from float64 by {error:g}; nothing is timed")


# --- conditional matrix multiplication -------------------------------------------------------------


def copied(weights: Any) -> Any:
    """A copy of prepared weights at other addresses. weights: an array, or a named tuple of arrays."""
    if isinstance(weights, tuple):
        return type(weights)(*map(copied, weights))
    return weights.copy() if hasattr(weights, "data") else weights


def prepared(ops: Any, arrays: Arrays, depth: int, sets: int, leaf: int = 1) -> list[Any]:
    """`sets` copies of a layer's prepared trees."""
    w_in, b_in, w_out = arrays
    first = ops.trees(
        Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, depth, Form(leaf=leaf, blocks=1 << depth) if leaf > 1 else NODES
    )
    return [first, *(copied(first) for _ in range(sets - 1))]


def own_dense(ops: Any, session: Any, inputs: Sequence[Any], w1: np.ndarray, b1: np.ndarray, w2: np.ndarray) -> Callable[[int], Work]:
    """work(tokens) of this project's dense layer as a model runs it: two products with a GELU between them."""
    first, bias, second = ops.matrix(Tensor(w1, "float32")), ops.vector(Tensor(b1, "float32")), ops.matrix(Tensor(w2, "float32"))
    weights = [(first, bias, second), *([copied(w) for w in (first, bias, second)] for _ in inputs[1:])]

    def work(tokens: int) -> Work:
        out = ops.empty(tokens, len(w2))

        def call(x: Any, first: Any, bias: Any, second: Any) -> None:
            for part in ops.parts(tokens, first):
                middle = session.take("middle", part.stop - part.start, len(w1))
                ops.linear(x[part], first, bias=bias, activation="gelu", out=middle)
                ops.linear(middle, second, out=out[part])

        calls = [functools.partial(call, x, *w) for x, w in zip(inputs, weights, strict=True)]
        return own_work(ops, session, calls, out)

    return work


class Inputs(NamedTuple):
    """Values that do not depend on the dtype.

    floats  the tokens (T, D) of each set, float32 on the device
    rate    bytes per us of a copy
    flush   a launch that flushes the L2 cache
    """

    floats: list[Any]
    rate: float
    flush: Call

    @classmethod
    def make(cls, ops: Any, session: Any, hidden: int, most: int) -> Inputs:
        """Inputs with sets of `most` tokens: SETS of them, or as many as fit into the GPU's memory, but at least 2."""
        rate, flush = copy_rate(session.stream), flusher(ops.number)
        free = ops.cupy.cuda.runtime.memGetInfo()[0]
        sets = int(min(SETS, max(2, free // 2 // (16 * hidden * most))))  # 16 bytes per value: x in two dtypes, out, a rival's out
        return cls([ops.cupy.asarray(FFFCase(1, 0, hidden, most).build(seed)[0]) for seed in range(1, 1 + sets)], rate, flush)


class Layers:
    """The layers of one dtype, one per shape, each with a copy of its weights per set of inputs."""

    def __init__(self, ops: Any, session: Any, dtype: str, arrays: Mapping[tuple[int, ...], Arrays], floats: Sequence[Any]) -> None:
        self.ops, self.session, self.dtype, self.arrays = ops, session, dtype, arrays
        self.inputs = [ops.arrays.as_act(x) for x in floats]
        self.outs = [ops.empty(*x.shape) for x in self.inputs]
        self.trees = {shape: prepared(ops, arrays[shape], shape[1], len(floats), (*shape, 1)[2]) for shape in arrays}

    def work(self, shape: tuple[int, ...], count: int) -> Work:
        """The layer of a shape on the first tokens of each set."""
        calls = [
            functools.partial(self.ops.fff, x[:count], t, out=y[:count])
            for x, t, y in zip(self.inputs, self.trees[shape], self.outs, strict=True)
        ]
        return own_work(self.ops, self.session, calls, self.outs[0][:count])

    def check(self, shape: tuple[int, ...], work: Work, count: int) -> tuple[float, float]:
        """The result of check_work for the layer of a shape."""
        x, trees = self.inputs[0][:count], self.trees[shape][0]
        return check_work(self.ops, work, x, self.outs[0], trees, self.arrays[shape], self.dtype, (*shape, 1)[2])

    def first(self, count: int) -> np.ndarray:
        """The first tokens of the first set, on the host."""
        return np.asarray(self.ops.bring(self.inputs[0][:CHECKED])()[:count])


def beside_leaves(
    ops: Any, session: Any, layers: Layers, shapes: Sequence[tuple[int, ...]], floats: Sequence[Any], grouped: Mapping[str, Rival]
) -> dict[tuple[str, tuple[int, ...]], Callable[[int], Work]]:
    """{(name, shape): work(tokens)} of what shapes with leaves of several neurons are compared with.

    "equal" is this project's dense layer of as many neurons as a token uses, in eights; the others are `grouped`, for one tree.
    """
    hidden = floats[0].shape[1]
    made: dict[tuple[str, tuple[int, ...]], Callable[[int], Work]] = {}
    for shape in shapes:
        neurons = -(-case_of(shape, hidden, 1, "balanced").used // 8) * 8
        made["equal", shape] = own_dense(ops, session, layers.inputs, *dense_weights(hidden, neurons))
        for name, rival in grouped.items():
            if rival.dtype == ops.act and shape[0] == 1:
                made[name, shape] = rival.make(session.stream, floats, *shape[1:], *layers.arrays[shape])
    return made


def bench_cmm(
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = ((1, 11), (16, 7), (64, 5), (128, 4), (512, 2)),
    tokens: Sequence[int] = (1, 32, 128, 1024, 4096, 16384, 65536),
    dtypes: Sequence[str] = DTYPES,
    hidden: int = 768,
    paths: Paths = "balanced",
    seconds: float = 0.05,
    dense: Mapping[str, Rival] | None = None,
    grouped: Mapping[str, Rival] | None = None,
    report: Report = silent,
) -> list[Row]:
    """A row per (dtype, tokens, shape). dense: other projects' dense layers by name.

    A shape is trees, depth and perhaps the neurons of a leaf. A leaf of several is also compared with this project's dense layer of as many
    neurons as a token uses, and one tree with `grouped`: other projects' layers by name, make(stream, inputs, depth, leaf, *arrays).

    Raises BackendError if a result is wrong, before it is timed.
    """
    if any(d not in DTYPES for d in dtypes):
        raise InputError(f"dtypes is {dtypes!r}, expected some of {', '.join(DTYPES)}")
    arrays = {shape: case_of(shape, hidden, 1, paths).build(0)[1:] for shape in shapes}
    leaves = [shape for shape in shapes if (*shape, 1)[2] > 1]
    weights = dense_weights(hidden)
    given: Inputs | None = None
    rows = []
    for dtype in dtypes:
        ops: Any = backends.get(device, dtype=dtype).fitted(hidden, 0, dtype)
        with ops.workspace() as session:
            given = given or Inputs.make(ops, session, hidden, max(tokens))
            layers = Layers(ops, session, dtype, arrays, given.floats)
            comparable = ("float32", "tf32") if ops.act == "float32" else (ops.act,)
            fitting = {name: rival for name, rival in (dense or {}).items() if rival.dtype in comparable}
            makes = {"own": own_dense(ops, session, layers.inputs, *weights)}
            makes |= {name: rival.make(session.stream, given.floats, *weights) for name, rival in fitting.items()}
            beside = beside_leaves(ops, session, layers, leaves, given.floats, grouped or {})
            for count in tokens:
                works = {name: make(count) for name, make in makes.items()}
                check_dense(works, layers.first(count), weights)
                works |= {str(shape): layers.work(shape, count) for shape in shapes}
                checks = {shape: layers.check(shape, works[str(shape)], count) for shape in shapes}
                for (name, shape), make in beside.items():
                    works[f"{name} {shape}"] = make(count)
                    if name != "equal":
                        check_grouped(works[f"{name} {shape}"], layers.first(count), shape, arrays[shape], ops.act)
                spreads, cold = warm_and_cold(works, given.flush if count <= COLD_TOKENS else None, seconds)
                for shape in shapes:
                    case, made = case_of(shape, hidden, count, paths), layers.trees[shape][0]
                    walked = made.nodes if shape in leaves else made
                    plan = "none" if walked is None else ops.plan(count, walked)
                    row = cmm_row(case, dtype, str(shape), spreads, cold, {"own": None, **fitting}, given.rate)
                    row |= {"device": ops.device, "paths": paths, "sets": len(given.floats), "strategy": plan}
                    row |= {"max_error": checks[shape][0], "rerouted": checks[shape][1]}
                    if shape in leaves:
                        others = {name: spreads[f"{name} {at}"].median for name, at in beside if at == shape}
                        row |= {"equal_us": others.pop("equal"), "grouped_us": others}
                    rows.append(row)
                    report(row)
    return rows


def warm_and_cold(works: Mapping[str, Work], flush: Call | None, seconds: float) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """({name: us per call}, {name: us per call after a flush of the cache}). Without `flush`, the second is empty."""
    warm = interleaved({name: replay(work) for name, work in works.items()}, seconds=seconds)
    if flush is None:
        return warm, {}
    return warm, interleaved({name: replay(work, flush) for name, work in works.items()}, seconds=seconds)


# --- the paper's layers ----------------------------------------------------------------------------


def bench_ladder(
    device: str,
    *,
    tokens: int,
    hidden: int = 768,
    seconds: float = 0.05,
    others: Mapping[str, Make] | None = None,
    report: Report = silent,
) -> list[Row]:
    """A row per layer in float32: dense 3072 and FFF 1x11 of this project, and `others`, whose names begin with "dense" or "fff"."""
    ops: Any = backends.get(device, dtype="float32").fitted(hidden, 0, "float32")
    dense, fff = dense_weights(hidden), FFFCase(1, 11, hidden, 1).build(0)[1:]
    with ops.workspace() as session:
        hosts = [FFFCase(1, 0, hidden, tokens).build(seed)[0] for seed in range(1, 1 + SETS)]
        inputs = [ops.cupy.asarray(x) for x in hosts]
        outs = [ops.empty(*x.shape) for x in inputs]
        trees = prepared(ops, fff, 11, SETS)
        calls = [functools.partial(ops.fff, x, t, out=y) for x, t, y in zip(inputs, trees, outs, strict=True)]
        works = {"dense own": own_dense(ops, session, inputs, *dense)(tokens), "fff own": own_work(ops, session, calls, outs[0])}
        for name, make in (others or {}).items():
            works[name] = make(session.stream, inputs, *(fff if name.startswith("fff") else dense))(tokens)
        spreads = ladder_spreads(works, session.stream, ladder_wants(dense, fff, hosts[0][:CHECKED]), seconds)
    rows = ladder_rows(spreads, tokens)
    for row in rows:
        report(row)
    return rows


def ladder_wants(dense: DenseArrays, fff: Arrays, x: np.ndarray) -> dict[str, tuple[np.ndarray, Any]]:
    """{"dense" or "fff": (outputs in float64, tokens to compare)}. For "fff" these are tokens whose |z| all exceed MARGIN."""
    w_in, b_in, w_out = fff
    y, _, margin = walk64(x, np.stack([w_in, w_out], 2), b_in, 11)
    sure = margin[:, 0] > MARGIN["float32"]
    return {"dense": (dense64(x, *dense, gelu=True), slice(None)), "fff": (y[sure], sure)}


def ladder_spreads(
    works: Mapping[str, Work], stream: Any, wants: Mapping[str, tuple[np.ndarray, Any]], seconds: float
) -> dict[str, Spread]:
    """Microseconds per call of layers. Each is compared with the output in `wants` first. Raises BackendError if one is wrong."""
    replays: dict[str, Replay] = {}
    long: dict[str, Spread] = {}
    for name, work in works.items():
        once = elapsed(stream, work.calls[0])
        want, which = wants[name.split()[0]]
        compared = len(wants["dense"][0])
        error = float(np.abs(work.result()[:compared][which] - want).max() / np.abs(want).max())
        if not error < 1e-4:
            raise BackendError(f"{name} is wrong: it differs from float64 by {error:g}; nothing is timed")
        if once > 1e6:  # it takes seconds, so it is timed only once
            long[name] = Spread(once, once, once)
        else:
            replays[name] = replay(work)
    spreads = long | interleaved(replays, seconds=seconds)
    return {name: spreads[name] for name in works}
