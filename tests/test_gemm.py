"""Packed matrix products of every ISA: out = activation(x W^T + bias) + residual, computed in float32, bfloat16 and int8."""

import backends
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import special

import fastinfer
from fastinfer.checkpoint import Tensor

UNIT = 2.0**-24  # the relative error of one rounding to float32
TOKENS = (0, 1, 2, 5, 6, 7, 11, 12, 13, 25, 100)  # around the rows of a tile, which has 6 or 12
SHAPES = [(1, 1), (3, 17), (17, 3), (33, 33), (16, 64), (31, 130), (100, 63), (129, 257)]  # outputs, inputs
ACTIVATIONS = {
    None: np.array,
    "gelu": lambda v: v * special.ndtr(v),
    "gelu_tanh": lambda v: v / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
}
GELU_ERROR = 8e-5  # the most of either form in bfloat16 and int8

each_device = pytest.mark.parametrize("device", backends.WITH_VNNI)
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)
each_stored = pytest.mark.parametrize("stored", backends.DTYPES)


def case(outputs, inputs, tokens):
    """Random (x, weight, bias, residual) whose sums are of order 1."""
    rng = np.random.default_rng([outputs, inputs])
    shapes = (tokens, inputs), (outputs, inputs), (outputs,), (tokens, outputs)
    x, weight, bias, residual = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, weight / np.float32(inputs**0.5), bias, residual


def product(ops, x, matrix, bias=None, activation=None, residual=None, out=None):
    out = np.full((len(x), ops.outputs(matrix)), np.nan, np.float32) if out is None else out
    ops.linear(np.ascontiguousarray(x), matrix, bias=bias, activation=activation, residual=residual, out=out)
    return out


def bfloat16(x):
    """Values rounded to the nearest bfloat16, ties to even, by float arithmetic and not by bits."""
    _, exponent = np.frexp(x.astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    return np.rint(x / unit) * unit


def int8(x):
    """(integers, scale of each row), with scale = absmax / 127. A row of tiny values becomes zeros."""
    most = np.abs(x).max(-1, initial=0)
    tiny = most < 1e-30
    inverse = np.float32(127) / np.where(tiny, np.float32(1), most)
    return np.where(tiny[:, None], 0, np.rint(x * inverse[:, None])).astype(np.int64), np.where(tiny, 0, most / np.float32(127))


def int8_sums(x, weight):
    """(exact sums (T, N), their factors) of int8 products with stored rows."""
    q, scale = int8(x)
    if weight.dtype == "int8":
        return q @ weight.data.astype(np.int64).T, scale[:, None] * weight.scale
    # Weights are rounded as the format stores them: to the nearest multiple of absmax / 127 of their row.
    rows = weight.float32()
    w_scale = np.abs(rows).max(1) / np.float32(127)
    w_scale[w_scale == 0] = 1
    return q @ np.rint(rows / w_scale[:, None]).astype(np.int64).T, scale[:, None] * w_scale


def in_float64(dtype, x, weight):
    """(x W^T in float64 of factors rounded to the dtype, the largest error of a float32 sum)."""
    if dtype == "int8":
        sums, scale = int8_sums(x, weight)
        exact = sums * scale.astype(np.float64)
        return exact, 4 * UNIT * np.abs(exact)
    a, b = x.astype(np.float64), weight.float32().astype(np.float64)
    if dtype == "bfloat16":
        a, b = bfloat16(a), bfloat16(b)
    # Without FMA, each term is rounded twice.
    return a @ b.T, 2 * x.shape[1] * UNIT * (np.abs(a) @ np.abs(b).T)


@each_device
@each_dtype
@each_stored
def test_against_float64(device, dtype, stored):
    ops = fastinfer.backends.get(device, dtype=dtype, threads=2)
    for outputs, inputs in SHAPES:
        x, weight, bias, residual = case(outputs, inputs, max(TOKENS))
        rows = Tensor(weight, "float32").to(stored)
        matrix = ops.matrix(rows)
        assert ops.outputs(matrix) == outputs
        exact, slack = in_float64(dtype, x, rows)
        for tokens in TOKENS:
            part = np.s_[:tokens]
            for b in (None, bias):
                for activation, function in ACTIVATIONS.items():
                    for r in (None, residual):
                        out = None if r is None else r[part].copy()  # a residual may be the output
                        got = product(ops, x[part], matrix, b, activation, out, out)
                        before = exact[part] + (0 if b is None else b)
                        want = function(before) + (0 if r is None else r[part])
                        # An activation's slope is at most 1.13, and its own error is 5 ulp, 1e-7 of its input or what is stated.
                        gelu = activation in ("gelu", "gelu_tanh")
                        own = GELU_ERROR if gelu and dtype != "float32" else 1e-7 * (gelu or activation == "tanh")
                        allowed = 1.2 * slack[part] + 8 * UNIT * (np.abs(before) + np.abs(want)) + own
                        assert (np.abs(got - want) <= allowed).all(), (outputs, inputs, tokens, b is not None, activation, r is not None)


@each_device
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_in_low_precision(device, dtype, activation):
    ops = fastinfer.backends.get(device, dtype=dtype, threads=1)
    x = bfloat16(np.concatenate([np.linspace(-6, 6, 4001), [0, 1e-30, 1e4, -1e4, 3e38, -3e38]]))[:, None].astype(np.float32)
    matrix = ops.matrix(Tensor(np.ones((1, 1), np.float32), "float32"))
    before = product(ops, x, matrix).astype(np.float64)
    got = product(ops, x, matrix, None, activation)
    assert (np.abs(got - ACTIVATIONS[activation](before)) <= GELU_ERROR).all()
    assert_array_equal(got[before > 4.2], before[before > 4.2].astype(np.float32))
    assert not got[before < -4.2].any()
    if dtype == "bfloat16":
        ends = product(ops, np.float32([[np.inf], [-np.inf], [np.nan]]), matrix, None, activation)
        assert_array_equal(ends[:, 0], [np.inf, 0, np.nan])


@each_device
@each_stored
def test_int8_is_exact_in_integers(device, stored):
    ops = fastinfer.backends.get(device, dtype="int8")
    for outputs, inputs in SHAPES:
        x, weight, _, _ = case(outputs, inputs, 29)
        rows = Tensor(weight, "float32").to(stored)
        sums, scale = int8_sums(x, rows)
        assert np.abs(sums).max() < 2**24
        assert_array_equal(product(ops, x, ops.matrix(rows)), sums.astype(np.float32) * scale)


@each_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_taken_in_the_written_order(device, dtype):
    """The exact bits are one FMA per input from zero, ascending, then the bias. (In float64 a product is exact; an FMA rounds once.)"""
    if dtype == "bfloat16" and device in ("cpu:avx512_bf16", "cpu:neon_bf16"):
        pytest.skip("VDPBF16PS and BFMMLA take inputs in pairs, in an order of their own")
    if dtype == "bfloat16" and device == "cpu:avx512_amx":
        pytest.skip("TDPBF16PS takes inputs in blocks: the next test")
    x, weight, bias, _ = case(50, 65, 17)
    a, b = (bfloat16(m.astype(np.float64)) if dtype == "bfloat16" else m.astype(np.float64) for m in (x, weight))
    want = np.zeros((17, 50), np.float32)
    for k in range(65):
        term = a[:, k, None] * b[:, k]
        want = (want + (term.astype(np.float32) if device == "cpu:portable" else term)).astype(np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype)
    assert_array_equal(product(ops, x, ops.matrix(Tensor(weight, "float32")), bias), want + bias)


@pytest.mark.skipif("cpu:avx512_amx" not in backends.COMPILED, reason="this CPU has no AMX")
@pytest.mark.parametrize("tokens", [1, 16, 17, 33])
def test_tiles_sum_bfloat16_in_blocks(tokens):
    """Of 32 inputs the even and the odd ones are summed apart, by FMAs from zero; their sum is added to that of the blocks before."""
    x, weight, bias, _ = case(50, 70, tokens)
    a, b = (bfloat16(m.astype(np.float64)) for m in (x, weight))
    want = np.zeros((tokens, 50), np.float32)
    for block in range(0, 70, 32):
        halves = []
        for half in (0, 1):
            halves.append(np.zeros((tokens, 50), np.float32))
            for k in range(block + half, min(block + 32, 70), 2):
                halves[half] = (halves[half] + a[:, k, None] * b[:, k]).astype(np.float32)
        want += halves[0] + halves[1]
    ops = fastinfer.backends.get("cpu:avx512_amx", dtype="bfloat16")
    assert_array_equal(product(ops, x, ops.matrix(Tensor(weight, "float32")), bias), want + bias)


def to_odd(exact):
    """float32 of float64: cut off towards zero, and its last bit set where something was cut off."""
    near = exact.astype(np.float32)
    cut = np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)
    return (cut.view(np.uint32) | (cut != exact)).view(np.float32)


@pytest.mark.skipif("cpu:neon_bf16" not in backends.COMPILED, reason="this CPU has no BFMMLA")
@pytest.mark.parametrize("tokens", [1, 2, 5, 12, 17])
def test_matrix_instructions_sum_bfloat16_in_pairs(tokens):
    """The products of inputs k and k + 1 are added, then added to the sum so far; both additions round to odd."""
    x, weight, bias, _ = case(50, 71, tokens)
    a, b = (np.pad(bfloat16(m.astype(np.float64)), [(0, 0), (0, 1)]) for m in (x, weight))
    want = np.zeros((tokens, 50), np.float32)
    for k in range(0, 72, 2):
        pair = to_odd(a[:, k, None] * b[:, k] + a[:, k + 1, None] * b[:, k + 1])
        want = to_odd(want.astype(np.float64) + pair)
    ops = fastinfer.backends.get("cpu:neon_bf16", dtype="bfloat16")
    assert_array_equal(product(ops, x, ops.matrix(Tensor(weight, "float32")), bias), want + bias)


@each_device
def test_bfloat16_rounds_to_nearest_even(device):
    rng = np.random.default_rng(5)
    bits = np.concatenate([
        rng.integers(0, 2**32, 3000, np.uint32),
        rng.integers(0, 2**16, 1000, np.uint32) << 16 | 0x8000,  # ties
        rng.integers(0, 2**16, 1000, np.uint32) << 16 | np.array([[0x7FFF], [0x8001]], np.uint32)[rng.integers(0, 2, 1000), 0],
    ])  # fmt: skip
    values = bits.view(np.float32)
    values = values[(np.abs(values) > 1e-37) & (np.abs(values) < 1e38)]
    ops = fastinfer.backends.get(device, dtype="bfloat16")
    one = np.ones((1, 1), np.float32)
    assert_array_equal(product(ops, values[:, None], ops.matrix(Tensor(one, "float32")))[:, 0], bfloat16(values.astype(np.float64)))
    assert_array_equal(product(ops, one, ops.matrix(Tensor(values[:, None].copy(), "float32")))[0], bfloat16(values.astype(np.float64)))


@each_device
def test_int8_rounds_to_nearest_even(device):
    # The scale is exactly 1, and the weights select the second input.
    values = np.arange(-127, 127.25, 0.25, dtype=np.float32)
    x = np.stack([np.full_like(values, 127), values], 1)
    ops = fastinfer.backends.get(device, dtype="int8")
    matrix = ops.matrix(Tensor(np.array([[0, 1]], np.int8), "int8", np.ones(1, np.float32)))
    assert_array_equal(product(ops, x, matrix)[:, 0], np.rint(values))


@each_device
def test_the_largest_int8_sums(device):
    rows = Tensor(np.full((33, 1024), -128, np.int8), "int8", np.ones(33, np.float32))
    ops = fastinfer.backends.get(device, dtype="int8")
    got = product(ops, np.full((3, 1024), -1, np.float32), ops.matrix(rows))
    assert_array_equal(got, np.full((3, 33), np.float32(127 * 128 * 1024) * (np.float32(1) / np.float32(127))))


@each_device
@each_dtype
def test_a_token_is_bitwise_the_same_in_any_batch_place_and_team(device, dtype):
    rng = np.random.default_rng(6)
    for outputs, inputs in [*SHAPES, (800, 96), (40, 1531)]:
        x, weight, bias, residual = case(outputs, inputs, 150)
        # A small product uses only as many threads as pay off.
        ops = [fastinfer.backends.get(device, dtype=dtype, threads=threads) for threads in (1, 2, 3, 16, 24)]
        matrices = [each.matrix(Tensor(weight, "float32")) for each in ops]  # packed by teams of every size
        whole = product(ops[0], x, matrices[0], bias, "gelu", residual)
        for tokens in (1, 2, 3, 5, 6, 7, 12, 13, 23, 48, 71, 150):
            pick = rng.permutation(150)[:tokens]
            for each, matrix in zip(ops, matrices, strict=True):
                assert_array_equal(product(each, x[pick], matrix, bias, "gelu", residual[pick]), whole[pick])


@each_device
@each_dtype
@pytest.mark.parametrize("tokens", [1, 5, 13])
def test_what_is_no_number_stays_with_its_token(device, dtype, tokens):
    x, weight, bias, _ = case(40, 37, tokens + 4)
    ops = fastinfer.backends.get(device, dtype=dtype)
    matrix = ops.matrix(Tensor(weight, "float32"))
    want = product(ops, x, matrix, bias)
    x[0, 36], x[1, 3], x[2, 0], x[3] = np.nan, -np.nan, np.inf, 0
    got = product(ops, x, matrix, bias)
    assert np.isnan(got[:2]).all()
    assert not np.isfinite(got[2]).any()
    assert_array_equal(got[3], bias)
    assert_array_equal(got[4:], want[4:])


@each_device
@each_dtype
def test_tokens_of_any_magnitude(device, dtype):
    x, weight, _, _ = case(40, 37, 4)
    x *= np.array([[1e-28], [1e-3], [1e3], [1e30]], np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype)
    exact, slack = in_float64(dtype, x, Tensor(weight, "float32"))
    got = product(ops, x, ops.matrix(Tensor(weight, "float32")))
    assert (np.abs(got - exact) <= slack + UNIT * np.abs(exact)).all()
