"""The statements of docs/numerics.md: the error of every op over seeds 0 to 99, and the results for special values."""

from pathlib import Path

import backends
import numerics
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_attention import attend

import fastinfer
from fastinfer.checkpoint import Tensor
from fastinfer.weights import Norm

DOCUMENT = Path(__file__).parents[1] / "docs" / "numerics.md"
INF, NAN = np.inf, np.nan
TINY = np.float32(1e-45)

each_device = pytest.mark.parametrize("device", numerics.DEVICES)


@pytest.mark.parametrize(
    ("device", "op", "dtype"),
    [(device, op, dtype) for device in numerics.DEVICES for op in numerics.OPS for dtype in numerics.dtypes(device, op)],
)
def test_the_error_stays_within_what_is_stated(device, op, dtype):
    errors = [numerics.error(device, op, dtype, seed) for seed in range(100)]
    assert max(errors) <= numerics.OPS[op].most[dtype], f"seed {np.argmax(errors)}"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="docs/ is not beside the tests")
def test_the_document_states_the_same_bounds():
    assert "\n".join(numerics.stated()) in DOCUMENT.read_text()


@pytest.mark.parametrize("device", backends.COMPILED)
def test_exp_of_what_is_far_from_zero(device):
    x = np.array([88.72, 88.73, 89, 1e30, -87.33, -87.34, -95, -103.9, -1e30], np.float32)
    y = numerics.apply(fastinfer.backends.get(device), "exp", x)
    with np.errstate(over="ignore"):
        want = np.exp(x.astype(np.float64)).astype(np.float32)
    assert_array_equal(y[1:4], INF)
    assert_array_equal(y[5:], 0)
    assert_allclose(y[:5], want[:5], rtol=2e-7)


@each_device
def test_special_values_of_gelu(device):
    x = np.array([0, -0.0, INF, -INF, NAN, 3e38, -3e38, TINY, -TINY, 1e-39], np.float32)
    y = numerics.apply(fastinfer.backends.get(device), "gelu", x)
    assert_array_equal(y[:7], np.array([0, 0, INF, 0, NAN, 3e38, 0], np.float32))
    assert (np.abs(y[7:] - x[7:].astype(np.float64) / 2) <= TINY).all()


def normed(device, x, eps, weight=None, bias=None):
    out = np.empty_like(x)
    ones, zeros = np.ones(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    norm = Norm(ones if weight is None else weight, zeros if bias is None else bias)
    fastinfer.backends.get(device, threads=1).norm(x, norm, eps, out=out)
    return out


@each_device
@pytest.mark.parametrize("hidden", [1, 2, 24, 100, 768])
def test_a_constant_row_is_normed_to_the_bias(device, hidden):
    """The rounding error of the mean must be subtracted, because a small eps would make it large."""
    values = np.array([0, -0.0, 1e-45, 1e-30, 1e-3, -1, 7, 10, 1e4 / 3, -1e6 / 7, 1e10], np.float32)
    rng = np.random.default_rng(hidden)
    weight, bias = rng.standard_normal((2, hidden)).astype(np.float32)
    x = np.repeat(values[:, None], hidden, 1)
    for eps in (1e-5, 1e-12):
        # The mean's error is at most 1e-7 of the value, and rounding leaves 1e-7 of that error.
        allowed = 1e-6 + 1e-14 * np.abs(values[:, None]) / eps**0.5
        assert (np.abs(normed(device, x, eps, weight, bias) - bias) <= allowed * np.maximum(1, np.abs(weight))).all()
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(normed(device, x[6:7], 0.0)).any(), "0 / 0"


@each_device
def test_rows_that_a_norm_cannot_do_are_no_number(device):
    x = np.random.default_rng(3).standard_normal((6, 40), np.float32)
    x[0, 3], x[1, 39], x[2, 0] = NAN, INF, -INF
    x[3] *= np.float32(1e25)  # its variance exceeds float32
    x[4] *= np.float32(1e-25)  # its variance is negligible beside eps
    with np.errstate(all="ignore"):
        y = normed(device, x, 1e-12)
    assert np.isnan(y[:4]).all()
    assert_allclose(y[4], (x[4] - x[4].mean(dtype=np.float64)) * 1e6, rtol=1e-5)
    assert_allclose(y[5], normed(device, x[5:], 1e-12)[0], rtol=0)


@each_device
def test_a_norm_adds_eps_to_the_variance(device):
    x = np.random.default_rng(4).standard_normal((3, 40), np.float32) * np.float32(1e-3)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    for eps in (1e-12, 1e-6, 0.5):
        assert_allclose(normed(device, x, eps), centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps), rtol=1e-5, atol=1e-6)


@each_device
def test_a_text_of_one_token_attends_to_itself(device):
    qkv = np.random.default_rng(5).standard_normal((3, 3 * 16), np.float32) * np.float32(50)
    assert_allclose(attend(fastinfer.backends.get(device), qkv, [1, 1, 1], 2), qkv[:, 32:], rtol=3e-7)


@each_device
def test_attention_where_one_score_is_far_above_the_others(device):
    qkv = np.zeros((4, 24), np.float32)
    qkv[:, 0], qkv[:, 8] = 300, [0, -1e4, 1e4, 0]  # scores of -1e6 to 1e6
    qkv[:, 16:] = np.random.default_rng(6).standard_normal((4, 8))
    assert_allclose(attend(fastinfer.backends.get(device), qkv, [4], 1), np.repeat(qkv[2:3, 16:], 4, 0), rtol=3e-7)


@each_device
@pytest.mark.parametrize("kind", ["mean", "max", "cls", "lse", "weightedmean", "sqrtmean"])
def test_pooling_keeps_what_is_no_number(device, kind):
    x = np.random.default_rng(7).standard_normal((6, 5), np.float32)
    out, ops, cu = np.empty((3, 5), np.float32), fastinfer.backends.get(device), np.array([0, 1, 4, 6], np.int32)
    ops.pool(x, cu, kind, out=out)
    want = out.copy()
    x[1, 2] = x[2, 3] = NAN
    with np.errstate(invalid="ignore"):
        ops.pool(x, cu, kind, out=out)
    bad = np.zeros((3, 5), bool)
    bad[1, 2], bad[1, 3] = True, kind != "cls"
    assert_array_equal(np.isnan(out), bad)
    assert_array_equal(out[~bad], want[~bad])


@pytest.mark.parametrize("device", backends.COMPILED)
def test_denormal_factors_of_products(device):
    """float32 keeps denormals, and so does bfloat16, except that VDPBF16PS reads zeros. int8 takes rows below 1e-30 for zeros."""
    x, weight = np.full((1, 2), 1e-39, np.float32), np.ones((1, 2), np.float32)
    for dtype, want in (("float32", 2e-39), ("bfloat16", 0 if device in backends.BFLOAT16_DOTS else 2e-39), ("int8", 0)):
        ops, out = fastinfer.backends.get(device, dtype=dtype), np.empty((1, 1), np.float32)
        ops.linear(x, ops.matrix(Tensor(weight, "float32")), out=out)
        assert_allclose(out, want, rtol=0.02, atol=0)  # a denormal bfloat16 has few digits
