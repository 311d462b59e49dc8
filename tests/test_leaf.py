"""Trees whose leaves are blocks, silent nodes and other activations: float64 loops against the NumPy reference and every ISA."""

import math
import pickle
import zlib
from typing import NamedTuple

import backends
import builders
import numpy as np
import oracle
import pytest
from conftest import make_config, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_fff import as_stored
from test_gemm import bfloat16, int8

import fastinfer
from fastinfer import conversion, routes
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF
from fastinfer.weights import Form

DEVICES = [name for name in backends.ALL if name != "cuda"]  # test_cuda_leaf.py has the GPU
ACTIVATIONS = {
    "gelu": oracle.gelu,
    "relu": lambda z: max(z, 0.0),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu_tanh": lambda z: z / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "tanh": math.tanh,
}


class Case(NamedTuple):
    """The sizes of a layer and of its input."""

    trees: int
    depth: int
    leaf: int
    hidden: int = 40
    tokens: int = 30
    silent: bool = False
    activation: str = "gelu"
    biases: bool = True
    skewed: float = 0.0
    outputs: int = 0

    def __str__(self):
        return "-".join(map(str, self))

    @property
    def count(self):
        """The nodes of a tree: none is a block where leaves are nodes."""
        return 2**self.depth - 1 if self.leaf > 1 or self.silent or self.biases else None

    def build(self):
        """x, the positional arguments of an FFF, and the options that the oracle and an FFF share."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        rows = 2**self.depth - 1 + self.leaf * 2**self.depth
        outputs = self.outputs or self.hidden
        x = rng.standard_normal((self.tokens, self.hidden), np.float32)
        w_in = rng.standard_normal((self.trees, rows, self.hidden), np.float32) / np.float32(self.hidden**0.5)
        w_out = rng.standard_normal((self.trees, rows, outputs), np.float32) / np.float32((self.trees * (self.depth + self.leaf)) ** 0.5)
        b_in = b_leaf = b_out = None
        if self.biases:
            b_in = rng.standard_normal((self.trees, rows), np.float32) / 4
            b_in[:, : 2**self.depth - 1] += np.float32(self.skewed)
            b_leaf = rng.standard_normal((self.trees, 2**self.depth, outputs), np.float32)
            b_out = rng.standard_normal(outputs, np.float32)
        return x, (w_in, b_in, w_out), {"leaf": self.leaf, "silent": self.silent, "b_leaf": b_leaf}, b_out

    def layer(self, device, dtype="float32", **options):
        """The FFF of these arrays."""
        _, weights, form, b_out = self.build()
        form |= {"b_out": b_out, "depth": self.depth, "activation": self.activation, "outputs": self.outputs or None}
        return fastinfer.FFF(*weights, **form, **options, device=device, dtype=dtype)


CASES = [
    Case(1, 3, 5),
    Case(2, 2, 16, silent=True, activation="relu"),
    Case(3, 1, 7, hidden=33, biases=False, activation="silu"),
    Case(1, 4, 32, hidden=64, skewed=1.0),
    Case(2, 3, 1, silent=True, activation="gelu_tanh"),
    Case(1, 0, 9, activation="tanh"),
    Case(2, 0, 40, hidden=100),
    Case(1, 5, 48, hidden=50, tokens=70, skewed=2.0),
    Case(1, 2, 6, tokens=0),
    Case(1, 2, 70, hidden=1, tokens=13),
    Case(1, 3, 1, biases=False, activation="relu"),
    Case(40, 1, 1, biases=False, activation="silu", tokens=40),
    Case(1, 2, 4, hidden=20, outputs=7, silent=True),
    Case(2, 2, 3, hidden=7, outputs=20),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_compiled = pytest.mark.parametrize("device", backends.COMPILED)
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)


def sure_of(z, nodes, count):
    """Which routes (T, P) no rounding can change: every node that decides has a clear z."""
    decides = (nodes >= 0) & ((nodes < count) if count is not None else np.arange(nodes.shape[2]) < nodes.shape[2] - 1)
    return (~decides | (np.abs(z) > backends.ROUTE_MARGIN)).all(-1)


@pytest.mark.parametrize("device", DEVICES)
@each_case
def test_agrees_with_float64_loops(device, case):
    x, weights, form, b_out = case.build()
    layer = case.layer(device)
    nodes, z = layer.routes(x)
    want_nodes, want_z = oracle.walk(x, *weights[:2], case.depth, count=case.count)
    sure = sure_of(want_z, want_nodes, case.count)
    assert (~sure).sum() <= 1 + 0.02 * sure.size
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    form |= {"activation": ACTIVATIONS[case.activation], "count": case.count}
    y = layer(x)
    assert y.shape == (case.tokens, case.outputs or case.hidden)
    assert_allclose(y, oracle.add_up(x, *weights, nodes, b_out, **form), **backends.TOLERANCE)


def in_less(case, dtype, x, weights, form, nodes):
    """(the output in float64 of weights and x as blocks take them in a dtype, the largest error that rounding neurons allows)."""
    (w_in, b_in, w_out), activation, count = weights, np.vectorize(ACTIVATIONS[case.activation], otypes=[float]), case.count
    stored_in, stored_out = as_stored(w_in, dtype), as_stored(w_out, dtype)
    options = {"activation": ACTIVATIONS[case.activation], "count": count, "silent": case.silent}
    above = np.where(nodes >= count, -1, nodes)
    y = oracle.add_up(x, stored_in, b_in, stored_out, above, **options)
    slack = 1e-5 + 1e-5 * np.abs(y)
    q, scale = int8(x)
    rounded = q * scale[:, None].astype(np.float64) if dtype == "int8" else bfloat16(x) if dtype == "bfloat16" else x
    for t, p, at in np.argwhere(nodes >= count):
        begin = count + (nodes[t, p, at] - count) * case.leaf
        rows = np.s_[p, begin : begin + case.leaf]
        neurons = activation(stored_in[rows] @ rounded[t].astype(np.float64) + (0 if b_in is None else b_in[rows]))
        y[t] += neurons @ stored_out[rows] + (0 if form["b_leaf"] is None else form["b_leaf"][p, nodes[t, p, at] - count])
        if dtype == "int8":  # neurons times the scales of their out-rows are rounded to steps of the largest / 127
            steps = Tensor(w_out[rows], "float32").to("int8")
            slack[t] += 0.501 * np.abs(neurons * steps.scale).max() / 127 * np.abs(steps.data.astype(float)).sum(0)
        else:
            slack[t] += 2.0**-8 * (dtype == "bfloat16") * (np.abs(neurons) @ np.abs(stored_out[rows])) + 1e-5
    return y, slack


@each_compiled
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("case", [case for case in CASES if case.count is not None and case.tokens and not case.outputs], ids=str)
def test_stored_in_less(device, dtype, case):
    x, weights, form, b_out = case.build()
    layer = case.layer(device, dtype)
    nodes, _ = layer.routes(x)
    want_nodes, want_z = oracle.walk(x, as_stored(weights[0], dtype), weights[1], case.depth, count=case.count)
    sure = sure_of(want_z, want_nodes, case.count)
    assert_array_equal(nodes[sure], want_nodes[sure])
    want, slack = in_less(case, dtype, x, weights, form, nodes)
    assert (np.abs(layer(x) - want - (0 if b_out is None else b_out)) <= slack).all()


# Numbers of tokens of a group around the rows of a tile, and several runs of one block.
STRATEGIES = [
    Case(1, 3, 24, hidden=100, tokens=700),
    Case(2, 1, 70, hidden=64, tokens=700, skewed=1.5),
    Case(3, 5, 4, hidden=50, tokens=700, silent=True, activation="relu"),
    Case(2, 0, 33, hidden=40, tokens=300),
    Case(12, 6, 2, hidden=36, tokens=700),
    Case(70, 1, 1, hidden=36, tokens=200, silent=True),
]


@each_compiled
@each_dtype
@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_a_token_is_bitwise_the_same_in_any_batch_order_and_team(device, dtype, case):
    x, weights, form, b_out = case.build()
    layer = case.layer(device, dtype)
    whole = layer(x, threads=1)
    nodes, z = layer.routes(x)
    some = np.s_[:: case.tokens // 4]
    want, slack = in_less(case, dtype, x[some], weights, form, nodes[some])
    assert (np.abs(whole[some] - want - (0 if b_out is None else b_out)) <= slack).all()
    rng = np.random.default_rng(1)
    for tokens in (1, 2, 3, 5, 7, 13, 16, 17, 33, 65, 130, case.tokens):
        pick = rng.permutation(case.tokens)[:tokens]
        for threads in (1, 2, 3):
            assert_array_equal(layer(x[pick], threads=threads), whole[pick])
        for got, right in zip(layer.routes(x[pick]), (nodes, z), strict=True):
            assert_array_equal(got, right[pick])
    alike = np.repeat(x[:1], 150, 0)
    assert_array_equal(layer(alike, threads=3), np.repeat(whole[:1], 150, 0))


@each_compiled
@each_dtype
def test_a_token_that_is_no_number_stays_alone(device, dtype):
    case = Case(2, 3, 9, tokens=40)
    x = case.build()[0]
    layer = case.layer(device, dtype)
    want = layer(x)
    x[0, 3], x[7, 39] = np.nan, np.inf
    got = layer(x)
    assert np.isnan(got[0]).all()
    assert not np.isfinite(got[7]).all()
    assert_array_equal(np.delete(got, [0, 7], 0), np.delete(want, [0, 7], 0))


def pruned(rng, depth, blocks):
    """(children (n, 2), the number of blocks) of a random pruned tree, numbered depth first. Blocks are numbered from 1000 on."""
    table, found = [], 0

    def grow(level):
        nonlocal found
        node = len(table)
        table.append([-1, -1])
        for side in (0, 1):
            chance = rng.random()
            if level < depth - 1 and chance < 0.7:
                table[node][side] = grow(level + 1)
            elif chance < 0.9:
                table[node][side], found = 1000 + found, found + 1
        return node

    grow(0)
    return np.array(table), found


class Pruned(NamedTuple):
    """What in_less() asks of a Case, for pruned trees with `count` nodes."""

    leaf: int
    count: int
    silent: bool
    activation: str = "gelu"


def pruned_layer(rng, shape, hidden, silent):
    """(Pruned, Form, children, (w_in, b_in, w_out)) of random pruned trees. shape: trees, depth, neurons of a leaf."""
    trees, depth, leaf = shape
    made = [pruned(rng, depth, leaf) for _ in range(trees)]
    count, blocks = max(len(table) for table, _ in made), max(found for _, found in made)
    children = np.full((trees, count, 2), -1, np.int32)
    for p, (table, _) in enumerate(made):
        children[p, : len(table)] = np.where(table >= 1000, table - 1000 + count, table)
    w_in, w_out = (rng.standard_normal((trees, count + blocks * leaf, hidden), np.float32) / np.float32(5) for _ in range(2))
    b_in = rng.standard_normal((trees, count + blocks * leaf), np.float32)
    form = Form("gelu", silent, leaf, blocks, rng.standard_normal((trees, blocks, hidden), np.float32))
    return Pruned(leaf, count, silent), form, children, (w_in, b_in, w_out)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 6, 20), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("device", "dtype"), [("numpy", "float32"), *((d, dtype) for d in backends.COMPILED for dtype in backends.DTYPES)])
def test_pruned_trees(device, dtype, shape, silent):
    rng = np.random.default_rng(9)
    (trees, depth, _), hidden, tokens = shape, 24, 50
    case, form, children, (w_in, b_in, w_out) = pruned_layer(rng, shape, hidden, silent)
    count, x = case.count, rng.standard_normal((tokens, hidden), np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype, threads=2)
    prepared = ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, children, depth, form)
    out, nodes = np.empty_like(x), np.empty((tokens, trees, depth + 1), np.int32)
    z = np.empty(nodes.shape, np.float32)
    ops.fff(x, prepared, out=out, nodes=nodes, z=z)
    want_nodes, want_z = oracle.walk(x, as_stored(w_in, dtype), b_in, depth, children, count)
    assert (want_nodes[..., -1] == -1).any()
    assert (want_nodes >= count).any()
    sure = sure_of(want_z, want_nodes, count)
    assert_array_equal(nodes[sure], want_nodes[sure])
    assert_allclose(z[sure], want_z[sure], **backends.TOLERANCE)
    want, slack = in_less(case, dtype, x, (w_in, b_in, w_out), {"b_leaf": form.b_leaf}, nodes)
    assert (np.abs(out - want) <= slack).all()
    if device != "numpy":
        for part in (rng.permutation(tokens), [7]):
            again = np.empty_like(x[part])
            ops.fff(x[part], prepared, out=again)
            assert_array_equal(again, out[part])
    for cut in range(depth):  # a walk of fewer decisions
        ops.fff(x, ops.trees(Tensor(np.stack([w_in, w_out], 2), "float32"), b_in, children, cut, form), out=out)
        cut_nodes = np.where(np.arange(depth + 1) > cut, -1, nodes)
        want, slack = in_less(case, dtype, x, (w_in, b_in, w_out), {"b_leaf": form.b_leaf}, cut_nodes)
        assert (np.abs(out - want) <= slack).all()


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25, deadline=None)
@given(
    case=st.builds(
        Case,
        trees=st.integers(1, 4),
        depth=st.integers(0, 5),
        leaf=st.integers(1, 40),
        hidden=st.integers(1, 70),
        tokens=st.integers(0, 30),
        silent=st.booleans(),
        activation=st.sampled_from(list(ACTIVATIONS)),
        biases=st.booleans(),
        skewed=st.just(0.0),
        outputs=st.just(0) | st.integers(1, 70),
    )
)
def test_random_shapes(device, case):
    x, weights, form, b_out = case.build()
    layer = case.layer(device)
    nodes, _ = layer.routes(x)
    options = form | {"activation": ACTIVATIONS[case.activation], "count": case.count}
    assert_allclose(layer(x), oracle.add_up(x, *weights, nodes, b_out, **options), **backends.TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_a_layer_is_copied_and_pickled_and_writes_where_it_is_told(device):
    for outputs in (0, 13):
        case = Case(2, 2, 6, outputs=outputs, activation="relu")
        x, weights, form, b_out = case.build()
        dense = (weights[0][0, :4].copy(), None, weights[2][0, :4].copy())
        layer = case.layer(device, dense=dense)
        want = layer(x)
        shared = case.layer(device)(x)
        assert_allclose(want, shared + np.maximum(x @ dense[0].T, 0) @ dense[2], **backends.TOLERANCE)
        again = pickle.loads(pickle.dumps(layer))
        assert repr(again) == repr(layer)
        assert_array_equal(again(x), want)
        out = np.full_like(want, np.nan)
        assert layer(x, out=out, threads=1) is out
        assert_array_equal(out, want)
        form |= {"b_out": b_out, "dense": dense, "depth": 2, "activation": "relu", "outputs": outputs or None}
        assert_array_equal(fastinfer.fff(x, *weights, **form, device=device), want)


def test_leaf_1_without_silent_nodes_is_the_tree_of_before():
    """One definition: a tree whose leaves are blocks of one neuron gives what a tree whose leaves are nodes gives."""
    x, weights, _, _ = Case(2, 4, 1, biases=False).build()
    as_nodes = fastinfer.FFF(*weights, depth=4, device="numpy")
    as_blocks = fastinfer.FFF(*weights, depth=4, b_leaf=np.zeros((2, 16, 40), np.float32), device="numpy")
    assert_array_equal(as_nodes.routes(x)[0], as_blocks.routes(x)[0])
    assert_allclose(as_blocks(x), as_nodes(x), **backends.TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_silent_trees_are_not_cut(tmp_path, device):
    """A walk that ends before a leaf of a silent tree would add nothing."""
    builders.save(tmp_path, builders.tiny(ffn=(FFF(1, 3, leaf=2, silent=True),)))
    batch = fastinfer.PackedBatch.from_ids([[1, 2, 3]])
    want = fastinfer.load(tmp_path, device=device).hidden_states(batch)[0]
    assert_array_equal(fastinfer.load(tmp_path, device=device, max_depth=3).hidden_states(batch)[0], want)
    with pytest.raises(fastinfer.InputError, match=r"layers\.0\.ffn\.nodes.*max_depth is 2, expected 3 or more: nodes are silent"):
        fastinfer.load(tmp_path, device=device, max_depth=2)


def test_leaves_in_the_commands(tmp_path, capsys):
    """The routes of a model with blocks are told, drawn and converted."""
    config = make_config(ffn=(FFF(2, 2, leaf=3, silent=True), FFF(1, 3, children=True, nodes=4, leaf=2, leaves=3)), layers=2)
    builders.save(tmp_path / "model", config)
    make_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    model = fastinfer.load(tmp_path / "model", device="numpy")
    for layer, (ffn, numbers) in enumerate(zip(config.ffn, (7, 7), strict=True)):
        nodes, z = model.routes("friend London")[0][layer]
        assert nodes.max() < numbers == ffn.numbered
        assert not z[nodes >= ffn.node_count].any()
    use = routes.use_of(model, [["friend London", "Paris"]], layer=1)
    assert use.layers[0].total == 2 * (3 + 4 * 3)
    assert "with leaves of 3 silent" in "\n".join(routes.told(use, "a model"))
    assert "block" in routes.drawn(use, "a model")
    assert conversion.convert(str(tmp_path / "model"), tmp_path / "int8", dtype="int8").count("leaves of") == 2
    assert fastinfer.load(tmp_path / "int8", device="numpy").config.ffn == config.ffn


# --- the package fastfeedforward -------------------------------------------------------------------


def theirs(hidden, leaf, outputs, depth, activation=None):
    """A layer of the package with random weights, ready to be asked."""
    torch = pytest.importorskip("torch", reason="fastfeedforward needs PyTorch")
    package = pytest.importorskip("fastfeedforward", reason="pip install fastfeedforward==0.2.1 --no-deps")
    torch.manual_seed(depth)
    layer = package.FFF(hidden, leaf, outputs, depth, **({} if activation is None else {"activation": activation}))
    return torch, layer.eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(20, 5, 20, 3), (30, 8, 7, 2), (7, 3, 20, 1), (9, 4, 9, 0)], ids=str)
def test_from_fastfeedforward(device, shape):
    torch, layer = theirs(*shape)
    x = torch.randn(50, shape[0])
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    mine = fastinfer.FFF.from_fastfeedforward(state, device=device)
    with torch.no_grad():
        assert_allclose(mine(x.numpy()), layer.training_forward(x, use_hard_decisions=True).numpy(), **backends.TOLERANCE)
    assert_array_equal(mine(x.numpy()), fastinfer.FFF.from_fastfeedforward(layer.state_dict(), device=device)(x.numpy()))
    if shape[3]:  # the package's own evaluation leaves out b2s, and fails at depth 0
        state["b2s"] = np.zeros_like(state["b2s"])
        with torch.no_grad():
            assert_allclose(fastinfer.FFF.from_fastfeedforward(state, device=device)(x.numpy()), layer(x).numpy(), **backends.TOLERANCE)


def test_from_fastfeedforward_with_another_activation():
    torch, layer = theirs(16, 4, 16, 2)
    layer.activation = torch.nn.GELU()
    x = torch.randn(20, 16)
    mine = fastinfer.FFF.from_fastfeedforward(layer.state_dict(), activation="gelu", device="numpy")
    with torch.no_grad():
        assert_allclose(mine(x.numpy()), layer.training_forward(x, use_hard_decisions=True).numpy(), **backends.TOLERANCE)


def state(hidden=6, leaf=3, outputs=5, depth=2):
    """A state of the package's layer."""
    rng, leaves = np.random.default_rng(0), 2**depth
    shapes = {
        "node_weights": (leaves - 1, hidden),
        "node_biases": (leaves - 1, 1),
        "w1s": (leaves, hidden, leaf),
        "b1s": (leaves, leaf),
        "w2s": (leaves, leaf, outputs),
        "b2s": (leaves, outputs),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_the_formula_of_fastfeedforward(device):
    """The formula alone, where the package is absent: a leaf's network, chosen by silent nodes."""
    given = state()
    x = np.random.default_rng(1).standard_normal((40, 6), np.float32)
    got = fastinfer.FFF.from_fastfeedforward(given, device=device)(x)
    for row, y in zip(x.astype(np.float64), got, strict=True):
        node = 0
        for _ in range(2):
            node = 2 * node + (2 if given["node_weights"][node] @ row + given["node_biases"][node, 0] > 0 else 1)
        leaf = node - 3
        neurons = np.maximum(row @ given["w1s"][leaf] + given["b1s"][leaf], 0)
        assert_allclose(y, neurons @ given["w2s"][leaf] + given["b2s"][leaf], **backends.TOLERANCE)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"w1s": None}, fastinfer.InputError, "state lacks w1s, expected the state_dict"),
        ({"w1s": np.zeros((3, 6, 3), np.float32)}, fastinfer.ShapeError, r"w1s is \(3, 6, 3\), expected 2\*\*depth leaves"),
        ({"b1s": np.zeros((4, 2), np.float32)}, fastinfer.ShapeError, r"b1s is \(4, 2\), expected \(4, 3\)"),
        ({"node_biases": np.zeros((3, 2), np.float32)}, fastinfer.ShapeError, r"node_biases is \(3, 2\), expected \(nodes, 1\)"),
        ({"w2s": np.zeros((4, 3, 5))}, fastinfer.DtypeError, "w2s has dtype float64"),
        ({"b2s": "x"}, fastinfer.DtypeError, "b2s has dtype"),
    ],
)
def test_a_state_that_does_not_fit(change, error, said):
    given = {name: value for name, value in (state() | change).items() if value is not None}
    with pytest.raises(error, match=said):
        fastinfer.FFF.from_fastfeedforward(given, device="numpy")
