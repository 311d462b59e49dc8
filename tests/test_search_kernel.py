"""search() of every backend: products of rows and queries in float32, int8 and bits, the same bits in any batch."""

import numpy as np
import pytest
from backends import ALL
from numpy.testing import assert_array_equal

from fastinfer import backends
from fastinfer.backends.search import Stored

DEVICES = [name for name in ALL if not name.startswith("cuda")]
SIZES = [(1, 1, 1), (3, 2, 16), (5, 7, 63), (64, 6, 64), (65, 13, 100), (300, 5, 384), (130, 1, 130)]


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def searched(ops, rows, queries, **given):
    """The scores, all of which a search must have overwritten."""
    out = np.full((len(queries), len(rows)), np.nan, np.float32)
    ops.search(rows, queries, **given, out=out)
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


def best_of(scores, keep, margin):
    """The rows with the `keep` largest scores, best first, and those within the margin of the last of these; equal scores by row."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    order = order[scores[order] > -np.inf]
    near = scores[order] > scores[order[min(keep, len(order)) - 1]] - margin if len(order) else np.empty(0, bool)
    return order[near | (np.arange(len(order)) < keep)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nearest_are_the_largest_scores(rng, device, threads):
    """Of whole numbers, whose sums are exact and often equal, in parts, with removed rows, nan, and more wanted than there are."""
    ops = backends.get(device, threads=threads)
    for trial in range(40):
        count, inputs, queries, keep = (int(rng.integers(1, most)) for most in (9000 if trial < 4 else 900, 70, 15, 60))
        x, q = (rng.integers(-3, 4, (n, inputs)).astype(np.float32) for n in (count, queries))
        want = q.astype(np.float64) @ x.T.astype(np.float64)
        if trial % 3 == 0:
            broken = int(rng.integers(0, count))
            x[broken], want[:, broken] = np.nan, -np.inf
        gone = rng.random(count) < 0.2 if trial % 2 else None
        if gone is not None:
            want[:, gone] = -np.inf
        cut = int(rng.integers(0, count + 1))
        parts = [Stored(a, x[a:b], gone=None if gone is None else gone[a:b]) for a, b in ((0, cut), (cut, count))]
        margin = np.full(queries, trial % 5, np.float32)
        for got, scores in zip(ops.nearest(parts, q, keep=keep, margin=margin), want, strict=True):
            rows = best_of(scores, keep, trial % 5)
            if got is None:
                assert len(rows) > 2 * keep + 256
            else:
                assert_array_equal(got, rows)


@pytest.mark.parametrize("device", DEVICES)
def test_nearest_of_codes_and_of_bits(rng, device):
    ops = backends.get(device, threads=2)
    x, q = (rng.integers(-128, 128, (n, 90), dtype=np.int8) for n in (3000, 9))
    scale, query_scale, bias = (rng.random(n, np.float32) for n in (3000, 9, 3000))
    want = searched(ops, x, q, scale=scale, query_scale=query_scale, bias=bias)
    none = np.zeros(9, np.float32)
    parts = [Stored(0, x[:700], scale[:700], bias[:700]), Stored(700, x[700:], scale[700:], bias[700:])]
    for got, scores in zip(ops.nearest(parts, q, keep=7, margin=none, query_scale=query_scale), want, strict=True):
        assert_array_equal(got, best_of(scores, 7, 0))
    bits = x.view(np.uint8)
    for got, scores in zip(
        ops.nearest([Stored(0, bits)], q.view(np.uint8), keep=40, margin=none), searched(ops, bits, q.view(np.uint8)), strict=True
    ):
        assert_array_equal(got, best_of(scores, 40, 0))


@pytest.mark.parametrize("device", DEVICES)
def test_nearest_of_nothing_and_of_too_many(device):
    ops, none = backends.get(device, threads=2), np.zeros(2, np.float32)
    asked = np.ones((2, 5), np.float32)
    assert [rows.tolist() for rows in ops.nearest([], asked, keep=3, margin=none)] == [[], []]
    assert ops.nearest([], asked[:0], keep=3, margin=none[:0]) == []
    same = np.ones((20_000, 5), np.float32)
    assert [rows.tolist() for rows in ops.nearest([Stored(0, same)], asked, keep=3, margin=none)] == [[0, 1, 2]] * 2
    assert ops.nearest([Stored(0, same)], asked, keep=3, margin=none + 1) == [None, None]
