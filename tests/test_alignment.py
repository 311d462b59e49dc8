"""Arrays at any address that their type allows: kernels give the same bits as for aligned arrays, and write only into `out`."""

import backends
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastinfer
from fastinfer import PackedBatch
from fastinfer.checkpoint import Tensor
from fastinfer.weights import Embedding, Norm

each_device = pytest.mark.parametrize("device", backends.COMPILED)
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)

STEPS = (0, 1, 5, 15)  # items from a multiple of 64 bytes to the start of the array


def moved(array, steps):
    """A copy that begins `steps` items after a multiple of 64 bytes, with a canary on both sides; and the two canaries."""
    size = array.dtype.itemsize
    whole = np.full(array.nbytes + 64 + 64 + 15 * size + 64, 0xA5, np.uint8)
    start = -whole.ctypes.data % 64 + 64 + steps * size
    copy = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.flags.c_contiguous
    assert copy.flags.aligned
    return copy, (whole[:start], whole[start + array.nbytes :])


def everywhere(what, given, shape):
    """Assert that what(arrays, out) gives the same bits for arrays and output at each of STEPS, and leaves the canaries."""
    answers = []
    for inputs, output in [*((s, s) for s in STEPS), (0, 1), (3, 0)]:
        arrays = [a if a is None else moved(a, inputs)[0] for a in given]
        out, canary = moved(np.full(shape, np.nan, np.float32), output)
        what(arrays, out)
        answers.append(out)
        assert all((side == 0xA5).all() for side in canary), (inputs, output)
    for answer in answers[1:]:
        assert_array_equal(answer, answers[0])
    assert np.isfinite(answers[0]).all()


@each_device
@each_dtype
@pytest.mark.parametrize(("trees", "depth", "hidden", "tokens"), [(2, 5, 37, 30), (1, 8, 16, 70), (40, 2, 150, 60)])
def test_trees(device, dtype, trees, depth, hidden, tokens):
    ops = fastinfer.backends.get(device, dtype=dtype, threads=3)
    rng = np.random.default_rng(1)
    stored = Tensor(rng.standard_normal((trees, 2 ** (depth + 1) - 1, 2, hidden), np.float32), "float32").to(dtype)
    x, residual = rng.standard_normal((2, tokens, hidden), np.float32)
    b_in, bias = rng.standard_normal(stored.data.shape[:2], np.float32), rng.standard_normal(hidden, np.float32)

    def what(arrays, out):
        nodes, scale, b_in, x, bias, residual = arrays
        made = ops.trees(Tensor(nodes, dtype, scale), b_in, None, depth)
        ops.fff(x, made, bias=bias, residual=residual, out=out)

    everywhere(what, [stored.data, stored.scale, b_in, x, bias, residual], x.shape)


@each_device
def test_outputs_that_bypass_the_caches(device):
    """Kernels write an aligned output of 8 MB or more past the caches. They cannot do so for an unaligned one."""
    rng = np.random.default_rng(2)
    w_in, w_out = rng.standard_normal((2, 1, 7, 64), np.float32)
    x = rng.standard_normal((33_000, 64), np.float32)
    layer = fastinfer.FFF(w_in, None, w_out, depth=2, device=device)
    first, *others = (moved(x, steps)[0] for steps in (0, 1, 4))
    want = layer(x, out=first, threads=3).copy()
    for out in others:
        assert_array_equal(layer(x, out=out, threads=3), want)


@each_device
@each_dtype
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 37, 19), (13, 100, 67), (30, 16, 128)])
def test_products(device, dtype, tokens, outputs, inputs):
    ops = fastinfer.backends.get(device, dtype=dtype, threads=3)
    rng = np.random.default_rng(3)
    weight = Tensor(rng.standard_normal((outputs, inputs), np.float32), "float32").to(dtype)
    x, bias, residual = (rng.standard_normal(shape, np.float32) for shape in ((tokens, inputs), outputs, (tokens, outputs)))

    def what(arrays, out):
        rows, scale, x, bias, residual = arrays
        ops.linear(x, ops.matrix(Tensor(rows, dtype, scale)), bias=bias, activation="gelu", residual=residual, out=out)

    everywhere(what, [weight.data, weight.scale, x, bias, residual], (tokens, outputs))


@each_device
@each_dtype
def test_embeddings_norms_and_attention(device, dtype):
    ops = fastinfer.backends.get(device, dtype=dtype, threads=3)
    rng = np.random.default_rng(4)
    hidden = 56
    lengths = [7, 1, 25]
    batch = PackedBatch.from_ids([rng.integers(0, 20, n).tolist() for n in lengths], [[1] * n for n in lengths])
    words = Tensor(rng.standard_normal((20, hidden), np.float32), "float32").to(dtype)
    tables = [rng.standard_normal(shape, np.float32) for shape in ((25, hidden), (2, hidden), hidden, hidden)]

    def embed(arrays, out):
        ids, types, cu, rows, scale, positions, kinds, weight, bias = arrays
        embedding = Embedding(Tensor(rows, dtype, scale), positions, kinds, Norm(weight, bias), 1e-6)
        ops.embed(PackedBatch(ids, cu, types), embedding, out=out)

    everywhere(embed, [batch.ids, batch.token_types, batch.cu_seqlens, words.data, words.scale, *tables], (33, hidden))

    def norm(arrays, out):
        ops.norm(arrays[0], Norm(arrays[1], arrays[2]), 1e-6, out=out)

    everywhere(norm, [rng.standard_normal((33, hidden), np.float32), *tables[2:]], (33, hidden))

    qkv = rng.standard_normal((33, 3 * hidden), np.float32)
    given = Tensor(qkv, "float32").to("bfloat16").data if ops.qkv_dtype(8) is np.uint16 else qkv
    everywhere(lambda arrays, out: ops.attention(arrays[0], arrays[1], 7, out=out), [given, batch.cu_seqlens], (33, hidden))


@each_device
@pytest.mark.parametrize("function", ["gelu", "tanh", "erf", "exp"])
def test_functions(device, function):
    ops = fastinfer.backends.get(device)
    x = np.random.default_rng(5).standard_normal(77, np.float32)
    everywhere(lambda arrays, out: ops.kernels.array(function, arrays[0], out), [x], x.shape)
