"""Benchmarks of the GPU backend: what is timed are replays of CUDA graphs over arrays on the device, by events.

A layer and its rivals take turns on one stream. Each has up to 8 sets of weights and random inputs, one after another in a graph; the
sets of few tokens stay in the L2 cache between replays, so those are timed a second time with the cache flushed before every call.
Nothing is timed before its result has been compared with float64.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backends, bench, bench_model
from .batch import PackedBatch
from .bench import Spread
from .cases import FFFCase
from .checkpoint import Tensor
from .errors import BackendError, InputError

SETS = 8
DTYPES = ("float16", "float32", "bfloat16", "int8")
CHECKED = 256  # tokens whose output is compared, fewer where a token visits many nodes
CHECKED_NODES = 8192
# Largest error, relative to the largest value, of sums in float32 and of one rounding to the dtype.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
# Where a deciding |z| is below, a tree may take another path than in float64: logits are of order 1, and some strategies round them.
MARGIN = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}
COLD_TOKENS = 1024  # up to here a cold cache is measured, too: more tokens pass through it anyway
GRAPH_US, LONG_US = 1000.0, 20_000.0  # what is timed takes about the first; beyond the second, two sets are enough
LEAST = 7  # replays
COPIED_BYTES = 1 << 30
SIZES = ((1, 16), (1, 128), (32, 128), (64, 512))  # texts x tokens

Call = Callable[[], Any]


class Work(NamedTuple):
    """Something to time.

    stream   where it runs
    calls    the same work on sets of weights and inputs; each launches it
    capture  (launch) -> replay of a graph of what it launches
    result   () -> what calls[0] has written, float32 on the host
    """

    stream: Any
    calls: Sequence[Call]
    capture: Callable[[Call], Call]
    result: Callable[[], np.ndarray]


class Rival(NamedTuple):
    """A dense layer of others. make(stream, inputs (T, D) float32 on the device per set, w1 (W, D), b1 (W,), w2 (D, W)) -> work(tokens)"""

    dtype: str
    make: Callable[..., Callable[[int], Work]]


class Rivals(NamedTuple):
    """What tools/bench.py adds.

    dense   dense layers
    ladder  the paper's layers: make(stream, inputs, arrays) -> work(tokens)
    models  a bench_model.Rivals
    """

    dense: dict[str, Rival]
    ladder: dict[str, Callable[..., Callable[[int], Work]]]
    models: Any


# --- time ------------------------------------------------------------------------------------------


class Replay(NamedTuple):
    """launch() starts a graph of so many calls; `before` microseconds of it are not theirs; `keep`: who holds the arrays it uses."""

    stream: Any
    launch: Call
    calls: int
    before: float = 0.0
    keep: Any = None


def elapsed(stream: Any, launch: Call, times: int = 1, *, ahead: bool = False) -> float:
    """Microseconds on the device of so many launches; ahead: one more goes before them, so that none waits for the host."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    if ahead:
        launch()
    begin.record(stream)
    for _ in range(times):
        launch()
    end.record(stream)
    end.synchronize()
    return 1e3 * cupy.cuda.get_elapsed_time(begin, end)


def replay(work: Work, first: Call | None = None) -> Replay:
    """A graph of rounds of all calls, of about GRAPH_US; or of one round with `first` before each call, its own time taken off."""
    for call in work.calls:
        call()
    once = elapsed(work.stream, lambda: [call() for call in work.calls])
    calls = work.calls if once < LONG_US else work.calls[:2]
    one = work.capture(lambda: [call() for call in calls])
    one()
    rounds = max(1, min(64 // len(calls), int(GRAPH_US / elapsed(work.stream, one))))
    if first is None:
        several = work.capture(lambda: [call() for _ in range(rounds) for call in calls])
        return Replay(work.stream, several, rounds * len(calls), keep=work)
    firsts = work.capture(lambda: [first() for _ in calls])
    both = work.capture(lambda: [launch() for call in calls for launch in (first, call)])
    return Replay(
        work.stream,
        both,
        len(calls),
        float(np.median([elapsed(work.stream, firsts, ahead=True) for _ in range(LEAST)])),
        keep=(work, first),
    )


def interleaved(replays: dict[str, Replay], *, seconds: float) -> dict[str, Spread]:
    """Microseconds per call of graphs that take turns, for about `seconds` each and at least LEAST times."""
    times: dict[str, list[float]] = {name: [] for name in replays}
    spent = dict.fromkeys(replays, 0.0)
    waiting = list(replays)
    while waiting:
        for name in waiting:
            stream, launch, calls, before, _ = replays[name]
            launches = max(1, int(GRAPH_US / elapsed(stream, launch)))
            for _ in range(3):
                us = elapsed(stream, launch, launches, ahead=True)
                times[name].append((us / launches - before) / calls)
                spent[name] += us / 1e6
        waiting = [n for n in waiting if len(times[n]) < LEAST or spent[n] < seconds]
    return {name: Spread(*np.percentile(t, [50, 10, 90]).tolist()) for name, t in times.items()}


def flusher(number: int) -> Call:
    """A launch on the current stream that reads three times what the L2 cache of GPU `number` holds."""
    import cupy

    code = r"""
    extern "C" __global__ void read(const uint4* from, long long count, unsigned* out) {
        unsigned sum = 0;
        for (long long i = blockIdx.x * 512ll + threadIdx.x; i < count; i += gridDim.x * 512ll) sum += from[i].x + from[i].w;
        if (sum == 0x9e3779b9) *out = sum;  // else the compiler leaves the loads out
    }"""
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    data = cupy.ones(3 * properties["l2CacheSize"] // 4, np.uint32)
    out, read = cupy.zeros(1, np.uint32), cupy.RawKernel(code, "read")
    return lambda: read((4 * properties["multiProcessorCount"],), (512,), (data, np.int64(data.size // 4), out))


def copy_rate(stream: Any) -> float:
    """Bytes per microsecond of a large copy on the device, bytes read and bytes written both counted."""
    import cupy

    source, to = cupy.ones(COPIED_BYTES // 4, np.float32), cupy.empty(COPIED_BYTES // 4, np.float32)
    runtime = cupy.cuda.runtime

    def copy() -> None:
        runtime.memcpyAsync(to.data.ptr, source.data.ptr, COPIED_BYTES, runtime.memcpyDeviceToDevice, stream.ptr)

    copy()
    return 2 * COPIED_BYTES / float(np.median([elapsed(stream, copy) for _ in range(LEAST)]))


def machine(ops: Any) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    runtime = ops.cupy.cuda.runtime
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": runtime.getDeviceProperties(ops.number)["name"].decode(),
        "driver": "{}.{}".format(*divmod(runtime.driverGetVersion() // 10, 100)),
        "cuda": "{}.{}".format(*divmod(runtime.runtimeGetVersion() // 10, 100)),
        "cupy": ops.cupy.__version__,
        "python": platform.python_version(),
    }


# --- conditional matrix multiplication -------------------------------------------------------------


def rows_once(trees: int, depth: int, tokens: int) -> int:
    """The most nodes that so many tokens can visit: of each level all of them, or one a token."""
    return trees * sum(min(1 << level, tokens) for level in range(depth + 1))


def floor_bytes(case: FFFCase, dtype: str) -> int:
    """Bytes that must pass through memory once: x in, y out, and both rows of each node that may be visited (int8 ones with scales)."""
    act = 4 if dtype == "float32" else 2
    row = case.hidden + 4 if dtype == "int8" else act * case.hidden
    return 2 * case.tokens * case.hidden * act + 2 * row * rows_once(case.trees, case.depth, case.tokens)


def copied(weights: Any) -> Any:
    """Prepared weights at other addresses: arrays and named tuples of them."""
    if isinstance(weights, tuple):
        return type(weights)(*map(copied, weights))
    return weights.copy() if hasattr(weights, "data") else weights


def check_fff(ops: Any, x: Any, trees: Any, arrays: tuple, y: np.ndarray, dtype: str) -> tuple[float, float]:
    """(largest error relative to the largest value, share of tokens rerouted) of a layer's output y for the tokens x on the device.

    Both are compared with float64 on the weights as stored and x as rounded: a tree's route may differ, and with it the token's output,
    only where a deciding |z| is within MARGIN. Rerouted tokens are those whose route differs from that of the float32 weights.
    Raises BackendError.
    """
    w_in, b_in, w_out = arrays
    depth = trees.depth
    weights = np.stack([w_in, w_out], 2)
    host = ops.bring(x)()
    want, visited, margin = bench.walk64(host, Tensor(weights, "float32").to(dtype).float32(), b_in, depth)
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
    return float(error.max()), float((visited != bench.walk64(host, weights, b_in, depth)[1]).any((1, 2)).mean())


def own_dense(ops: Any, session: Any, inputs: Sequence[Any], w1: np.ndarray, b1: np.ndarray, w2: np.ndarray) -> Callable[[int], Work]:
    """This project's dense layer as a model runs it: two products of cuBLASLt, a GELU kernel between them."""
    first, bias, second = ops.matrix(Tensor(w1, "float32")), ops.vector(b1), ops.matrix(Tensor(w2, "float32"))
    weights = [(first, bias, second), *([copied(w) for w in (first, bias, second)] for _ in inputs[1:])]

    def work(tokens: int) -> Work:
        out = ops.empty(tokens, len(w2))

        def call(x: Any, first: Any, bias: Any, second: Any) -> None:
            for part in ops._parts(tokens, first):
                middle = session.take("middle", part.stop - part.start, len(w1))
                ops.linear(x[part], first, bias=bias, activation="gelu", out=middle)
                ops.linear(middle, second, out=out[part])

        calls = [functools.partial(call, x, *w) for x, w in zip(inputs, weights, strict=True)]
        return own_work(ops, session, calls, out)

    return work


def own_work(ops: Any, session: Any, calls: Sequence[Call], out: Any) -> Work:
    """Work of ops inside their session; the first call writes `out`."""

    def capture(launch: Call) -> Call:
        return functools.partial(session.capture(launch).launch, session.stream)

    return Work(session.stream, calls, capture, lambda: ops.bring(out)())


def bench_cmm(
    device: str,
    *,
    shapes: Sequence[tuple[int, int]] = ((1, 11), (16, 7), (64, 5), (128, 4), (512, 2)),
    tokens: Sequence[int] = (1, 32, 128, 1024, 4096, 16384, 65536),
    dtypes: Sequence[str] = DTYPES,
    hidden: int = 768,
    paths: str = "balanced",
    seconds: float = 0.05,
    dense: dict[str, Rival] | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """A row per (dtype, tokens, shape). Raises BackendError where a result is wrong: nothing wrong is timed."""
    if any(d not in DTYPES for d in dtypes):
        raise InputError(f"dtypes is {dtypes!r}, expected some of {', '.join(DTYPES)}")
    arrays_of = {shape: FFFCase(*shape, hidden, 1, paths).build(0)[1:] for shape in shapes}  # type: ignore[arg-type]
    weights = bench.dense_weights(hidden)
    floats: list[Any] = []
    rows = []
    for dtype in dtypes:
        ops = backends.get(device, dtype=dtype)
        ops = ops.fitted(hidden, 0, dtype)
        with ops.workspace() as session:
            if not floats:
                rate, flush = copy_rate(session.stream), flusher(ops.number)
                free = ops.cupy.cuda.runtime.memGetInfo()[0]
                sets = int(min(SETS, max(2, free // 2 // (16 * hidden * max(tokens)))))  # 16 bytes a value: both dtypes, out, a rival's
                floats = [ops.cupy.asarray(FFFCase(1, 0, hidden, max(tokens)).build(seed)[0]) for seed in range(1, 1 + sets)]
            inputs = [ops._as_act(x) for x in floats]
            outs = [ops.empty(*x.shape) for x in inputs]
            trees = {shape: prepared(ops, *arrays_of[shape], shape[1], sets) for shape in shapes}
            makes = {"own": own_dense(ops, session, inputs, *weights)}
            for name, rival in (dense or {}).items():
                if rival.dtype in (ops.act, "tf32" if ops.act == "float32" else ""):
                    makes[name] = rival.make(session.stream, floats, *weights)
            for count in tokens:
                works = {name: make(count) for name, make in makes.items()}
                check_dense(works, ops.bring(inputs[0][:CHECKED])()[:count], weights)
                checks = {}
                for shape in shapes:
                    calls = [
                        functools.partial(ops.fff, x[:count], t, out=y[:count]) for x, t, y in zip(inputs, trees[shape], outs, strict=True)
                    ]
                    works[str(shape)] = own_work(ops, session, calls, outs[0][:count])
                    checks[shape] = check_work(ops, works[str(shape)], inputs[0][:count], outs[0], trees[shape][0], arrays_of[shape], dtype)
                spreads = interleaved({name: replay(work) for name, work in works.items()}, seconds=seconds)
                cold: dict[str, Spread] = {}
                if count <= COLD_TOKENS:
                    cold = interleaved({name: replay(work, flush) for name, work in works.items()}, seconds=seconds)
                for shape in shapes:
                    case = FFFCase(*shape, hidden, count, paths)  # type: ignore[arg-type]
                    plan = ops.plan(count, trees[shape][0])
                    row = cmm_row(case, dtype, str(shape), spreads, cold, {n: (dense or {}).get(n) for n in makes}, rate)
                    row |= {"device": ops.device, "paths": paths, "sets": sets, "strategy": plan}
                    row |= {"max_error": checks[shape][0], "rerouted": checks[shape][1]}
                    rows.append(row)
                    report(row)
    return rows


def prepared(ops: Any, w_in: np.ndarray, b_in: np.ndarray, w_out: np.ndarray, depth: int, sets: int) -> list[Any]:
    """The trees of a layer, and copies of them."""
    first = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, depth)
    return [first, *(copied(first) for _ in range(sets - 1))]


def check_work(ops: Any, work: Work, x: Any, out: Any, trees: Any, arrays: tuple, dtype: str) -> tuple[float, float]:
    """check_fff of some tokens of what the first call writes; all that it should write must be numbers."""
    out.view(np.uint8).fill(0xFF)  # not a number in any dtype
    work.calls[0]()
    y = work.result()
    if not np.isfinite(y).all():
        raise BackendError(f"{(~np.isfinite(y)).any(1).sum()} of {len(y)} tokens are unwritten or not finite; nothing is timed")
    checked = min(CHECKED, max(8, CHECKED_NODES // (len(arrays[0]) * (trees.depth + 1))))
    some = np.random.default_rng().permutation(len(y))[:checked]
    return check_fff(ops, ops.rows(x, some), trees, arrays, y[some], dtype)


def check_dense(works: dict[str, Work], x: np.ndarray, weights: tuple) -> None:
    """Compare dense layers with float64 on the first tokens. Raises BackendError."""
    want = bench.dense64(x, *weights, gelu=True)
    for name, work in works.items():
        work.calls[0]()
        error = float(np.abs(work.result()[: len(x)] - want).max() / np.abs(want).max())
        if not error < 0.03:
            raise BackendError(f"the dense layer {name!r} is wrong: it differs from float64 by {error:g}; nothing is timed")


def cmm_row(
    case: FFFCase, dtype: str, key: str, spreads: dict[str, Spread], cold: dict[str, Spread], dense: dict[str, Rival | None], rate: float
) -> dict:
    """The arithmetic of a row. spreads, cold: us per call by name; dense: names of dense layers; rate: bytes per us of a copy."""
    mine, floor = spreads[key].median, floor_bytes(case, dtype) / rate
    us = {name: spreads[name].median for name in dense}
    exact = [name for name, rival in dense.items() if rival is None or rival.dtype != "tf32"]
    best = min(exact, key=lambda name: us[name])
    chilled = cold[key].median if cold else None
    return {
        "op": "fff",
        "shape": f"{case.trees}x{case.depth}",
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
        "limit": bench.DENSE_WIDTH / (case.trees * (case.depth + 1)),
    }


# floor us: x in and y out once, both rows of each node that can be visited once, at the rate of a copy
CMM_HEADER = (
    f"{'shape':>6} {'tokens':>6} {'dtype':>8} {'us':>9} {'p10..p90':>19} {'ns/token':>9} {'own dense':>9} {'best dense, us':>26} "
    f"{'x own':>6} {'x best':>6} {'x TF32':>6} {'cold us':>7} {'x cold':>6} {'floor us':>8} {'of floor':>8} {'max_err':>7} {'rerouted':>8} "
    "strategy"
)


def cmm_line(r: dict) -> str:
    """A row of bench_cmm as a line under CMM_HEADER."""
    spread, best = f"{r['p10']:.2f}..{r['p90']:.2f}", f"{r['best_dense']} {r['dense_us'][r['best_dense']]:.1f}"
    cold, cold_speedup = ("-", "-") if r["cold_us"] is None else (f"{r['cold_us']:.1f}", f"{r['cold_speedup']:.1f}x")
    tf32 = "-" if r["tf32"] is None else f"{r['tf32']:.1f}x"
    return (
        f"{r['shape']:>6} {r['tokens']:>6} {r['dtype']:>8} {r['us']:>9.2f} {spread:>19} {r['ns_per_token']:>9.2f} "
        f"{r['dense_us']['own']:>9.1f} "
        f"{best:>26} {r['speedup']['own']:>5.1f}x {r['speedup'][r['best_dense']]:>5.1f}x {tf32:>6} {cold:>7} {cold_speedup:>6} "
        f"{r['floor_us']:>8.2f} {r['share_of_floor']:>8.0%} {r['max_error']:>7.0e} {r['rerouted']:>8.1%} {r['strategy']}"
    )


# --- the paper's layers ----------------------------------------------------------------------------


def bench_ladder(
    device: str,
    *,
    tokens: int,
    hidden: int = 768,
    seconds: float = 0.05,
    others: dict[str, Callable[..., Callable[[int], Work]]] | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Dense 3072 and FFF 1x11 in float32: this project's kernels, and `others` whose names begin with "dense" or "fff"."""
    ops = backends.get(device, dtype="float32")
    ops = ops.fitted(hidden, 0, "float32")
    arrays = {"dense": bench.dense_weights(hidden), "fff": FFFCase(1, 11, hidden, 1).build(0)[1:]}
    with ops.workspace() as session:
        hosts = [FFFCase(1, 0, hidden, tokens).build(seed)[0] for seed in range(1, 1 + SETS)]
        inputs = [ops.cupy.asarray(x) for x in hosts]
        outs = [ops.empty(*x.shape) for x in inputs]
        trees = prepared(ops, *arrays["fff"], 11, SETS)
        calls = [functools.partial(ops.fff, x, t, out=y) for x, t, y in zip(inputs, trees, outs, strict=True)]
        works = {"dense own": own_dense(ops, session, inputs, *arrays["dense"])(tokens), "fff own": own_work(ops, session, calls, outs[0])}
        works |= {name: make(session.stream, inputs, *arrays[name.split()[0]])(tokens) for name, make in (others or {}).items()}
        some = hosts[0][:CHECKED]
        y, _, margin = bench.walk64(some, np.stack([arrays["fff"][0], arrays["fff"][2]], 2), arrays["fff"][1], 11)
        sure = margin[:, 0] > MARGIN["float32"]
        wants = {"dense": (bench.dense64(some, *arrays["dense"], gelu=True), slice(None)), "fff": (y[sure], sure)}
        replays: dict[str, Replay] = {}
        spreads: dict[str, Spread] = {}
        for name, work in works.items():
            once = elapsed(session.stream, work.calls[0])
            want, which = wants[name.split()[0]]
            error = float(np.abs(work.result()[: len(some)][which] - want).max() / np.abs(want).max())
            if not error < 1e-4:
                raise BackendError(f"{name} is wrong: it differs from float64 by {error:g}; nothing is timed")
            if once > 1e6:  # seconds: no second time
                spreads[name] = Spread(once, once, once)
            else:
                replays[name] = replay(work)
        spreads |= interleaved(replays, seconds=seconds)
    us = {name: spreads[name].median / tokens for name in works}
    rows = []
    for name in works:
        other = us.get("dense " + name.removeprefix("fff ")) if name.startswith("fff") else None
        rows.append(
            {
                "op": "ladder",
                "level": name,
                "tokens": tokens,
                "us_per_token": us[name],
                "p10": spreads[name].low / tokens,
                "p90": spreads[name].high / tokens,
                "against_same_level": other and other / us[name],
                "against_best_dense": min(t for n, t in us.items() if n.startswith("dense")) / us[name],
            }
        )
        report(rows[-1])
    return rows


# --- whole models ----------------------------------------------------------------------------------


class Encoder(NamedTuple):
    """A whole model on the GPU, ready for batches of one size.

    replay  the graph of its forward pass, ids on the device to hidden states on the device
    call    (which batch) -> ids on the host in, hidden states on the device out, and waited for
    parts   {part: Replay per layer}: "attention" (between the projections), "attention block", "ffn block"
    """

    replay: Replay
    call: Callable[[int], Any]
    parts: dict[str, Replay]


def own_encoder(encode: Any, batches: Sequence[np.ndarray]) -> Encoder:
    """fastinfer's, of batches (texts, tokens); `encode` is what bench_model.load_fastinfer gives."""
    from .backends.cuda import Session

    ops, weights = encode.model._runner.replicas[0]
    packed = [PackedBatch.from_ids(ids) for ids in batches]
    tokens = len(packed[0].ids)
    with ops.cupy.cuda.Device(ops.number):
        session, other = (Session(ops, ops.cupy.cuda.Stream(non_blocking=True)) for _ in range(2))

    def call(which: int) -> None:
        with session:
            ops.encode(weights, packed[which], session)
        session.stream.synchronize()

    call(0)
    ((graph, _),) = session.graphs.values()
    whole = Replay(session.stream, functools.partial(graph.launch, session.stream), 1, keep=session)

    with other:
        placed = other.place(packed[0], tokens, False)
        x = other.take("x", tokens, weights.hidden)
        ops.embed(placed, weights.embedding, out=x)
        qkv = [ops.empty(tokens, 3 * weights.hidden) for _ in weights.layers[:SETS]]
        for array, layer in zip(qkv, weights.layers, strict=False):
            ops.linear(x, layer.attention.qkv.weight, bias=layer.attention.qkv.bias, out=array)
        out = ops.empty(tokens, weights.hidden)
        start = x.copy()  # blocks work in place, and x would grow without bounds

        def restore() -> None:
            x[...] = start

        def attention(layer: Any) -> None:
            ops.attention_block(x, layer.attention, placed.cu_seqlens, weights, other)

        def feedforward(layer: Any) -> None:
            ops.ffn_block(x, layer.ffn, weights, other)

        attend = [functools.partial(ops.attention, q, placed.cu_seqlens, weights.heads, out=out) for q in qkv]
        parts = {"attention": replay(own_work(ops, other, attend, out))}
        for part, block in (("attention block", attention), ("ffn block", feedforward)):
            parts[part] = replay(own_work(ops, other, [functools.partial(block, layer) for layer in weights.layers], x), restore)
    return Encoder(whole, call, parts)


def started(replay: Replay, which: int) -> None:
    """A graph launched and waited for."""
    replay.launch()
    replay.stream.synchronize()


def bench_sizes(
    engines: dict[str, tuple[bench_model.Engine, Any]],
    oracle: bench_model.Oracle,
    vocabulary: int,
    *,
    sizes: Sequence[tuple[int, int]],
    seconds: float,
) -> Iterator[list[dict]]:
    """Per size a list of rows, one per engine: times of the graph, of its launch, of a whole call, of the way from ids to hidden states on
    the host (fastinfer's alone), all three by the host's clock, and of the parts of a layer.
    """
    wrong: Exception | None = None
    for texts, tokens in sizes:
        rng = np.random.default_rng(texts * tokens)
        inputs = [rng.integers(0, vocabulary, (texts, tokens)) for _ in range(SETS)]
        errors: dict[str, tuple[float, float]] = {}
        encoders: dict[str, Encoder] = {}
        for name, (engine, encode) in engines.items():
            if not engine.own and not hasattr(encode, "encoder"):  # it is for --texts
                continue
            if engine.own:
                encode.model._runner.replicas[0][0].batch_tokens = texts * tokens  # what is checked is cut as what is timed
            try:
                errors[name] = oracle.errors(engine, encode, inputs[0])
                encoders[name] = own_encoder(encode, inputs) if engine.own else encode.encoder(inputs)
            except Exception as error:
                if engine.own and not isinstance(error, BackendError):
                    raise
                wrong = error if engine.own else wrong
                print(f"left out: {engine} at {texts}x{tokens}: {error}", file=sys.stderr)
        spreads = interleaved({name: e.replay for name, e in encoders.items()}, seconds=seconds)
        starts = {name: functools.partial(started, e.replay) for name, e in encoders.items()}
        launches, walls = (
            bench.interleaved(calls, range(SETS), seconds=seconds, least=LEAST, pause=0)
            for calls in (starts, {name: e.call for name, e in encoders.items()})
        )
        own = {name: engines[name][1] for name in encoders if engines[name][0].own}
        states = bench.interleaved(own, inputs, seconds=seconds, least=LEAST, pause=0)
        of_parts = {
            part: interleaved({n: e.parts[part] for n, e in encoders.items() if part in e.parts}, seconds=seconds)
            for part in ("attention", "attention block", "ffn block")
        }
        rows = []
        for name in encoders:
            engine = engines[name][0]
            rows.append(
                {
                    "op": "gpu",
                    "engine": engine.name,
                    "model": engine.model,
                    "dtype": engine.dtype,
                    "texts": texts,
                    "tokens": tokens,
                    "graph_ms": spreads[name].median / 1e3,
                    "p10": spreads[name].low / 1e3,
                    "p90": spreads[name].high / 1e3,
                    "wall_ms": walls[name].median / 1e3,
                    "launch_us": launches[name].median - spreads[name].median,
                    "host_us": walls[name].median - spreads[name].median,
                    "states_ms": states[name].median / 1e3 if name in states else None,
                    "us_per_token": spreads[name].median / texts / tokens,
                    **{part.replace(" ", "_") + "_us": us[name].median if name in us else None for part, us in of_parts.items()},
                    **bench_model.ratios(name, {n: engines[n][0] for n in encoders}, {n: s.median for n, s in spreads.items()}),
                    "max_error": errors[name][0],
                    "mean_error": errors[name][1],
                }
            )
        if rows:
            yield rows
    if wrong:
        raise wrong


# --- the command -----------------------------------------------------------------------------------


def run(options: argparse.Namespace, ops: Any, rivals: Rivals | None) -> None:
    """Run what parsed options say, and print it."""
    if options.what == "gemm":
        raise InputError(f"gemm measures the CPU's matrix products; with device {options.device!r} there are cmm, ladder and model")
    options.seconds = 0.05 if options.seconds is None else options.seconds
    about = machine(ops)
    with ops.cupy.cuda.Device(ops.number):
        if options.what == "model":
            others = None if options.start or rivals is None else rivals.models  # theirs do not load in a process of their own
            bench_model.run(options, ops, about, others)
            return
        header, line = (bench.LADDER_HEADER, bench.ladder_line) if options.what == "ladder" else (CMM_HEADER, cmm_line)
        if not options.json:
            print("  ".join(f"{k} {v}" for k, v in about.items()))
            print(header, flush=True)

        def report(row: dict) -> None:
            print(json.dumps({**row, "machine": about}) if options.json else line(row), flush=True)

        if options.what == "ladder":
            for count in options.tokens or [128, 16384]:
                others = rivals and rivals.ladder
                bench_ladder(ops.device, tokens=count, seconds=options.seconds, others=others, report=report)
            return
        given = {k: v for k in ("tokens", "dtypes", "shapes") if (v := getattr(options, k)) is not None}
        rows = bench_cmm(ops.device, **given, paths=options.paths, seconds=options.seconds, dense=rivals and rivals.dense, report=report)
        if options.plot:
            against = "the best dense layer (3072 wide) of the same dtype"
            bench.plot_cmm(rows, options.plot, lambda r: r["speedup"][r["best_dense"]], against)
