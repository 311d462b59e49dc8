"""Trees whose leaves are blocks, silent nodes and other activations on a GPU, against float64."""

import builders
import numpy as np
import oracle
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_cuda import DTYPES, ERROR, ROUNDS_TO, assert_near, needs_gpu, rounded, sent, sent_norm
from test_fff import as_stored
from test_leaf import ACTIVATIONS, Case, pruned_layer
from test_reference import layer_norm, norm_of

import fastinfer
from fastinfer import checkpoint
from fastinfer.backends.cuda import plan
from fastinfer.backends.cuda import trees as cuda_trees
from fastinfer.bench.oracle import Along
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF, Embed, Norm, Positions, Tasks
from fastinfer.weights import Form

pytestmark = needs_gpu

TOKENS = (1, 3, 16, 17, 32, 33, 128, 1000)
CASES = [
    Case(1, 6, 64, hidden=768),
    Case(1, 5, 96, hidden=384, silent=True),
    Case(2, 3, 8, hidden=64),
    Case(4, 2, 33, hidden=64, silent=True, activation="relu"),
    Case(3, 1, 5, hidden=64, biases=False, activation="silu"),
    Case(1, 0, 32, hidden=64, activation="tanh"),
    Case(2, 0, 2, hidden=72),
    Case(1, 7, 2, hidden=64, silent=True, activation="gelu_tanh"),
    Case(1, 4, 32, hidden=64, skewed=50.0),
    Case(1, 4, 70, hidden=64, skewed=-50.0, silent=True),
    Case(9, 3, 16, hidden=64),
    Case(9, 3, 16, hidden=64, silent=True),
    Case(2, 3, 1, hidden=64, silent=True, activation="gelu_tanh"),
    Case(1, 3, 1, hidden=64, biases=False, activation="relu"),
    Case(40, 1, 1, hidden=64, biases=False, activation="silu"),
    Case(12, 0, 1, hidden=64, biases=False, activation="tanh"),
    Case(1, 2, 6, hidden=33),
    Case(1, 2, 4, hidden=20, outputs=7, silent=True),
    Case(2, 2, 3, hidden=7, outputs=20),
]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
# A |z| that no rounding of rows, of activations or of logits changes the sign of.
MARGIN = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2, "int8": 5e-3}


def stored(values, dtype):
    """The values that rows of trees have in a dtype of the GPU."""
    return as_stored(values, dtype if dtype == "int8" else ROUNDS_TO[dtype])


def along(case, x, weights, nodes, b_leaf=None):
    """The output in float64 (T, outputs) along given nodes: as oracle.add_up, for many tokens."""
    (w_in, b_in, w_out), x = weights, x.astype(np.float64)
    activation = np.vectorize(ACTIVATIONS[case.activation], otypes=[float])
    y = np.zeros((len(x), w_out.shape[2]))
    for p, level in np.ndindex(*nodes.shape[1:]):
        at = nodes[:, p, level]
        for node in np.unique(at[at >= 0]):
            block = case.count is not None and node >= case.count
            if case.silent and not block:
                continue
            begin = case.count + (node - case.count) * case.leaf if block else node
            rows, there = np.s_[p, begin : begin + (case.leaf if block else 1)], at == node
            y[there] += activation(x[there] @ w_in[rows].T + (0 if b_in is None else b_in[rows])) @ w_out[rows]
            if block and b_leaf is not None:
                y[there] += b_leaf[p, node - case.count]
    return y


def check(case, layer, dtype, tokens, dense=None):
    """A layer's answer is right along its own routes for all tokens; its routes are those of float64 where no z is near 0."""
    _, (w_in, b_in, w_out), form, b_out = case.build()
    x = rounded(np.random.default_rng(tokens).standard_normal((tokens, case.hidden), np.float32), dtype)
    weights = stored(w_in, dtype), b_in, stored(w_out, dtype)
    y, (nodes, z) = layer(x), layer.routes(x)
    assert y.shape == (tokens, case.outputs or case.hidden)
    some = np.s_[:: max(1, tokens // 8)]
    want_nodes, want_z = oracle.walk(x[some], *weights[:2], case.depth, count=case.count)
    last = np.arange(case.depth + 1) == case.depth
    decides = want_nodes < case.count if case.count is not None else ~last
    sure = (~decides | (np.abs(want_z) > MARGIN[dtype])).all(-1)
    assert_array_equal(nodes[some][sure], want_nodes[sure])
    assert_allclose(z[some][sure], want_z[sure], rtol=MARGIN[dtype], atol=MARGIN[dtype])
    options = {"count": case.count, "leaf": case.leaf, "silent": case.silent, "activation": ACTIVATIONS[case.activation]}
    want = along(case, x, weights, nodes, form["b_leaf"])
    assert_allclose(want[some], oracle.add_up(x[some], *weights, nodes[some], b_leaf=form["b_leaf"], **options), rtol=1e-9, atol=1e-9)
    if b_out is not None:
        want += b_out
    if dense is not None:
        want += np.vectorize(ACTIVATIONS[case.activation], otypes=[float])(x @ rounded(dense[0], dtype).T) @ rounded(dense[2], dtype)
    # Rounded: out, the neurons of blocks, and what nodes have added before blocks.
    assert_near(y, want, dtype, factor=2)
    return x, nodes


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_form_agrees_with_float64(case, dtype):
    layer = case.layer("cuda", dtype)
    for tokens in TOKENS:
        check(case, layer, dtype, tokens)


@each_dtype
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("few", [0, 1 << 20])
def test_every_strategy(monkeypatch, few, silent, dtype):
    """Each walk, with blocks token by token, and as products of tiles of 16 and of 64 tokens."""
    monkeypatch.setattr(cuda_trees, "FEW_TOKENS", few)
    walks = ["fff_tree", "fff_tree_few", "fff_subtrees", "fff_trees", "fff_trees_few"]
    for case, strategies in ((Case(1, 4, 24, hidden=64, silent=silent), walks), (Case(9, 4, 24, hidden=64, silent=silent), walks[3:])):
        layer = case.layer("cuda", dtype)
        inner = layer._layer.trees.nodes
        for strategy in [*strategies, *(["products"] if inner.products is not None else [])]:
            layer._ops.plan = lambda tokens, trees, strategy=strategy: strategy
            for rows in (16, 64):
                monkeypatch.setattr(plan, "TILE_ROWS", (rows, rows))
                check(case, layer, dtype, 200)


@each_dtype
def test_deep_trees_and_places_that_do_not_fit_shared_memory(monkeypatch, dtype):
    monkeypatch.setattr(cuda_trees, "FEW_TOKENS", 0)
    case = Case(1, 12, 2, hidden=64)
    layer = case.layer("cuda", dtype)
    for shared in (layer._ops.limits.shared_memory, 2048):
        layer._ops.limits = layer._ops.limits._replace(shared_memory=shared)
        check(case, layer, dtype, 1500)


@each_dtype
def test_all_tokens_in_one_leaf(dtype):
    """Every token has the same block, in many tiles."""
    case = Case(1, 5, 33, hidden=64, skewed=100.0)
    _, nodes = check(case, case.layer("cuda", dtype), dtype, 5000)
    assert (nodes[:, 0, -1] == 62).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_routes_are_those_of_numpy(case):
    there, host = case.layer("cuda"), case.layer("numpy")
    x = np.random.default_rng(2).standard_normal((200, case.hidden), np.float32)
    (nodes, z), (want_nodes, want_z) = there.routes(x), host.routes(x)
    sure = ((np.abs(want_z) > MARGIN["float32"]) | (want_z == 0)).all(-1)
    assert sure.mean() > 0.9
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], rtol=1e-4, atol=1e-4)
    same = sure.all(1)
    assert_allclose(there(x)[same], host(x)[same], rtol=1e-4, atol=1e-4)


@each_dtype
@pytest.mark.parametrize("silent", [False, True])
def test_neurons_that_are_always_on(dtype, silent):
    case = Case(2, 3, 8, hidden=64, silent=silent, activation="relu")
    rng = np.random.default_rng(3)
    dense = rng.standard_normal((24, 64), np.float32) / np.float32(8), None, rng.standard_normal((24, 64), np.float32) / np.float32(5)
    layer = case.layer("cuda", dtype, dense=dense)
    for tokens in (5, 300):
        check(case, layer, dtype, tokens, dense)


@each_dtype
def test_the_same_call_gives_the_same_bits(dtype):
    """The order in which tokens come into a tile differs from call to call, and changes nothing."""
    for case in (Case(1, 3, 40, hidden=64), Case(3, 3, 8, hidden=64, silent=True)):
        layer, x = case.layer("cuda", dtype), np.random.default_rng(4).standard_normal((3000, 64), np.float32)
        want = layer(x)
        for _ in range(5):
            assert_array_equal(layer(x), want)
        if not case.silent:  # no product of cuBLASLt takes part
            swapped = np.random.default_rng(5).permutation(3000)
            assert_array_equal(layer(x[swapped]), want[swapped])


@each_dtype
@pytest.mark.parametrize("tokens", [12, 300])
def test_a_token_that_is_no_number_stays_alone(dtype, tokens):
    case = Case(2, 3, 9, hidden=64)
    x = np.random.default_rng(6).standard_normal((tokens, 64), np.float32)
    layer = case.layer("cuda", dtype)
    want = layer(x)
    x[0, 3], x[7, 39] = np.nan, np.inf
    got = layer(x)
    assert np.isnan(got[0]).all()
    assert not np.isfinite(got[7]).all()
    assert_array_equal(np.delete(got, [0, 7], 0), np.delete(want, [0, 7], 0))


@each_dtype
@pytest.mark.parametrize("tokens", [20, 400])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_between_norms(order, silent, tokens, dtype):
    case = Case(1, 3, 24, hidden=64, silent=silent)
    _, (w_in, b_in, w_out), form, b_out = case.build()
    rng = np.random.default_rng(7)
    x, before, after = rng.standard_normal((tokens, 64), np.float32), norm_of(rng, 64), norm_of(rng, 64)
    ops = fastinfer.backends.get("cuda", dtype=dtype).fitted(64, 0, dtype)
    made = Form("gelu", silent, 24, 8, form["b_leaf"])
    trees = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, 3, made)
    norms, there, normed = [sent_norm(ops, norm) for norm in (before, after)], sent(ops, x), ops.empty(tokens, 64)
    ops.norm(there, norms[0], 1e-5, out=normed)
    nodes, z = (ops.empty(tokens, 1, 4, dtype=t) for t in (np.int32, np.float32))
    ops.fff(normed, trees, out=ops.empty(tokens, 64), nodes=nodes, z=z)
    h = ops.bring(normed)()
    want = along(case, h, (stored(w_in, dtype), b_in, stored(w_out, dtype)), ops.bring(nodes)(), form["b_leaf"]) + b_out
    want += rounded(x, dtype) if order == "pre" else h
    if order == "post":
        want = layer_norm(want, after, 1e-5)
    ops.fff_between_norms(
        there, trees, bias=sent(ops, b_out), residual=there if order == "pre" else None, add_input=order == "post", norm=norms[0],
        out_norm=norms[1] if order == "post" else None, eps=1e-5, out=there,
    )  # fmt: skip
    assert_near(ops.bring(there)(), want, dtype, factor=4)


@each_dtype
@pytest.mark.parametrize(("shape", "silent"), [((3, 4, 5), False), ((1, 6, 20), True), ((2, 4, 1), True)], ids=str)
def test_pruned_trees(monkeypatch, silent, shape, dtype):
    """Paths that stop early, and walks of fewer decisions."""
    rng = np.random.default_rng(9)
    (trees, depth, _), hidden, tokens = shape, 24, 200
    case, form, children, (w_in, b_in, w_out) = pruned_layer(rng, shape, hidden, silent)
    count, x = case.count, rounded(rng.standard_normal((tokens, hidden), np.float32), dtype)
    ops = fastinfer.backends.get("cuda", dtype=dtype).fitted(hidden, 0, dtype)
    weights = stored(w_in, dtype), b_in, stored(w_out, dtype)
    there, out = sent(ops, x), ops.empty(tokens, hidden)
    for cut in (depth, 1):
        prepared = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, children, cut, form)
        nodes, z = (ops.empty(tokens, trees, cut + 1, dtype=t) for t in (np.int32, np.float32))
        for few in (0, 1 << 20):
            monkeypatch.setattr(cuda_trees, "FEW_TOKENS", few)
            out.fill(0)
            ops.fff(there, prepared, out=out, nodes=nodes, z=z)
            visited = ops.bring(nodes)()
            want_nodes, want_z = oracle.walk(x[::5], *weights[:2], cut, children, count)
            sure = ((want_nodes < 0) | (want_nodes >= count) | (np.abs(want_z) > MARGIN[dtype])).all(-1)
            assert_array_equal(visited[::5][sure], want_nodes[sure])
            assert_near(ops.bring(out)(), along(case, x, weights, visited, form.b_leaf), dtype, factor=2)


@each_dtype
def test_full_trees_that_are_cut(dtype):
    """A walk of fewer decisions ends at a node, which adds like the others, and reaches no block."""
    case = Case(2, 4, 6, hidden=64, tokens=100)
    x, (w_in, b_in, w_out), form, _ = case.build()
    x = rounded(x, dtype)
    ops = fastinfer.backends.get("cuda", dtype=dtype).fitted(64, 0, dtype)
    for cut in (3, 0):
        made = Form("gelu", False, 6, 16, form["b_leaf"])
        trees = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, None, cut, made)
        nodes, z, out = *(ops.empty(100, 2, cut + 1, dtype=t) for t in (np.int32, np.float32)), ops.empty(100, 64)
        ops.fff(sent(ops, x), trees, out=out, nodes=nodes, z=z)
        visited = ops.bring(nodes)()
        assert (visited < case.count).all()
        assert_near(ops.bring(out)(), along(case, x, (stored(w_in, dtype), b_in, stored(w_out, dtype)), visited), dtype, factor=2)


MODELS = {
    "post": {"norm": Norm("post", 1e-12), "ffn": (FFF(1, 4, leaf=16, bias_out=True),) * 2},
    "pre, silent": {"norm": Norm("pre", 1e-12), "ffn": (FFF(1, 4, leaf=24, silent=True, bias_leaf=True, activation="relu"),) * 2},
    "always on, pruned": {
        "norm": Norm("post", 1e-12),
        "ffn": (FFF(2, 3, dense=24, leaf=5, silent=True, bias_out=True), FFF(1, 4, children=True, nodes=6, leaf=4, leaves=7)),
    },
}


@each_dtype
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_agrees_with_numpy(tmp_path, kind, dtype):
    """Along the GPU's routes, hidden states are NumPy's. The graph and the ops one by one give the same bits."""
    options = {"hidden": 64, "heads": 2, "layers": 2, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600}
    builders.save(tmp_path, builders.tiny(**options | {"tasks": Tasks(Embed("mean", True))} | MODELS[kind]))
    model = fastinfer.load(tmp_path, device="cuda", dtype=dtype)
    config, tensors = checkpoint.load(tmp_path)
    if dtype == "int8":  # the values that its trees hold
        for name in [n for n in tensors if n.endswith("ffn.nodes")]:
            tensors[name] = Tensor(tensors[name].to("int8").float32(), "float32")
    rng = np.random.default_rng(1)
    for lengths in ((5,), (1, 5, 17, 64, 130, 300, 2)):
        batch = fastinfer.PackedBatch.from_ids([rng.integers(0, 101, n).tolist() for n in lengths])
        first, again, routes = model.hidden_states(batch), model.hidden_states(batch), model.routes(batch)
        tapped = model.hidden_states(batch, layers=(1, -1))
        for a, b, c in zip(first, again, tapped, strict=True):
            assert_array_equal(a, b)
            assert_array_equal(a, c[1])
        order = np.argsort(-batch.lengths, kind="stable")
        ops, ordered = Along([np.concatenate([routes[b][i][0] for b in order]) for i in range(2)]), batch.select(order)
        want = ops.encode(ops.prepare(config, tensors), ordered, ops.workspace())
        assert_near(np.concatenate([first[b] for b in order]), want, dtype, factor=8)


def test_max_depth_of_a_model(tmp_path):
    builders.save(tmp_path, builders.tiny(ffn=(FFF(2, 3, leaf=4),)))
    batch = fastinfer.PackedBatch.from_ids([[1, 2, 3, 5, 4], [3, 2]])
    for most in (3, 2, 0):
        got, want = (fastinfer.load(tmp_path, device=d, dtype="float32", max_depth=most).hidden_states(batch) for d in ("cuda", "numpy"))
        for a, b in zip(got, want, strict=True):
            assert_allclose(a, b, atol=1e-4)


@each_dtype
def test_arrays_of_the_gpu(dtype):
    import cupy

    case = Case(1, 3, 16, hidden=64)
    layer, x = case.layer("cuda", dtype), np.random.default_rng(8).standard_normal((100, 64), np.float32)
    y = layer(cupy.asarray(x))
    assert isinstance(y, cupy.ndarray)
    assert_allclose(cupy.asnumpy(y), layer(x), atol=2 * ERROR[dtype])
