"""Conditional matrix multiplication: float64 loops -> NumPy reference -> compiled, every ISA of this machine."""

import multiprocessing
import zlib

import backends
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer.cases import PAPER_SHAPES, FFFCase

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


def agrees_with_oracle(device, case, seed):
    """Routes equal wherever every deciding |z| exceeds the margin; the output right for every token along its own route."""
    x, w_in, b_in, w_out = case.build(seed)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=case.depth, device=device)
    y = layer(x)
    nodes, z = layer.routes(x)
    want_nodes, want_z = oracle.walk(x, w_in, b_in, case.depth)
    deciding = want_z[..., :-1]
    # An exact zero is exact in every precision here: its weights and bias are zero.
    sure = ((np.abs(deciding) > backends.ROUTE_MARGIN) | (deciding == 0)).all(-1)
    assert sure.size == 0 or sure.mean() > 0.98, "the case has too many near-ties to test anything"
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    assert_allclose(y, oracle.add_up(x, w_in, b_in, w_out, nodes), **backends.TOLERANCE)


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64_loops(device, case):
    agrees_with_oracle(device, case, seed=zlib.crc32(str(case).encode()))


@pytest.mark.parametrize("device", backends.ALL)
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


@pytest.mark.parametrize("device", backends.ALL)
def test_zero_goes_left_and_leaves_add(device):
    # Both nodes of the walk have z == 0 and gelu(0) == 0; a bias on the left leaf alone makes the answer visible.
    x = np.ones((2, 8), np.float32)
    w_in = np.zeros((1, 3, 8), np.float32)
    w_out = np.arange(24, dtype=np.float32).reshape(1, 3, 8)
    b_in = np.array([[0.0, 2.0, 3.0]], np.float32)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=1, device=device)
    assert_array_equal(layer.routes(x)[0], [[[0, 1]], [[0, 1]]])
    assert_allclose(layer(x), [oracle.gelu(2.0) * w_out[0, 1]] * 2, rtol=1e-6)


@pytest.mark.parametrize("device", backends.ALL)
def test_negative_zero_and_tiny_logits(device):
    tiny = np.float32(1e-40)  # a denormal is greater than zero: right
    x = np.ones((1, 1), np.float32)
    for bias, node in ((np.float32(-0.0), 1), (np.float32(0.0), 1), (tiny, 2), (-tiny, 1)):
        layer = fastinfer.FFF(
            np.zeros((1, 3, 1), np.float32), np.array([[bias, 0, 0]], np.float32), np.ones((1, 3, 1), np.float32), depth=1, device=device
        )
        assert layer.routes(x)[0][0, 0, 1] == node, f"z = {bias!r}"


@pytest.mark.parametrize("device", [d for d in backends.ALL if d != "numpy"])
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
    some = np.flatnonzero(~sure)[:50]  # near-ties may go either way; along the way they went they must be right
    assert_allclose(y[some], oracle.add_up(x[some], w_in, b_in, w_out, nodes[some]), **backends.TOLERANCE)


@pytest.mark.parametrize("device", backends.ALL)
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


@pytest.mark.parametrize("device", backends.ALL)
def test_out_and_threads(device):
    x, w_in, b_in, w_out = FFFCase(2, 5, hidden=32, tokens=50).build(5)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=5, device=device)
    out = np.full_like(x, np.nan)
    assert layer(x, out=out, threads=1) is out
    for threads in (1, 2, 3, 64):
        assert_array_equal(layer(x, threads=threads), out)
    assert_array_equal(fastinfer.fff(x, w_in, b_in, w_out, depth=5, device=device), out)


@pytest.mark.parametrize("device", [d for d in backends.ALL if d != "numpy"])
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


@pytest.mark.parametrize("device", backends.ALL)
def test_the_layer_keeps_its_own_weights(device):
    x, w_in, b_in, w_out = FFFCase(1, 3, hidden=8, tokens=4).build(8)
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=3, device=device)
    before = layer(x)
    w_in[:], b_in[:], w_out[:] = 9, 9, 9
    assert_array_equal(layer(x), before)


def prune(depth, rng):
    """A random pruned tree: its table of children (n, 2), numbered depth first."""
    table = []

    def grow(level):
        table.append([-1, -1])
        node = len(table) - 1
        for side in (0, 1):
            if level < depth and rng.random() < 0.7:
                table[node][side] = grow(level + 1)
        return node

    grow(0)
    return table


@pytest.mark.parametrize("device", backends.ALL)
def test_pruned_trees(device):
    rng = np.random.default_rng(9)
    depth, hidden, tokens = 6, 24, 60
    tables = [prune(depth, rng) for _ in range(3)]
    count = max(map(len, tables))
    children = np.full((3, count, 2), -1, np.int32)
    for p, table in enumerate(tables):
        children[p, : len(table)] = table
    x = rng.standard_normal((tokens, hidden), np.float32)
    w_in, w_out = (rng.standard_normal((3, count, hidden), np.float32) for _ in range(2))
    b_in = rng.standard_normal((3, count), np.float32)
    ops = fastinfer.backends.get(device)
    trees = ops.trees(fastinfer.checkpoint.Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, children, depth)
    out, nodes, z = np.empty_like(x), np.empty((tokens, 3, depth + 1), np.int32), np.empty((tokens, 3, depth + 1), np.float32)
    ops.fff(x, trees, out=out, nodes=nodes, z=z)
    want_nodes, want_z = oracle.walk(x, w_in, b_in, depth, children)
    assert (want_nodes == -1).any()
    assert (want_nodes[..., -1] >= 0).any(), "some walks stop early, some reach the last level"
    sure = ((np.abs(want_z) > backends.ROUTE_MARGIN) | (want_nodes < 0)).all(-1)
    assert sure.mean() > 0.98
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    assert_allclose(out, oracle.add_up(x, w_in, b_in, w_out, nodes), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("device", backends.ALL)
def test_a_residual_may_be_the_output(device):
    x, w_in, b_in, w_out = FFFCase(2, 4, hidden=20, tokens=11).build(10)
    ops = fastinfer.backends.get(device)
    trees = ops.trees(fastinfer.checkpoint.Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, 4)
    residual = np.random.default_rng(1).standard_normal(x.shape, np.float32)
    plain, apart = np.empty_like(x), np.empty_like(x)
    ops.fff(x, trees, out=plain)
    ops.fff(x, trees, residual=residual, out=apart)
    assert_allclose(apart, plain + residual, rtol=1e-6, atol=1e-6)
    ops.fff(x, trees, residual=residual, out=residual)
    assert_array_equal(residual, apart)


def _child(layer, x, queue):
    queue.put(layer(x))


@pytest.mark.parametrize("device", [d for d in backends.ALL if d != "numpy"])
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
