"""Conditional matrix multiplication: float64 loops against the NumPy reference and every ISA of this machine."""

import functools
import multiprocessing
import zlib

import backends
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special
from test_gemm import int8

import fastinfer
from fastinfer.bench.cases import PAPER_SHAPES, FFFCase
from fastinfer.checkpoint import Tensor

CASES = [
    *(FFFCase(trees, depth, hidden=32, tokens=5) for trees, depth in PAPER_SHAPES),
    *(FFFCase(1, depth, hidden=16, tokens=17) for depth in range(16)),
    FFFCase(1, 11, hidden=768, tokens=40),
    FFFCase(3, 4, hidden=33, tokens=21, bias=False),
    FFFCase(2, 3, hidden=1, tokens=9),
    FFFCase(1, 11, hidden=64, tokens=1),
    FFFCase(2, 5, hidden=24, tokens=0),
    *(FFFCase(2, 6, hidden=48, tokens=30, paths=paths) for paths in ("skewed", "left", "right", "ties")),
    FFFCase(2, 6, hidden=48, tokens=1, paths="ties", bias=False),
]

# Both strategies (deep trees; many small ones) with partly full last vectors, strips and blocks. Layers have about as many rows each.
STRATEGIES = [
    FFFCase(1, 11, hidden=100, tokens=1030),
    FFFCase(1, 15, hidden=20, tokens=1030),
    FFFCase(4, 9, hidden=33, tokens=1030, paths="skewed"),
    FFFCase(16, 7, hidden=36, tokens=1030),
    FFFCase(64, 5, hidden=150, tokens=1030),
    FFFCase(128, 4, hidden=17, tokens=1030, paths="skewed"),
    FFFCase(512, 2, hidden=40, tokens=1030),
    FFFCase(3072, 0, hidden=25, tokens=1030),
    FFFCase(1, 11, hidden=72, tokens=1030, paths="left"),
    FFFCase(64, 3, hidden=72, tokens=1030, paths="right"),
    FFFCase(2, 8, hidden=40, tokens=1030, paths="ties"),
]
# Numbers of tokens around those where kernels switch: to eight tokens in lockstep, sorting, the wide strategy, more blocks.
CROSSOVERS = (1, 7, 8, 15, 16, 17, 23, 24, 25, 63, 64, 65, 127, 128, 129)

each_device = pytest.mark.parametrize("device", backends.ALL)
each_compiled = pytest.mark.parametrize("device", backends.COMPILED)
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)


@functools.lru_cache(maxsize=1)
def built(case):
    return case.build(zlib.crc32(str(case).encode()))


def as_stored(rows, dtype):
    """The float64 values of rows stored in `dtype`."""
    stored = Tensor(rows, "float32").to(dtype)
    return stored.data * stored.scale[..., None].astype(np.float64) if dtype == "int8" else stored.float32().astype(np.float64)


def on_bytes(trees, depth, dtype):
    """Whether trees of this shape compute on bytes: wide ones in int8."""
    return dtype == "int8" and depth >= 1 and 2 ** (depth + 1) <= 256 and trees * (depth + 1) >= 64


def as_walked(x, trees, depth, dtype):
    """The float64 values of tokens as trees of this shape take them."""
    if not on_bytes(trees, depth, dtype):
        return x.astype(np.float64)
    integers, scale = int8(x)
    return integers * scale[:, None].astype(np.float64)


def close(got, want, x, w_in, b_in, w_out, nodes, dtype):
    """Assert that outputs (T, D) are near `want`. Trees that compute on bytes round each token's neurons, times the scales of their rows.

    w_in (P, N, D) as stored, w_out before it is stored.
    """
    slack = backends.TOLERANCE["atol"] + backends.TOLERANCE["rtol"] * np.abs(want)
    if len(x) and on_bytes(nodes.shape[1], nodes.shape[2] - 1, dtype):
        rows, at = Tensor(w_out, "float32").to(dtype), (np.arange(nodes.shape[1])[:, None], nodes)
        z = np.einsum("td,tpld->tpl", x, w_in[at]) + (0 if b_in is None else b_in[at])
        step = np.abs(z * special.ndtr(z) * rows.scale[at]).max((1, 2)) / 127
        slack = slack + 0.501 * step[:, None] * np.abs(rows.data[at].astype(float)).sum((1, 2))
    assert (np.abs(got - want) <= slack).all()


def routed(layer, x, threads):
    """(nodes, z) of a layer, computed with this number of threads."""
    nodes = np.full((len(x), layer.trees, layer.depth + 1), -7, np.int32)
    z = np.full(nodes.shape, np.nan, np.float32)
    layer._ops.using(threads).fff(x, layer._layer.trees, out=np.empty_like(x), nodes=nodes, z=z)
    return nodes, z


def agrees_with_oracle(device, case, seed, dtype="float32"):
    """Assert that routes are equal if every deciding |z| exceeds the margin, and that each token's output is right along its own route."""
    x, w_in, b_in, w_out = case.build(seed)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device, dtype=dtype)
    w_in, rows_out = as_stored(w_in, dtype), w_out
    w_out = as_stored(w_out, dtype)
    y = layer(x)
    nodes, z = layer.routes(x)
    x = as_walked(x, case.trees, case.depth, dtype)
    want_nodes, want_z = oracle.walk(x, w_in, b_in, case.depth)
    deciding = want_z[..., :-1]
    # An exact zero is exact in every precision here: its weights and bias are zero.
    sure = ((np.abs(deciding) > backends.ROUTE_MARGIN) | (deciding == 0)).all(-1)
    assert (~sure).sum() <= 1 + 0.02 * sure.size, "the case has too many near-ties to test anything"
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    close(y, oracle.add_up(x, w_in, b_in, w_out, nodes), x, w_in, b_in, rows_out, nodes, dtype)


@each_device
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64_loops(device, case):
    agrees_with_oracle(device, case, seed=zlib.crc32(str(case).encode()))


@each_compiled
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("case", CASES[len(PAPER_SHAPES) :: 2], ids=str)
def test_stored_in_less(device, dtype, case):
    agrees_with_oracle(device, case, seed=zlib.crc32(str(case).encode()), dtype=dtype)


@each_compiled
@each_dtype
@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_every_strategy(device, dtype, case):
    """Sampled tokens are right. Every token is bitwise the same in batches around the switches, in any order, with any threads."""
    x, w_in, b_in, w_out = built(case)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device, dtype=dtype)
    whole = layer(x, threads=1)
    nodes, z = layer.routes(x)

    some = np.s_[:: case.tokens // 4]
    w_in, rows_out = as_stored(w_in, dtype), w_out
    w_out = as_stored(w_out, dtype)
    seen = as_walked(x[some], case.trees, case.depth, dtype)
    want_nodes, want_z = oracle.walk(seen, w_in, b_in, case.depth)
    sure = ((np.abs(want_z[..., :-1]) > backends.ROUTE_MARGIN) | (want_z[..., :-1] == 0)).all(-1)
    assert sure.mean() > 0.9
    assert_array_equal(nodes[some][sure], want_nodes[sure])
    assert_allclose(z[some][sure], want_z[sure], **backends.TOLERANCE)
    close(whole[some], oracle.add_up(seen, w_in, b_in, w_out, nodes[some]), seen, w_in, b_in, rows_out, nodes[some], dtype)

    rng = np.random.default_rng(12)
    for tokens in CROSSOVERS:
        pick = rng.permutation(case.tokens)[:tokens]
        for threads in (1, 3):
            assert_array_equal(layer(x[pick], threads=threads), whole[pick])
        for got, want in zip(routed(layer, x[pick], 2), (nodes, z), strict=True):
            assert_array_equal(got, want[pick])
    order = rng.permutation(case.tokens)
    for threads in (2, 3):
        assert_array_equal(layer(x[order], threads=threads), whole[order])


# Several blocks of tokens, the last one much or a little shorter, with and without sorting, for one tree, several and wide.
BLOCKS = [
    FFFCase(12, 0, hidden=64, tokens=1500),
    FFFCase(4, 1, hidden=160, tokens=1900),
    FFFCase(1, 1, hidden=16, tokens=30_000),
    FFFCase(3, 1, hidden=20, tokens=1025),
    FFFCase(2, 3, hidden=40, tokens=1500),
    FFFCase(1, 7, hidden=16, tokens=17_000),
    FFFCase(2, 9, hidden=40, tokens=2100),
    FFFCase(40, 2, hidden=40, tokens=1500),
    FFFCase(80, 1, hidden=24, tokens=1100),
]


@each_compiled
@each_dtype
@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_a_team_of_any_size_gives_the_same_bits_in_every_call(device, dtype, case):
    """Threads that do not wait for each other may be a block apart. Only many calls show if they share a slot of the workspace."""
    x, w_in, b_in, w_out = built(case)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device, dtype=dtype)
    trees = getattr(layer._layer.trees, "trees", layer._layer.trees)  # at depth 0: the trees, not the two matrix products
    out = np.empty_like(x)

    def answers(threads):
        nodes, z = np.empty((len(x), case.trees, case.depth + 1), np.int32), np.empty((len(x), case.trees, case.depth + 1), np.float32)
        layer._ops.kernels.fff(x, trees, None, None, out, nodes, z, threads)
        return out.copy(), nodes, z

    want = answers(1)
    for call in range(24):
        threads = (2, 3, 5, 8)[call % 4]
        for got, right in zip(answers(threads), want, strict=True):
            assert_array_equal(got, right, err_msg=f"call {call}, {threads} threads")


@each_compiled
@each_dtype
@pytest.mark.parametrize("case", [FFFCase(3, 5, 50, 40), FFFCase(70, 2, 50, 40), FFFCase(1, 11, 50, 1)], ids=str)
def test_sums_are_taken_in_the_written_order(device, dtype, case):
    """The exact bits are one FMA per visited node from zero, in ascending (tree, node), then the bias, then the residual.

    (In float64 a product is exact; an FMA rounds once.)
    """
    x, w_in, b_in, w_out = case.build(13)
    rng = np.random.default_rng(14)
    bias, residual = rng.standard_normal(50, np.float32), rng.standard_normal(x.shape, np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype)
    stored = Tensor(np.stack([w_in, w_out], 2), "float32").to(dtype)
    nodes = np.empty((len(x), case.trees, case.depth + 1), np.int32)
    z, out, gelu = np.empty(nodes.shape, np.float32), np.empty_like(x), np.empty(nodes.size, np.float32)
    ops.fff(x, ops.trees(stored, b_in, None, case.depth), bias=bias, residual=residual, out=out, nodes=nodes, z=z)
    ops.kernels.array("gelu", z.reshape(-1), gelu)
    gelu = gelu.reshape(z.shape)
    rows = stored.data.astype(np.float64) if dtype == "int8" else stored.float32().astype(np.float64)
    if on_bytes(case.trees, case.depth, dtype):  # the neurons times the scales of their rows are rounded, and the sum is exact
        by = np.stack([gelu[:, p] * stored.scale[p, nodes[:, p], 1] for p in range(case.trees)], 1)
        integers, scale = int8(by.reshape(len(x), -1))
        exact = np.einsum("tn,tnd->td", integers, stored.data[np.arange(case.trees)[:, None], nodes, 1].reshape(len(x), -1, 50).astype(int))
        assert_array_equal(out, (exact.astype(np.float32) * scale[:, None] + bias) + residual)
        return
    want = np.zeros_like(x)
    for p in range(case.trees):
        for level in range(case.depth + 1):
            at = nodes[:, p, level]
            by = gelu[:, p, level] if stored.scale is None else gelu[:, p, level] * stored.scale[p, at, 1]
            term = by[:, None].astype(np.float64) * rows[p, at, 1]
            want = (want + (term.astype(np.float32) if device == "cpu:portable" else term)).astype(np.float32)
    assert_array_equal(out, (want + bias) + residual)


@each_compiled
@each_dtype
@pytest.mark.parametrize("shape", [(1, 11), (64, 3)], ids=str)
def test_tokens_that_are_alike(device, dtype, shape):
    """One subtree gets nearly all tokens, and a few tokens go elsewhere."""
    x, w_in, b_in, w_out = FFFCase(*shape, hidden=60, tokens=500).build(15)
    x[100:] = x[0]
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=shape[1], device=device, dtype=dtype)
    out = layer(x, threads=3)
    assert_array_equal(out[100:], np.repeat(layer(x[:1]), 400, 0))
    assert_array_equal(out, layer(x, threads=1))


@each_compiled
@pytest.mark.parametrize("shape", [(1, 6), (64, 1)], ids=str)
def test_outputs_beyond_the_caches_wherever_they_lie(device, shape):
    x, w_in, b_in, w_out = FFFCase(*shape, hidden=64, tokens=33_000).build(16)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=shape[1], device=device)
    outputs = []
    for shift, threads in ((0, 3), (1, 2)):  # at the start of a cache line, and not
        memory = np.full(x.size + 64, 7, np.float32)
        begin = 16 - memory.ctypes.data // 4 % 16 + shift
        outputs.append(layer(x, out=memory[begin : begin + x.size].reshape(x.shape), threads=threads))
        assert (memory[:begin] == 7).all()
        assert (memory[begin + x.size :] == 7).all()
    assert_array_equal(*outputs)
    assert_array_equal(outputs[0][-5:], layer(x[-5:]))


@each_compiled
@each_dtype
def test_a_token_that_is_no_number_stays_alone(device, dtype):
    for shape in ((1, 7), (64, 2)):
        x, w_in, b_in, w_out = FFFCase(*shape, hidden=50, tokens=40).build(17)
        layer = fastinfer.FFF(w_in, b_in, w_out, depth=shape[1], device=device, dtype=dtype)
        want = layer(x)
        x[0, 3], x[7, 49] = np.nan, -np.nan
        got = layer(x)
        assert np.isnan(got[[0, 7]]).all()
        assert_array_equal(np.delete(got, [0, 7], 0), np.delete(want, [0, 7], 0))
        assert (layer.routes(x)[0][0] == 2 ** np.arange(shape[1] + 1) - 1).all(), "nan > 0 is false: left"


@each_device
@settings(max_examples=40, deadline=None)
@given(
    case=st.builds(
        FFFCase,
        trees=st.integers(1, 6),
        depth=st.integers(0, 7),
        hidden=st.integers(1, 70),
        tokens=st.integers(0, 40),
        paths=st.sampled_from(["balanced", "skewed", "left", "right"]),
        bias=st.booleans(),
        leaf=st.just(1),
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_shapes(device, case, seed):
    x, w_in, b_in, w_out = case.build(seed)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device)
    nodes, _ = layer.routes(x)
    want_nodes, want_z = oracle.walk(x, w_in, b_in, case.depth)
    sure = (np.abs(want_z[..., :-1]) > backends.ROUTE_MARGIN).all(-1)
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(layer(x), oracle.add_up(x, w_in, b_in, w_out, nodes), **backends.TOLERANCE)


@each_device
def test_zero_goes_left_and_leaves_add(device):
    # Both nodes of the walk have z == 0 and gelu(0) == 0; a bias on the left leaf alone makes the answer visible.
    x = np.ones((2, 8), np.float32)
    w_in = np.zeros((1, 3, 8), np.float32)
    w_out = np.arange(24, dtype=np.float32).reshape(1, 3, 8)
    b_in = np.array([[0.0, 2.0, 3.0]], np.float32)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=1, device=device)
    assert_array_equal(layer.routes(x)[0], [[[0, 1]], [[0, 1]]])
    assert_allclose(layer(x), [oracle.gelu(2.0) * w_out[0, 1]] * 2, rtol=1e-6)


@each_device
def test_negative_zero_and_tiny_logits(device):
    tiny = np.float32(1e-40)  # a denormal is greater than zero: right
    x = np.ones((1, 1), np.float32)
    for bias, node in ((np.float32(-0.0), 1), (np.float32(0.0), 1), (tiny, 2), (-tiny, 1)):
        layer = fastinfer.FFF(
            np.zeros((1, 3, 1), np.float32), np.array([[bias, 0, 0]], np.float32), np.ones((1, 3, 1), np.float32), depth=1, device=device
        )
        assert layer.routes(x)[0][0, 0, 1] == node, f"z = {bias!r}"


@each_compiled
@pytest.mark.parametrize("case", [FFFCase(1, 11, 16, 100_000), FFFCase(4, 3, 16, 100_000, "skewed")], ids=str)
def test_a_hundred_thousand_tokens(device, case):
    x, w_in, b_in, w_out = case.build(7)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device)
    reference = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device="numpy")
    nodes, _ = layer.routes(x)
    want_nodes, want_z = reference.routes(x)
    sure = (np.abs(want_z[..., :-1]) > backends.ROUTE_MARGIN).all((1, 2))
    assert sure.mean() > 0.98
    assert_array_equal(nodes[sure], want_nodes[sure])
    y = layer(x)
    assert_allclose(y[sure], reference(x)[sure], **backends.TOLERANCE)
    some = np.flatnonzero(~sure)[:50]  # near-ties may go either way, but the output must be right along their route
    assert_allclose(y[some], oracle.add_up(x[some], w_in, b_in, w_out, nodes[some]), **backends.TOLERANCE)


@each_device
def test_always_on_part_and_output_bias(device):
    x, w_in, b_in, w_out = FFFCase(2, 4, hidden=40, tokens=12).build(3)
    rng = np.random.default_rng(4)
    d_in, d_out = (rng.standard_normal((5, 40), np.float32) for _ in range(2))
    d_bias, b_out = rng.standard_normal(5, np.float32), rng.standard_normal(40, np.float32)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=4, b_out=b_out, dense=(d_in, d_bias, d_out), device=device)
    # W neurons that are always on are W trees of depth 0.
    dense = oracle.add_up(x, d_in[:, None], d_bias[:, None], d_out[:, None], np.zeros((12, 5, 1), int))
    want = dense + oracle.add_up(x, w_in, b_in, w_out, layer.routes(x)[0], b_out)
    assert_allclose(layer(x), want, **backends.TOLERANCE)


@each_device
def test_out_and_threads(device):
    x, w_in, b_in, w_out = FFFCase(2, 5, hidden=32, tokens=50).build(5)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=5, device=device)
    out = np.full_like(x, np.nan)
    assert layer(x, out=out, threads=1) is out
    for threads in (1, 2, 3, 64):
        assert_array_equal(layer(x, threads=threads), out)
    assert_array_equal(fastinfer.fff(x, w_in, b_in, w_out, depth=5, device=device), out)


@each_compiled
def test_a_token_alone_or_in_a_batch_is_bitwise_the_same(device):
    x, w_in, b_in, w_out = FFFCase(3, 7, hidden=80, tokens=200).build(6)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=7, device=device)
    whole = layer(x)
    order = np.random.default_rng(0).permutation(len(x))
    assert_array_equal(layer(x[order]), whole[order])
    for t in (0, 1, 99, 199):
        assert_array_equal(layer(x[t : t + 1]), whole[t : t + 1])
    for tokens in (2, 15, 16, 17, 63, 128):
        assert_array_equal(layer(x[:tokens], threads=2), whole[:tokens])


@each_device
def test_the_layer_keeps_its_own_weights(device):
    x, w_in, b_in, w_out = FFFCase(1, 3, hidden=8, tokens=4).build(8)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=3, device=device)
    before = layer(x)
    w_in[:], b_in[:], w_out[:] = 9, 9, 9
    assert_array_equal(layer(x), before)


def prune(depth, rng):
    """The table of children (n, 2) of a random pruned tree, numbered depth first."""
    table = []

    def grow(level):
        table.append([-1, -1])
        node = len(table) - 1
        for side in (0, 1):
            if level < depth and rng.random() < 0.8:
                table[node][side] = grow(level + 1)
        return node

    grow(0)
    return table


# Even numbers of levels matter, too: the last two are walked together, and a path may stop between them.
@pytest.mark.parametrize("shape", [(3, 6), (1, 9), (70, 2), (4, 3), (70, 1)], ids=str)
@pytest.mark.parametrize(("device", "dtype"), [("numpy", "float32"), *((d, dtype) for d in backends.COMPILED for dtype in backends.DTYPES)])
def test_pruned_trees(device, dtype, shape):
    rng = np.random.default_rng(9)
    (trees, depth), hidden, tokens = shape, 24, 60
    tables = [prune(depth, rng) for _ in range(trees)]
    count = max(map(len, tables))
    children = np.full((trees, count, 2), -1, np.int32)
    for p, table in enumerate(tables):
        children[p, : len(table)] = table
    x = rng.standard_normal((tokens, hidden), np.float32)
    w_in, w_out = (rng.standard_normal((trees, count, hidden), np.float32) for _ in range(2))
    b_in = rng.standard_normal((trees, count), np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype, threads=2)
    prepared = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, children, depth)
    w_in, w_out = as_stored(w_in, dtype), as_stored(w_out, dtype)
    out, nodes = np.empty_like(x), np.empty((tokens, trees, depth + 1), np.int32)
    z = np.empty(nodes.shape, np.float32)
    ops.fff(x, prepared, out=out, nodes=nodes, z=z)
    want_nodes, want_z = oracle.walk(x, w_in, b_in, depth, children)
    assert (want_nodes == -1).any()
    assert (want_nodes[..., -1] >= 0).any(), "some walks stop early, some reach the last level"
    sure = ((np.abs(want_z) > backends.ROUTE_MARGIN) | (want_nodes < 0)).all(-1)
    assert sure.mean() > 0.98
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    assert_allclose(out, oracle.add_up(x, w_in, b_in, w_out, nodes), rtol=1e-4, atol=1e-3)
    if device != "numpy":
        order = rng.permutation(tokens)
        for part in (order, order[:20], order[:1]):
            again, where, logits = (np.empty((len(part), *a.shape[1:]), a.dtype) for a in (out, nodes, z))
            ops.fff(x[part], prepared, out=again, nodes=where, z=logits)
            for got, right in ((again, out), (where, nodes), (logits, z)):
                assert_array_equal(got, right[part])


@each_compiled
@each_dtype
def test_heap_order_written_as_a_table_is_the_same(device, dtype):
    case = FFFCase(2, 6, hidden=48, tokens=100)
    x, w_in, b_in, w_out = case.build(18)
    children = np.full((2, 127, 2), -1, np.int32)
    children[:, :63] = np.arange(1, 127).reshape(63, 2)
    ops = fastinfer.backends.get(device, dtype=dtype)
    both = []
    for table in (None, children):
        both.append(np.empty_like(x))
        ops.fff(x, ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, table, 6), out=both[-1])
    assert_array_equal(*both)


@pytest.mark.parametrize("device", [name for name in backends.ALL if name != "cuda"])  # its ops take its own arrays
def test_a_residual_may_be_the_output(device):
    x, w_in, b_in, w_out = FFFCase(2, 4, hidden=20, tokens=11).build(10)
    ops = fastinfer.backends.get(device)
    trees = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, 4)
    residual = np.random.default_rng(1).standard_normal(x.shape, np.float32)
    plain, apart = np.empty_like(x), np.empty_like(x)
    ops.fff(x, trees, out=plain)
    ops.fff(x, trees, residual=residual, out=apart)
    assert_allclose(apart, plain + residual, rtol=1e-6, atol=1e-6)
    ops.fff(x, trees, residual=residual, out=residual)
    assert_array_equal(residual, apart)


def _child(layer, x, queue):
    queue.put(layer(x))


@each_compiled
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_still_answers(device):
    x, w_in, b_in, w_out = FFFCase(2, 6, hidden=64, tokens=300).build(11)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=6, device=device)
    want = layer(x, threads=2)  # the parent's thread pool exists before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(layer, x, queue))
    child.start()
    assert_array_equal(queue.get(timeout=60), want)
    child.join(timeout=60)
    assert child.exitcode == 0
