"""search() of every backend: products of rows and queries in float32, int8 and bits, the same bits in any batch."""

import numpy as np
import pytest
from backends import ALL
from numpy.testing import assert_allclose, assert_array_equal

from fastinfer import backends
from fastinfer.backends.search import SEARCH_GROUP

DEVICES = [name for name in ALL if not name.startswith("cuda")]
SIZES = [(1, 1, 1), (3, 2, 16), (5, 7, 63), (64, 6, 64), (65, 13, 100), (300, 5, 384), (130, 1, 130)]


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def searched(ops, rows, queries, **given):
    """(out, best), whose values a search must all have overwritten."""
    out = np.full((len(queries), len(rows)), np.nan, np.float32)
    best = np.full((len(queries), -(-len(rows) // SEARCH_GROUP)), np.nan, np.float32)
    ops.search(rows, queries, **given, out=out, best=best)
    for group in range(best.shape[1]):
        assert_array_equal(best[:, group], out[:, group * SEARCH_GROUP : (group + 1) * SEARCH_GROUP].max(axis=1))
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "queries", "inputs"), SIZES)
def test_float32(rng, device, rows, queries, inputs):
    ops = backends.get(device, threads=2)
    x, q = (rng.standard_normal((n, inputs)).astype(np.float32) for n in (rows, queries))
    bias = rng.standard_normal(rows).astype(np.float32)
    out = searched(ops, x, q, bias=bias)
    want = q.astype(np.float64) @ x.T.astype(np.float64)
    bound = (inputs + 4) * 2.0**-24 * (np.abs(q) @ np.abs(x).T + np.abs(bias)) + 1e-30
    assert (np.abs(out - (want + bias)) <= 2 * bound).all()
    if device != "numpy":
        assert_array_equal(searched(backends.get(device, threads=1), x[-1:], q[-1:], bias=bias[-1:]), out[-1:, -1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "queries", "inputs"), SIZES)
def test_int8_is_exact(rng, device, rows, queries, inputs):
    ops = backends.get(device, threads=2)
    x = rng.integers(-128, 128, (rows, inputs), dtype=np.int8)
    q = rng.integers(-127, 128, (queries, inputs), dtype=np.int8)
    scale, query_scale = rng.random(rows).astype(np.float32), rng.random(queries).astype(np.float32)
    want = (q.astype(np.int64) @ x.T.astype(np.int64)).astype(np.float32)
    assert_array_equal(searched(ops, x, q), want)
    assert_array_equal(searched(ops, x, q, scale=scale, query_scale=query_scale), want * (query_scale[:, None] * scale))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "queries", "inputs"), SIZES)
def test_bits_are_exact(rng, device, rows, queries, inputs):
    x, q = (rng.integers(0, 256, (n, inputs), dtype=np.uint8) for n in (rows, queries))
    signs = [np.unpackbits(bits, axis=1).astype(np.int64) * 2 - 1 for bits in (x, q)]
    assert_array_equal(searched(backends.get(device, threads=2), x, q), signs[1] @ signs[0].T)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_never_the_largest(device):
    x = np.ones((70, 20), np.float32)
    x[3] = np.nan
    x[65] = 2
    out, best = np.empty((1, 70), np.float32), np.empty((1, 2), np.float32)
    backends.get(device).search(x, x[:1], out=out, best=best)
    assert np.isnan(out[0, 3])
    assert_allclose(best, [[20, 40]])
