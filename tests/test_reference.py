"""The ops of every backend against float64 loops written from their definitions."""

import inspect
import itertools
import math
import operator
import re

import backends
import builders
import numpy as np
import oracle
import pytest
from numpy.testing import assert_allclose

import fastinfer
from fastinfer.backends.cpu import CPU
from fastinfer.backends.cuda.ops import CUDA, FittedCUDA
from fastinfer.backends.reference import Reference
from fastinfer.checkpoint import Tensor
from fastinfer.positions import sinusoids
from fastinfer.weights import Embedding, Norm

LENGTHS = [1, 7, 3, 16, 2]
CU = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)


@pytest.fixture(params=[name for name in backends.ALL if name != "cuda"])  # test_cuda.py tests the ops of the GPU
def ops(request):
    return fastinfer.backends.get(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(1234)


def norm_of(rng, hidden):
    return Norm(*rng.standard_normal((2, hidden)).astype(np.float32))


def layer_norm(x, norm, eps):
    rows = []
    for row in x.astype(np.float64):
        mean = math.fsum(row) / len(row)
        variance = math.fsum((row - mean) ** 2) / len(row)
        rows.append((row - mean) / math.sqrt(variance + eps) * norm.weight + norm.bias)
    return np.array(rows)


def public(backend):
    return {name: member for name, member in inspect.getmembers(backend) if not name.startswith("_")}


def taken(function):
    """(name, kind, default) of each parameter. The type checker compares the types."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("backend", [CPU, CUDA, FittedCUDA])
def test_every_backend_has_the_signatures_of_the_reference(backend):
    """This needs no device, because the modules of backends can be imported without one."""
    for name, member in public(Reference).items():
        own = getattr(backend, name)
        if inspect.isfunction(member):
            assert taken(own) == taken(member), name
        else:
            assert type(own) is type(member), name


@pytest.mark.parametrize(
    ("op", "name"), [("matrix", "layers.0.attention.qkv.weight"), ("trees", "layers.0.ffn.nodes"), ("table", "embedding.word")]
)
def test_a_tensor_that_cannot_be_prepared_is_named(op, name):
    class Full(Reference):
        pass

    def refuse(*_):
        raise fastinfer.BackendError("there is no room")

    setattr(Full, op, refuse)
    with pytest.raises(fastinfer.BackendError, match=f"^{re.escape(name)}: there is no room$"):
        Full().prepare(builders.tiny(), builders.weights(builders.tiny()))


@pytest.mark.parametrize("activation", [None, "gelu", "tanh", "relu"])
@pytest.mark.parametrize("shape", [(5, 8, 16), (1, 33, 7), (19, 64, 3)], ids=str)
def test_linear(ops, rng, shape, activation):
    tokens, width, outputs = shape
    x, residual = rng.standard_normal((tokens, width), np.float32), rng.standard_normal((tokens, outputs), np.float32)
    weight, bias = rng.standard_normal((outputs, width), np.float32), rng.standard_normal(outputs, np.float32)
    plain = np.array([[math.fsum(a.astype(np.float64) * w) + b for w, b in zip(weight, bias, strict=True)] for a in x])
    want = {None: np.array, "gelu": np.vectorize(oracle.gelu), "tanh": np.tanh, "relu": lambda v: np.where(v > 0, v, 0)}[activation](plain)
    matrix = ops.matrix(Tensor(weight, "float32"))
    assert ops.outputs(matrix) == outputs
    out = np.empty((tokens, outputs), np.float32)
    ops.linear(x, matrix, bias=bias, activation=activation, out=out)
    assert_allclose(out, want, rtol=1e-5, atol=2e-5)
    ops.linear(x, matrix, bias=bias, activation=activation, residual=residual, out=residual)
    assert_allclose(residual - out, residual - want, rtol=1e-4, atol=1e-4)


def test_linear_adds_the_residual_after_the_activation(ops):
    one = np.ones((1, 1), np.float32)
    out = np.empty((1, 1), np.float32)
    ops.linear(-one, ops.matrix(Tensor(one.copy(), "float32")), activation="relu", residual=5 * one, out=out)
    assert out[0, 0] == 5


@pytest.mark.parametrize("hidden", [8, 31, 384])
def test_norm(ops, rng, hidden):
    x = (rng.standard_normal((6, hidden)) * 3 + 5).astype(np.float32)
    norm = norm_of(rng, hidden)
    want = layer_norm(x, norm, 1e-12)
    out = np.empty_like(x)
    ops.norm(x, norm, 1e-12, out=out)
    assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    ops.norm(x, norm, 1e-12, out=x)
    assert_allclose(x, want, rtol=1e-4, atol=1e-5)


def test_norm_of_a_constant_row_is_its_bias(ops, rng):
    norm = norm_of(rng, 16)
    out = np.empty((1, 16), np.float32)
    ops.norm(np.full((1, 16), 7, np.float32), norm, 1e-5, out=out)
    assert_allclose(out[0], norm.bias, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention(ops, rng, heads):
    size, hidden = 8, 8 * heads
    qkv = (rng.standard_normal((CU[-1], 3 * hidden)) * 2).astype(np.float32)
    want = np.empty((CU[-1], hidden))
    for begin, end in itertools.pairwise(CU):
        for h in range(heads):
            q, k, v = (qkv[begin:end, part * hidden + h * size : part * hidden + (h + 1) * size].astype(np.float64) for part in range(3))
            for t in range(end - begin):
                scores = [math.fsum(q[t] * k[s]) / math.sqrt(size) for s in range(end - begin)]
                top = max(scores)
                weights = [math.exp(s - top) for s in scores]
                want[begin + t, h * size : (h + 1) * size] = sum(w * row for w, row in zip(weights, v, strict=True)) / math.fsum(weights)
    out = np.empty((CU[-1], hidden), np.float32)
    ops.attention(qkv, CU, heads, out=out)
    assert_allclose(out, want, rtol=1e-4, atol=1e-5)


def test_attention_is_safe_for_large_scores(ops):
    qkv = np.zeros((2, 24), np.float32)
    qkv[:, :16] = 200  # scores of 8 * 200 * 200 / sqrt(8), far beyond exp's range
    qkv[1, 16:] = 1
    out = np.empty((2, 8), np.float32)
    ops.attention(qkv, np.array([0, 2], np.int32), 1, out=out)
    assert_allclose(out, 0.5)


@pytest.mark.parametrize("skip", [0, 2, 99])
@pytest.mark.parametrize("kind", ["mean", "cls", "max", "lse", "lasttoken", "weightedmean", "sqrtmean"])
def test_pool(ops, rng, kind, skip):
    x = (rng.standard_normal((CU[-1], 12)) * 50).astype(np.float32)
    want = []
    for start, end in itertools.pairwise(CU):
        begin = min(start + skip, end - 1)
        columns = x[begin:end].astype(np.float64).T
        places = range(begin - start + 1, end - start + 1)
        want.append(
            {
                "mean": lambda c: [math.fsum(v) / len(v) for v in c],
                "cls": lambda c: [v[0] for v in c],
                "max": lambda c: [max(v) for v in c],
                "lse": lambda c: [max(v) + math.log(math.fsum(math.exp(e - max(v)) for e in v)) for v in c],
                "lasttoken": lambda c: [v[-1] for v in c],
                "weightedmean": lambda c, places=places: [math.fsum(map(operator.mul, v, places)) / sum(places) for v in c],
                "sqrtmean": lambda c: [math.fsum(v) / math.sqrt(len(v)) for v in c],
            }[kind](columns)
        )
    wide = np.full((len(LENGTHS), 30), 7, np.float32)
    ops.pool(x, CU, kind, skip=skip, out=wide[:, 10:22])
    assert_allclose(wide[:, 10:22], want, rtol=1e-5, atol=1e-5)
    assert (np.delete(wide, np.s_[10:22], 1) == 7).all()


def test_unit(ops, rng):
    x = rng.standard_normal((5, 9), np.float32) * np.float32(40)
    x[3] = 0
    want = [[v / max(math.sqrt(math.fsum(e * e for e in row)), 1e-12) for v in row] for row in x.astype(np.float64).tolist()]
    out = np.empty_like(x)
    ops.unit(x, out=out)
    assert_allclose(out, want, rtol=1e-6)
    ops.unit(x, out=x)
    assert np.array_equal(x, out)


@pytest.mark.parametrize("with_types", [True, False])
@pytest.mark.parametrize("with_norm", [True, False])
def test_embed(ops, rng, with_types, with_norm):
    word, position, types = (rng.standard_normal((n, 10), np.float32) for n in (30, 16, 2))
    norm = norm_of(rng, 10) if with_norm else None
    embedding = Embedding(ops.table(Tensor(word, "float32")), position, types if with_types else None, norm, 1e-6)
    rows = [rng.integers(0, 30, n) for n in LENGTHS]
    kinds = [rng.integers(0, 2, n) for n in LENGTHS]
    batch = fastinfer.PackedBatch.from_ids(rows, kinds if with_types else None)
    want = np.array([
        word[row[t]] + position[t] + (types[kind[t]] if with_types else 0)
        for row, kind in zip(rows, kinds, strict=True) for t in range(len(row))
    ])  # fmt: skip
    if with_norm:
        want = layer_norm(want, embedding.norm, 1e-6)
    out = np.empty((CU[-1], 10), np.float32)
    ops.embed(batch, embedding, out=out)
    assert_allclose(out, want, rtol=1e-4, atol=1e-5)


def test_token_types_default_to_the_first(ops, rng):
    types = rng.standard_normal((2, 6), np.float32)
    nothing = np.zeros((4, 6), np.float32)
    embedding = Embedding(ops.table(Tensor(nothing, "float32")), nothing, types, None, 0.0)
    out = np.empty((3, 6), np.float32)
    ops.embed(fastinfer.PackedBatch.from_ids([[1, 2, 3]]), embedding, out=out)
    assert_allclose(out, [types[0]] * 3)


@pytest.mark.parametrize("hidden", [6, 7])
def test_sinusoids(hidden):
    table = sinusoids(9, hidden)
    for p in range(9):
        for column in range(hidden):
            angle = p / 10000 ** ((column - column % 2) / hidden)
            assert table[p, column] == pytest.approx(math.cos(angle) if column % 2 else math.sin(angle), abs=1e-6)
