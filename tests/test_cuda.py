"""The GPU backend against float64 and the NumPy backend. Tests that need no GPU, such as compiling, run wherever CuPy is."""

import dataclasses
import gc
import itertools
import os
import re
import sys
import threading
from types import SimpleNamespace

import backends
import builders
import numpy as np
import oracle
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_attention import in_float64
from test_fff import as_stored
from test_reference import CU, LENGTHS, layer_norm, norm_of

import fastinfer
from fastinfer import checkpoint
from fastinfer.activations import gelu
from fastinfer.backends.cuda import compiler, cublaslt, device, plan
from fastinfer.backends.cuda.memory import Memory
from fastinfer.backends.cuda.session import Sessions
from fastinfer.backends.cuda.weights import as_bits
from fastinfer.backends.reference import Reference
from fastinfer.bench.cases import FFFCase
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF, Answer, Classify, Dense, Embed, FillMask, HeadLayer, Ids, Norm, Positions, Project, Tag, Tasks, Unit
from fastinfer.heads import embed_sparse, embed_tokens
from fastinfer.retrieval import EmbedSparse, EmbedTokens, Expansion, Side, TokenLayer
from fastinfer.weights import Embedding
from fastinfer.weights import Norm as NormWeights

WHY_NOT = device.why_not()
needs_gpu = pytest.mark.skipif(WHY_NOT is not None, reason=f"no GPU here: {WHY_NOT}")
DTYPES = ("float32", "float16", "bfloat16", "int8")
# Allowed error relative to the largest value: a few times the rounding of activations (2^-11, 2^-8).
ERROR = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2, "int8": 2e-3}
ROUNDS_TO = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "float16"}


def rounded(values, dtype):
    """Values rounded as activations of this dtype."""
    return Tensor(values, "float32").to(ROUNDS_TO[dtype]).float32()


def sent(ops, values):
    """float32 values on the GPU, as activations."""
    return ops.memory.send("a test's array", as_bits(np.ascontiguousarray(values), ops.act))


def sent_norm(ops, norm):
    return NormWeights(*(ops.vector(Tensor(values, "float32")) for values in (norm.weight, norm.bias)))


def assert_near(got, want, dtype, factor=1):
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= factor * ERROR[dtype] * max(np.abs(want).max(), 1)


# --- without a GPU ---


# bfloat16 for each architecture, which lack different instructions for it; the others once. A program takes seconds.
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *((architecture, ("ACT_BFLOAT16", 72, 9)) for architecture in ("sm_70", "sm_80", "sm_90a")),
        ("sm_70", ("ACT_HALF", 1024, 8)),
        ("sm_80", ("ACT_FLOAT", 384, 12)),
        ("sm_90a", ("ACT_HALF", 768, 12)),
    ],
    ids=str,
)
def test_the_kernels_compile(architecture, options):
    pytest.importorskip("cupy", reason="CuPy, which calls the compiler, is not installed")
    try:
        supported = compiler.compiler().getSupportedArchs()
    except fastinfer.BackendError as error:
        pytest.skip(str(error))
    if int(architecture[3:5]) not in supported:
        pytest.skip(f"this NVRTC no longer knows {architecture}")
    act, hidden, heads = options
    trees = [("-DDEPTH=11",), ("-DDEPTH=4",)] + [("-DDEPTH=11", "-DROW_INT8")] * (act != "ACT_FLOAT")
    if options == ("ACT_HALF", 768, 12):  # the parts of trees with blocks that no other program has
        trees += [("-DDEPTH=4", "-DBLOCKS", "-DSILENT", "-DTREE_KIND=KIND_RELU"), ("-DLEAVES",)]
    scores = f"-DHEADS={heads}", "-DSCORES", "-DWINDOW", "-DDISTANCES", "-DRELATIVE"
    for more in [(f"-DHEADS={heads}",), scores, scores[:3], ("-DNARROW",), *trees]:
        program, kind = compiler.compile_kernels(architecture, (f"-D{act}", f"-DHIDDEN={hidden}", *more))
        assert kind == "cubin"
        assert program[1:4] == b"ELF"


def test_buckets():
    for tokens in range(1, 5000):
        size = plan.bucket(tokens)
        assert tokens <= size < max(1.125 * tokens, tokens + 8)
    assert [plan.bucket(n) for n in (16, 128, 4096, 16384, 32768)] == [16, 128, 4096, 16384, 32768]


def test_products_of_few_rows():
    """Blocks cover the product, all run at once, and are the smallest such blocks."""
    shared = 227 << 10
    assert plan.few_rows(16, 2304, 768, 132, shared) == ("product_1_3", (96, 1), 512 * 8 * (3 * 3 + 12))
    assert plan.few_rows(17, 768, 3072, 132, shared) == ("product_2_3", (32, 1), 512 * 8 * (3 * 12 + 12))
    assert plan.few_rows(128, 3072, 768, 132, shared) == ("product_2_12", (32, 4), 512 * 8 * (12 * 3 + 12))
    assert plan.few_rows(128, 8, 64, 132, shared) == ("product_2_3", (1, 4), 512 * 8 * (3 * 2 + 12))
    assert plan.few_rows(128, 3072, 768, 132, 99 << 10) is None  # too little shared memory
    assert plan.few_rows(129, 3072, 768, 132, shared) is None  # too many blocks
    assert plan.few_rows(16, 30528, 768, 132, shared) is None


# {(dtype, neurons per token): {tokens: us of (fff_trees_few, fff_trees, products)}}: benchmark, H100, D = 768; 9e9: too slow.
MEASURED = {
    ("float16", 128): {
        1: (8.6, 35.2, 11.0),
        128: (12.6, 60.2, 16.9),
        1024: (82.7, 60.2, 32.2),
        16384: (9e9, 525, 432),
    },
    ("float16", 384): {
        1: (13.1, 107, 11.0),
        128: (22.8, 180, 16.9),
        1024: (163, 180, 31.8),
        65536: (9e9, 9e9, 1692),
    },
    ("float16", 640): {1: (24.6, 185, 11.0), 512: (129, 293, 27.1), 4096: (9e9, 9e9, 104)},
    ("int8", 128): {1: (18.0, 9e9, 11.4), 128: (19.3, 9e9, 18.6)},
    ("int8", 384): {1: (14.3, 9e9, 11.4)},
    ("float32", 384): {1: (41.9, 289, 19.8), 64: (54.8, 428, 55.6), 128: (55.6, 416, 62.6), 512: (118, 417, 167)},
}


@pytest.mark.parametrize(("dtype", "neurons"), MEASURED, ids=str)
def test_the_cost_model_chooses_what_was_fastest(dtype, neurons):
    """The chosen strategy takes at most 5% more time than the fastest one."""
    for tokens, times in MEASURED[dtype, neurons].items():
        measured = dict(zip(("fff_trees_few", "fff_trees", "products"), times, strict=True))
        costs = plan.many_trees_costs(tokens, neurons, 4096, dtype, processors=132)
        assert measured[min(costs, key=costs.get)] <= 1.05 * min(times), (tokens, costs)


class FakeError(Exception):
    pass


@pytest.fixture
def fake_cupy(monkeypatch):
    """make(getDeviceCount) installs a driver that loads, and the part of CuPy that is used before a device is chosen."""

    def make(count):
        monkeypatch.setattr(device.ctypes, "CDLL", lambda name: None)
        runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=FakeError, runtimeGetVersion=lambda: 13020)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))

    return make


def refuse(error):
    def call(*_):
        raise error

    return call


def test_why_a_gpu_cannot_be_used(monkeypatch, fake_cupy):
    fake_cupy(lambda: 1)
    assert device.why_not() is None
    fake_cupy(refuse(FakeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")))
    assert re.match(r"CuPy finds no GPU to use: cudaErrorInsufficientDriver.*is the driver too old for CUDA 13, or does", device.why_not())
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert device.why_not() == "CuPy is missing; pip install 'fastinfer[cuda]' (CUDA 13) or 'fastinfer[cuda12]'"
    monkeypatch.setattr(device.ctypes, "CDLL", refuse(OSError("cannot open shared object file")))
    assert device.why_not() == "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    with pytest.raises(fastinfer.BackendError, match=r"(?s)'cuda' was asked for but cannot run: there is no NVIDIA driver.*Available here"):
        fastinfer.FFF(*FFFCase(1, 2, 8, 1).build(0)[1:], depth=2, device="cuda")


def test_numbers_of_devices(fake_cupy):
    fake_cupy(lambda: 3)
    assert [device.device_number(name) for name in ("cuda", "cuda:0", "cuda:2")] == [0, 0, 2]
    for name in ("cuda:3", "cuda:-1", "cuda:1.0", "cuda:x", "cuda:²", "cuda:0:1"):
        with pytest.raises(fastinfer.BackendError) as error:
            fastinfer.load(device=name)
        assert str(error.value) == f"device {name!r} was asked for, but this machine has 3 GPUs: cuda:0 to cuda:2"


def test_nvrtc_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nvrtc=SimpleNamespace(getVersion=refuse(RuntimeError("no libnvrtc.so")))))
    with pytest.raises(
        fastinfer.BackendError, match=r"NVRTC, .* cannot be loaded: no libnvrtc.so\n  pip install 'fastinfer\[cuda\]' brings it"
    ):
        compiler.cached_kernels("sm_90a", ())


def test_cublaslt_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(fastinfer.BackendError, match=r"cuBLASLt cannot be loaded: .*\n  pip install 'fastinfer\[cuda\]' brings it"):
        cublaslt.library.__wrapped__()


@pytest.mark.skipif(WHY_NOT is None, reason="there is a GPU here")
def test_without_a_gpu():
    with pytest.raises(fastinfer.BackendError, match=r"(?s)'cuda:1' was asked for but cannot run: .*Available here: numpy"):
        fastinfer.load(device="cuda:1")
    assert fastinfer.info()["devices"]["cuda"] == WHY_NOT


# --- ops ---

ONE_TREE, MANY_TREES = ["fff_tree", "fff_tree_few", "fff_subtrees"], ["fff_trees", "fff_trees_few"]
CASES = [
    *((FFFCase(1, 11, 768, 37), s) for s in ONE_TREE + MANY_TREES),
    *((FFFCase(16, 7, 384, 37), s) for s in (*MANY_TREES, "products")),
    *((FFFCase(p, d, 128, 300), "products") for p, d in ((64, 5), (128, 4), (512, 2), (1536, 1), (40, 0))),
    *((FFFCase(3, 4, 1024, 9, bias=False), s) for s in MANY_TREES),
    *((FFFCase(9, 4, 72, 50, paths="skewed", bias=False), s) for s in ("fff_trees", "products")),
    # depths and widths that are, and are not, multiples of a step of levels and of a thread's part of a row
    *((FFFCase(1, depth, 72, 21, bias=False), s) for depth in (0, 1, 2, 3, 4) for s in ONE_TREE),
    *((FFFCase(1, 15, 16, 17), s) for s in ONE_TREE),
    *((FFFCase(1, 11, 2048, 9), s) for s in ONE_TREE),
    *((FFFCase(1, 11, 384, 1030, paths=paths), s) for paths in ("balanced", "left", "right", "ties") for s in ONE_TREE),
    *((FFFCase(64, 5, 40, 1030, paths=paths), "products") for paths in ("left", "right", "ties")),
]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "strategy"), CASES, ids=str)
def test_every_strategy(case, strategy, dtype):
    """Away from near-ties, routes are those of float64. The output is right along the routes, in every dtype."""
    x, w_in, b_in, w_out = case.build(5)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device="cuda", dtype=dtype)
    layer._ops.plan = lambda tokens, trees: strategy
    trees = layer._layer.trees
    if strategy == "products" and trees.products is None:
        pytest.skip(f"{strategy} does not do {case} in {dtype} on this GPU")
    some = np.s_[:: max(1, case.tokens // 30)]
    x = rounded(x, dtype)
    y = layer(x)
    nodes, z = layer.routes(x)
    rows_in, rows_out = (as_stored(w, dtype if dtype == "int8" else ROUNDS_TO[dtype]) for w in (w_in, w_out))
    want_nodes, want_z = oracle.walk(x[some], rows_in, b_in, case.depth)
    # Products round their logits.
    margin = (
        {"float16": 5e-3, "bfloat16": 4e-2}.get(ROUNDS_TO[dtype], backends.ROUTE_MARGIN)
        if strategy == "products"
        else backends.ROUTE_MARGIN
    )
    sure = ((np.abs(want_z[..., :-1]) > margin) | (want_z[..., :-1] == 0)).all(-1)
    assert sure.mean() > (0.9 if margin < 4e-2 else 0.7)
    assert_array_equal(nodes[some][sure], want_nodes[sure])
    assert_allclose(z[some][sure], want_z[sure], rtol=margin, atol=margin)
    assert_near(y[some], oracle.add_up(x[some], rows_in, b_in, rows_out, nodes[some]), dtype, factor=2 if strategy == "products" else 1)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", [*ONE_TREE, *MANY_TREES, "products"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_fff_between_norms(order, strategy, dtype):
    """The fused form gives the result of the separate ops."""
    case = FFFCase(1, 11, 384, 70) if strategy in ONE_TREE else FFFCase(8, 5, 384, 70)
    x, w_in, b_in, w_out = case.build(6)
    rng = np.random.default_rng(7)
    before, after = norm_of(rng, 384), norm_of(rng, 384)
    bias = rng.standard_normal(384, np.float32)
    ops, host = fastinfer.backends.get("cuda", dtype=dtype), fastinfer.backends.get("numpy")
    ops = ops.fitted(384, 0, dtype)
    nodes = Tensor(np.stack([w_in, w_out], 2), "float32").to(dtype)
    trees = ops.trees(nodes, b_in, None, case.depth)
    ops.plan = lambda tokens, trees: strategy
    norms = [sent_norm(ops, norm) for norm in (before, after)]
    there = sent(ops, x)
    out = there if order == "pre" or strategy != "products" else ops.empty(*x.shape)
    ops.fff_between_norms(
        there, trees, bias=sent(ops, bias), residual=there if order == "pre" else None, add_input=order == "post", norm=norms[0],
        out_norm=norms[1] if order == "post" else None, eps=1e-5, out=out,
    )  # fmt: skip
    h, want = np.empty_like(x), np.empty_like(x)
    host.norm(rounded(x, dtype), before, 1e-5, out=h)
    # The rounding of h may decide a token's route, so use the routes that the same norm and trees record.
    routed, normed = [ops.empty(70, case.trees, case.depth + 1, dtype=t) for t in (np.int32, np.float32)], ops.empty(*x.shape)
    ops.norm(sent(ops, x), norms[0], 1e-5, out=normed)
    ops.fff(normed, trees, out=ops.empty(*x.shape), nodes=routed[0], z=routed[1])
    rows_in, rows_out = (as_stored(w, ROUNDS_TO[dtype] if dtype != "int8" else dtype) for w in (w_in, w_out))
    want = oracle.add_up(h, rows_in, b_in, rows_out, ops.bring(routed[0])(), bias) + (rounded(x, dtype) if order == "pre" else h)
    if order == "post":
        want = layer_norm(want, after, 1e-5)
    got = ops.bring(out)()
    near = np.abs(got - want).max(1) <= 4 * ERROR[dtype] * np.abs(want).max()
    assert near.mean() >= (1 if dtype == "float32" else 0.9)  # the other tokens are near-ties


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (3, 24), (12, 32), (2, 40), (12, 64), (1, 72), (2, 128)])
def test_attention(dtype, heads, size):
    ops = fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(heads * size, heads, dtype)
    for lengths in ([1], [2, 5], [12, 13, 1, 31], [33, 64, 7, 128, 129], [15] * 40, [700, 3, 65]):
        qkv = rounded(np.random.default_rng([size, len(lengths)]).standard_normal((sum(lengths), 3 * heads * size), np.float32), dtype)
        out = ops.empty(sum(lengths), heads * size)
        out.fill(255)
        cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ops.attention(sent(ops, qkv), cu, heads, out=out)
        assert_near(ops.bring(out)(), in_float64(qkv, lengths, heads, size), dtype)
        keys = np.array([1 + length // 3 for length in lengths], np.int32)
        ops.attention(sent(ops, qkv), cu, heads, keys=keys, out=out)
        assert_near(ops.bring(out)(), in_float64(qkv, lengths, heads, size, keys), dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("heads", "size"), [(2, 32), (2, 64)])
def test_attention_of_a_batch_that_is_filled_up(heads, size, dtype):
    """Padding tokens, whose bounds are 0 and 0, change no text, and their output is not written. Scores grow along the batch."""
    lengths, filling = [1, 2, 15, 16, 17, 63, 64, 65, 127, 200, 513], 37
    tokens, ops = sum(lengths), fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(heads * size, heads, dtype)
    qkv = np.random.default_rng(size).standard_normal((tokens, 3 * heads * size), np.float32)
    qkv[:, heads * size : 2 * heads * size] *= np.linspace(0.2, 4, tokens, dtype=np.float32)[:, None]
    qkv = rounded(qkv, dtype)
    filled = np.concatenate([qkv, np.full((filling, qkv.shape[1]), np.nan, np.float32)])
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    bounds = np.zeros((tokens + filling, 2), np.int32)
    bounds[:tokens] = np.stack([np.repeat(cu[:-1], lengths), np.repeat(cu[1:], lengths)], 1)
    out = ops.empty(tokens + filling, heads * size)
    out.view(np.uint8).fill(255)
    ops.attention(sent(ops, filled), ops.memory.send("bounds", bounds), heads, out=out)
    assert_near(ops.bring(out[:tokens])(), in_float64(qkv, lengths, heads, size), dtype, factor=2)
    assert (out[tokens:].get().view(np.uint8) == 255).all()


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("activation", [None, "gelu", "tanh", "relu"])
@pytest.mark.parametrize(
    "shape",
    [(5, 8, 16), (1, 33, 7), (300, 64, 3), (16, 768, 2304), (9, 3072, 776), (50, 768, 2304), (100, 776, 3072), (130, 768, 768)],
    ids=str,
)
def test_linear(shape, activation, dtype):
    rng = np.random.default_rng(8)
    tokens, width, outputs = shape
    x, residual, weight, bias = (
        rounded(rng.standard_normal(s, np.float32) / np.float32(k), dtype)
        for s, k in (((tokens, width), 1), ((tokens, outputs), 1), ((outputs, width), width**0.5), ((outputs,), 1))
    )
    ops = fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(64, 0, dtype)
    plain = x.astype(np.float64) @ weight.T + bias
    want = {None: np.array, "gelu": np.vectorize(oracle.gelu), "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}[activation](plain)
    matrix, offset = (make(Tensor(values, "float32")) for make, values in ((ops.matrix, weight), (ops.vector, bias)))
    assert ops.outputs(matrix) == outputs
    out, more = ops.empty(tokens, outputs), sent(ops, residual)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, out=out)
    assert_near(ops.bring(out)(), want, dtype)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, residual=more, out=more)
    assert_near(ops.bring(more)(), want + residual, dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("hidden", [8, 384, 1000])
def test_norm_embed_and_pool(hidden, dtype):
    rng = np.random.default_rng(9)
    ops = fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(hidden, 0, dtype)
    word, position, types = (rounded(rng.standard_normal((n, hidden), np.float32), dtype) for n in (30, 16, 2))
    norm = norm_of(rng, hidden)
    norm = NormWeights(rounded(norm.weight, dtype), rounded(norm.bias, dtype))
    tables = (ops.vector(Tensor(table, "float32")) for table in (word, position, types))
    embedding = Embedding(*tables, norm=sent_norm(ops, norm), eps=1e-6)
    ids, kinds = ([rng.integers(0, n, length) for length in LENGTHS] for n in (30, 2))
    out = ops.empty(CU[-1], hidden)
    ops.embed(fastinfer.PackedBatch.from_ids(ids, kinds), embedding, out=out)
    place = np.concatenate([np.arange(n) for n in LENGTHS])
    want = layer_norm(word[np.concatenate(ids)] + position[place] + types[np.concatenate(kinds)], norm, 1e-6)
    assert_near(ops.bring(out)(), want, dtype)

    x = ops.bring(out)().astype(np.float64)
    texts = np.split(x, CU[1:-1])
    for kind, of in {
        "mean": lambda t: t.mean(0),
        "cls": lambda t: t[0],
        "max": lambda t: t.max(0),
        "lse": lambda t: np.log(np.exp(t).sum(0)),
        "lasttoken": lambda t: t[-1],
        "sqrtmean": lambda t: t.sum(0) / len(t) ** 0.5,
    }.items():
        for skip in (0, 3):
            pooled = ops.empty(len(LENGTHS), 3 * hidden, dtype=np.float32)
            ops.pool(out, CU, kind, skip=skip, out=pooled[:, hidden : 2 * hidden])
            got = ops.bring(pooled[:, hidden : 2 * hidden])()
            assert_allclose(got, [of(t[min(skip, len(t) - 1) :]) for t in texts], rtol=1e-4, atol=1e-4)
    for skip in (0, 3):
        pooled = ops.empty(len(LENGTHS), hidden, dtype=np.float32)
        ops.pool(out, CU, "weightedmean", skip=skip, out=pooled)
        firsts = [min(skip, len(t) - 1) for t in texts]
        want = [np.average(t[first:], 0, np.arange(first, len(t)) + 1) for t, first in zip(texts, firsts, strict=True)]
        assert_allclose(ops.bring(pooled)(), want, rtol=1e-4, atol=1e-4)
    units = ops.empty(*pooled.shape)
    ops.unit(pooled, out=units)
    want = ops.bring(pooled)().astype(np.float64)
    assert_near(ops.bring(units)(), want / np.linalg.norm(want, axis=1, keepdims=True), dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_norms_far_from_zero(dtype):
    """The mean's rounding error is subtracted. A constant row gives the bias. A variance beyond float32 gives NaN."""
    rng = np.random.default_rng(10)
    ops = fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(384, 0, dtype)
    given = norm_of(rng, 384)
    norm = sent_norm(ops, given)
    given = NormWeights(rounded(given.weight, dtype), rounded(given.bias, dtype))
    x = np.concatenate([rng.standard_normal((1, 384)) + mean for mean in (0, 10, 300, 1e4, 1e6)]).astype(np.float32)
    x = rounded(x[: 5 if dtype == "float32" else 3], dtype)
    out = ops.empty(*x.shape)
    ops.norm(sent(ops, x), norm, 1e-12, out=out)
    assert_near(ops.bring(out)(), layer_norm(x, given, 1e-12), dtype)
    x = np.repeat(rounded(np.array([[0], [7], [10], [-1 / 3], [1e4]], np.float32), dtype), 384, 1)
    out = ops.empty(*x.shape)
    ops.norm(sent(ops, x), norm, 1e-12, out=out)
    assert (np.abs(ops.bring(out)() - given.bias).max(1) <= 4 * ERROR[dtype] + 1e-13 * np.abs(x[:, 0]) / 1e-12**0.5).all()
    if dtype != "float16":
        ops.norm(sent(ops, rng.standard_normal((5, 384), np.float32) * np.float32(1e25)), norm, 1e-12, out=out)
        assert np.isnan(ops.bring(out)()).all()


POISONS = (np.nan, np.inf, -np.inf)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (3, 24), (2, 32), (2, 40), (2, 64), (1, 72), (1, 128)])
def test_attention_keeps_what_is_no_number_to_its_text(heads, size, dtype):
    """NaN and infinity in a text, in any tile of keys, leave the other texts right. The text itself is not finite."""
    ops, lengths = fastinfer.backends.get("cuda", dtype=dtype), [3, 1, 70, 2, 17, 40, 130, 1, 33, 8, 5]
    ops = ops.fitted(heads * size, heads, dtype)
    tokens, bounds = sum(lengths), np.cumsum([0, *lengths])
    clean = rounded(np.random.default_rng(size).standard_normal((tokens, 3 * heads * size), np.float32), dtype)
    want = in_float64(clean, lengths, heads, size)
    for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for part in (np.s_[begin:end], np.s_[begin : begin + 1], np.s_[end - 1 : end]):
            qkv = clean.copy()
            qkv[part] = POISONS[i % 3]
            out = ops.empty(tokens, heads * size)
            ops.attention(sent(ops, qkv), bounds.astype(np.int32), heads, out=out)
            got = ops.bring(out)()
            assert not np.isfinite(got[begin:end]).any()
            assert_near(np.delete(got, np.s_[begin:end], 0), np.delete(want, np.s_[begin:end], 0), dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_pooling_and_relu_keep_what_is_no_number(dtype):
    ops = fastinfer.backends.get("cuda", dtype=dtype)
    ops = ops.fitted(16, 0, dtype)
    x = np.random.default_rng(12).standard_normal((6, 16), np.float32)
    x[1, 2] = x[2, 3] = np.nan
    there, cu = sent(ops, x), np.array([0, 1, 4, 6], np.int32)
    for kind in ("mean", "max", "cls", "lse", "weightedmean", "sqrtmean"):
        out = ops.empty(3, 16, dtype=np.float32)
        ops.pool(there, cu, kind, out=out)
        bad = np.zeros((3, 16), bool)
        bad[1, 2], bad[1, 3] = True, kind != "cls"
        assert_array_equal(np.isnan(ops.bring(out)()), bad)
    out = ops.empty(6, 16)
    ops.linear(there, ops.matrix(Tensor(np.eye(16, dtype=np.float32), "float32")), activation="relu", out=out)
    assert np.isnan(ops.bring(out)()[1:3]).all()


# --- models ---

TASKS = Tasks(
    Embed("mean", True), FillMask(True, tied=True, bias=True),
    Classify(("no", "yes", "so"), "softmax", "cls", (HeadLayer(9, "tanh"),)), Tag(("O", "B-x", "I-x")), Answer(),
)  # fmt: skip
MODELS = {
    "post, one tree": {"norm": Norm("post", 1e-12), "ffn": (FFF(1, 8),) * 3},
    "pre, one tree": {"norm": Norm("pre", 1e-12), "ffn": (FFF(1, 8, bias_out=True),) * 3, "final_norm": True},
    "post, always-on part": {"norm": Norm("post", 1e-12), "ffn": (FFF(16, 4, dense=24, bias_out=True),) * 3},
    "pre, mixed": {
        "norm": Norm("pre", 1e-12),
        "ffn": (FFF(2, 5, dense=24), Dense(100), FFF(1, 3, children=True, nodes=11)),
        "token_types": 0,
    },
    "dense": {"norm": Norm("post", 1e-5), "ffn": (Dense(256),) * 3, "positions": Positions("scaled-sinusoidal", 600)},
}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def folder(request, tmp_path_factory):
    options = {"hidden": 64, "heads": 2, "layers": 3, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600}
    config = builders.tiny(**options | {"token_types": 2, "ids": Ids(0, 4, 2, 3), "tasks": TASKS} | MODELS[request.param])
    path = tmp_path_factory.mktemp("gpu")
    checkpoint.save(path, config, builders.weights(config))
    return path


def batch_of(lengths, types=True, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 101, n).tolist() for n in lengths]
    return fastinfer.PackedBatch.from_ids(ids, [rng.integers(0, 2, n).tolist() for n in lengths] if types else None)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_layers_after_pooling_agree_with_numpy(tmp_path, dtype):
    layers = (Unit(), Project(24, True, "tanh"), Unit(), Project(10, False))
    head = Embed(("mean", "weightedmean", "sqrtmean", "lasttoken"), True, layers)
    sizes = {"hidden": 64, "heads": 2, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600, "ffn": (Dense(100),)}
    config = builders.tiny(**sizes, tasks=Tasks(head))
    checkpoint.save(tmp_path, config, builders.weights(config))
    batch = batch_of((1, 5, 300, 2), types=False)
    want = fastinfer.load(tmp_path, device="numpy").embed(batch)
    assert_near(fastinfer.load(tmp_path, device="cuda", dtype=dtype).embed(batch), want, dtype, factor=8)


class Along(Reference):
    """The NumPy backend with routes that the test gives. nodes: an array (T, P, depth + 1) per layer that has trees."""

    def __init__(self, nodes):
        self._nodes = iter(nodes)

    def fff(self, x, trees, *, bias=None, residual=None, out, nodes=None, z=None):
        y = np.zeros_like(x) if residual is None else residual.copy()
        for p, path in enumerate(next(self._nodes).transpose(1, 2, 0)):
            for at in path:
                logit = np.einsum("td,td->t", x, trees.nodes[p, at, 0]) + (0 if trees.b_in is None else trees.b_in[p, at])
                y += np.where(at >= 0, gelu(logit), 0)[:, None] * trees.nodes[p, at, 1]
        out[...] = y if bias is None else y + bias


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_agrees_with_numpy(folder, dtype):
    """Away from near-ties, float32 routes are NumPy's. Along the GPU's routes, hidden states are NumPy's. So are heads."""
    host, model = fastinfer.load(folder, device="numpy"), fastinfer.load(folder, device="cuda", dtype=dtype)
    batch = batch_of((1, 5, 17, 64, 130, 300, 2), types=host.config.token_types > 0)
    config, stored = checkpoint.load(folder)
    if dtype == "int8":  # use the values that its trees hold
        for name in [n for n in stored if n.endswith("ffn.nodes")]:
            stored[name] = Tensor(stored[name].to("int8").float32(), "float32")
    got, routes = model.hidden_states(batch, layers=(0, 1, -1)), model.routes(batch)
    # The backend orders texts by length, so the reference must use the same order for its routes.
    order = np.argsort(-batch.lengths, kind="stable")
    taken = [np.concatenate([routes[b][i][0] for b in order]) for i in range(config.layers) if routes[0][i] is not None]
    ops, sorted_batch = Along(taken), batch.select(order)
    taps = {i: np.empty((len(batch.ids), config.hidden), np.float32) for i in (0, 1)}
    last = ops.encode(ops.prepare(config, stored), sorted_batch, ops.workspace(), taps=taps)
    for want, part in ((taps[0], 0), (taps[1], 1), (last, 2)):
        assert_near(np.concatenate([got[b][part] for b in order]), want, dtype, factor=8)
    if dtype == "float32":
        for theirs, ours in zip(host.routes(batch), routes, strict=True):
            for t, o in zip(theirs, ours, strict=True):
                assert (t is None) == (o is None)
                if t is not None:
                    assert (t[0] == o[0]).mean() > 0.995
        assert_allclose(model.embed(batch), host.embed(batch), atol=1e-4)
        for task in ("classify", "tag", "answer", "fill_mask"):
            for a, b in zip(model.logits(batch, task=task), host.logits(batch, task=task), strict=True):
                assert_allclose(a, b, atol=2e-3, rtol=1e-3)
        for a, b in zip(model.hidden_states(batch, batch_tokens=200), got, strict=True):
            assert_allclose(a, b[-1], atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_sparse_weights_and_vectors_of_tokens_are_those_of_numpy(tmp_path, monkeypatch, dtype, pooling):
    """Queries are filled up with tokens that the others do not see; logits are decoded in parts that end inside texts."""
    late = EmbedTokens((TokenLayer(24, True, "tanh"), TokenLayer(16)), Side("", 6), Side("", 7), Expansion(40, 1), (8, 9))
    options = {"hidden": 64, "heads": 2, "layers": 3, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600}
    tasks = Tasks(fill_mask=FillMask(True), embed_sparse=EmbedSparse(pooling), embed_tokens=late)
    builders.save(tmp_path, builders.tiny(**options | MODELS["dense"] | {"token_types": 2, "tasks": tasks}))
    host, model = fastinfer.load(tmp_path, device="numpy"), fastinfer.load(tmp_path, device="cuda", dtype=dtype)
    batch = batch_of((1, 5, 17, 64, 130, 300, 2))
    query = embed_tokens.prepared(batch, late, query=True)
    for _ in range(2):  # the graphs of other calls between them keep their bounds
        assert_near(np.concatenate(model.embed_tokens(query, query=True)), np.concatenate(host.embed_tokens(query, query=True)), dtype, 8)
        assert_near(np.concatenate(model.embed_tokens(batch)), np.concatenate(host.embed_tokens(batch)), dtype, 8)
    want = host.embed_sparse(batch).toarray()
    assert_near(model.embed_sparse(batch).toarray(), want, dtype, 8)
    monkeypatch.setattr(embed_sparse, "tokens_at_once", lambda *_: 50)
    assert_near(model.embed_sparse(batch).toarray(), want, dtype, 8)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_text_keeps_what_is_no_number_to_itself(tmp_path, kind, dtype):
    """If a token's embedding is NaN or infinite, every answer for its text is not finite. Other texts keep their answers."""
    options = {"hidden": 64, "heads": 2, "layers": 3, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600}
    config = builders.tiny(**options | {"ids": Ids(0, 4, 2, 3), "tasks": TASKS} | MODELS[kind] | {"token_types": 0})
    config = dataclasses.replace(config, tasks=dataclasses.replace(TASKS, fill_mask=FillMask(True, tied=False)))
    made = builders.weights(config)
    for token, poison in zip((98, 99, 100), POISONS, strict=True):
        made["embedding.word"].data[token] = poison
    checkpoint.save(tmp_path, config, made)
    model = fastinfer.load(tmp_path, device="cuda", dtype=dtype, validate=False)
    lengths = (3, 1, 70, 2, 17, 130, 1, 33, 8, 5)
    rng = np.random.default_rng(11)
    rows = [rng.integers(0, 98, n).tolist() for n in lengths]

    def asked(ids):
        batch = fastinfer.PackedBatch.from_ids(ids)
        parts = [model.hidden_states(batch), model.embed(batch, normalize=False), model.logits(batch, task="classify")]
        parts += [model.logits(batch, task=task, positions="all") for task in ("tag", "answer", "fill_mask")]
        return [list(text) for text in zip(*parts, strict=True)]

    want = asked(rows)
    for text in (0, 1, 2, 5, 9):
        ids = [list(row) for row in rows]
        ids[text][rng.integers(lengths[text])] = 98 + text % 3
        got = asked(ids)
        assert not any(np.isfinite(a).all() for a in got[text])
        others = sorted(set(range(len(lengths))) - {text})
        assert all(np.isfinite(a).all() for i in others for a in got[i])
        a, b = (np.concatenate([states[i][0] for i in others]) for states in (got, want))
        near = np.abs(a - b).max(1) <= 8 * ERROR[dtype] * np.abs(b).max()
        # Another order of sums may change the route of a token near a tie.
        assert near.mean() >= (1 if kind == "dense" else 0.97 if dtype == "float32" else 0.7)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_routes_are_those_of_the_forward_pass(folder, dtype):
    """The graph, and the ops one by one with routes recorded, give the same bits."""
    model, batch = fastinfer.load(folder, device="cuda", dtype=dtype), batch_of((40, 3, 100), types=False)
    first = model.hidden_states(batch)
    again, tapped = model.hidden_states(batch), model.hidden_states(batch, layers=(1, -1))
    for a, b, c in zip(first, again, tapped, strict=True):
        assert_array_equal(a, b)
        assert_array_equal(a, c[1])
    model.routes(batch)


@needs_gpu
def test_graphs_of_all_sizes_agree_and_are_reused(folder):
    model = fastinfer.load(folder, device="cuda")
    batch = batch_of(range(1, 60), types=False)
    whole = model.hidden_states(batch)
    for tokens in (1, 7, 64, 65, 500, 10_000, 64):
        for a, b in zip(model.embed(batch, batch_tokens=tokens, normalize=False), whole, strict=True):
            assert_allclose(a, b.mean(0), atol=1e-4)
    session = model._runner.replicas[0].ops.sessions.idle[0]
    sizes = set(session.graphs)
    model.embed(batch, batch_tokens=10_000)
    assert set(session.graphs) == sizes
    model.release()
    assert not model._runner.replicas[0].ops.sessions.idle
    assert_allclose(model.embed(batch, normalize=False)[9], whole[9].mean(0), atol=1e-4)


@needs_gpu
def test_threads_and_streams(folder):
    cupy = pytest.importorskip("cupy")
    model = fastinfer.load(folder, device="cuda")
    batches = [batch_of(np.random.default_rng(i).integers(1, 80, 30), types=False, seed=i) for i in range(8)]
    want, got = [model.embed(b) for b in batches], [None] * len(batches)

    def work(i):
        with cupy.cuda.Stream(non_blocking=True):
            for _ in range(5):
                got[i] = model.embed(batches[i], batch_tokens=300)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for a, b in zip(got, want, strict=True):
        assert_allclose(a, b, atol=1e-4)


@needs_gpu
def test_the_callers_device_and_stream_stay(folder):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    try:
        fastinfer.load(folder, device="cuda").embed(batch_of((5, 9), types=False))
        assert cupy.cuda.get_current_stream() == stream
    finally:
        cupy.cuda.Stream.null.use()


@needs_gpu
def test_a_list_of_devices(folder):
    """All GPUs, or the first one twice, give the answers of one."""
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    many = fastinfer.load(folder, device=[f"cuda:{i % count}" for i in range(max(2, count))])
    one, batch = fastinfer.load(folder, device="cuda"), batch_of(range(1, 80), types=False)
    assert_allclose(many.embed(batch, batch_tokens=200), one.embed(batch), atol=1e-4)
    assert_allclose(many.logits(batch, task="classify", batch_tokens=100), one.logits(batch, task="classify"), atol=2e-3)


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_of_the_gpu(dtype):
    import cupy

    x, w_in, b_in, w_out = FFFCase(2, 5, 40, 30).build(4)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=5, device="cuda", dtype=dtype)
    want = layer(x)
    there = cupy.asarray(x)
    got = layer(there)
    assert isinstance(got, cupy.ndarray)
    assert got.dtype == np.float32
    assert_allclose(got.get(), want, atol=1e-6)
    out = cupy.empty_like(there)
    assert layer(there, out=out) is out
    assert_array_equal(out.get(), got.get())
    nodes, _ = layer.routes(there)
    assert isinstance(nodes, cupy.ndarray)
    assert_array_equal(nodes.get(), layer.routes(x)[0])
    half = layer(there.astype(np.float16))
    assert half.dtype == np.float16
    assert_allclose(half.get(), want, atol=0.1)
    assert_allclose(fastinfer.fff(there, *(cupy.asarray(w) for w in (w_in, b_in, w_out)), depth=5, device="cuda").get(), layer(x), atol=0.2)
    with pytest.raises(fastinfer.ShapeError, match=r"x is \(30, 8\), expected \(T, 40\)"):
        layer(there[:, :8])
    with pytest.raises(fastinfer.DtypeError, match="x has dtype float64"):
        layer(there.astype(np.float64))
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        assert_allclose(cupy.asnumpy(layer(torch.from_numpy(x).cuda())), want, atol=1e-6)


@needs_gpu
def test_what_a_gpu_cannot_take(tmp_path):
    config = builders.tiny(hidden=36, heads=3)
    checkpoint.save(tmp_path, config, builders.weights(config))
    with pytest.raises(fastinfer.BackendError, match=r"hidden is 36 and heads 3, but the GPU backend needs a head size .* multiple of 8"):
        fastinfer.load(tmp_path, device="cuda")
    with pytest.raises(fastinfer.BackendError, match=r"device 'cuda:99' was asked for, but this machine has \d+ GPU"):
        fastinfer.load(tmp_path, device="cuda:99")


def test_a_forked_process_is_told():
    sessions = Sessions(Memory(None, 0, 0), "float32")
    sessions.process = os.getppid()
    with pytest.raises(fastinfer.BackendError, match=r"cuda:0 was set up by process \d+, of which this one is a fork: .*\n  Start"):
        sessions.take()


@pytest.fixture
def limited_memory():
    """limit(bytes) allows so many more bytes of the GPU's memory until the test ends. It uses a new pool, because the pool of the
    process may hold free memory from other tests.
    """
    import cupy

    pool = cupy.cuda.MemoryPool()
    cupy.cuda.set_allocator(pool.malloc)

    def limit(more):
        gc.collect()
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + more)

    yield limit
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@needs_gpu
def test_memory_that_runs_out(folder, limited_memory):
    """Errors name the array that did not fit. When memory is free again, calls succeed."""
    model, batch = fastinfer.load(folder, device="cuda"), batch_of((5, 9), types=False)
    want = model.embed(batch)
    model.release()
    limited_memory(100 << 10)
    with pytest.raises(fastinfer.BackendError, match=r": [\w.]+: cuda:0 has no room for .*: float32 \(.*MB are free\.\n  Give"):
        fastinfer.load(folder, device="cuda")
    with pytest.raises(
        fastinfer.BackendError, match=r"^cuda:0 has no room for the (buffer '\w+'|workspace of products): .* MB are free\.\n"
    ):
        model.embed(batch)
    limited_memory(1 << 30)
    assert_array_equal(model.embed(batch), want)


@needs_gpu
def test_memory_that_runs_out_in_a_layer(limited_memory):
    """The output fits, but the copy that CuPy makes for the caller does not."""
    import cupy

    x, w_in, b_in, w_out = FFFCase(1, 5, 768, 2000).build(4)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=5, device="cuda", dtype="float16")
    there = cupy.asarray(x)
    want = layer(there).get()
    limited_memory(int(1.2 * x.nbytes))  # enough for float16 input and output, but not for a float32 output
    with pytest.raises(fastinfer.BackendError, match=r"cuda:0 has no room for a copy \(Out of memory allocating .*\); .* MB are free"):
        layer(there)
    limited_memory(1 << 30)
    assert_array_equal(layer(there).get(), want)
