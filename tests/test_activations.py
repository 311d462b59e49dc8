"""The exact GELU of the NumPy reference against math.erfc, which keeps the digits of the left tail."""

import math
import secrets

import numpy as np
import pytest

from fastinfer.activations import BLOCK, gelu


def in_float64(x):
    return np.array([0.5 * value * math.erfc(-value * 0.5**0.5) for value in x.ravel().tolist()]).reshape(x.shape)


def test_gelu_is_the_nearest_float32_or_its_neighbour():
    rng = np.random.default_rng(secrets.randbits(64))
    patterns = rng.integers(0, 2**32, 60_000, np.uint32).view(np.float32)  # every exponent of both signs, denormals included
    x = np.concatenate([np.linspace(-15, 15, 200_001, dtype=np.float32), rng.normal(0, 2, 60_000), patterns[np.isfinite(patterns)]])
    x = x.astype(np.float32)
    got, want = gelu(x), in_float64(x)
    assert got.dtype == np.float32
    ulps = np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    worst = ulps.argmax()
    assert ulps[worst] <= 0.51, f"gelu({x[worst]!r}) is {got[worst]!r}, should be {want[worst]!r}"


def test_gelu_in_float64():
    x = np.random.default_rng(secrets.randbits(64)).uniform(-14, 14, 20_000)
    want = in_float64(x)
    assert gelu(x).dtype == np.float64
    assert (np.abs(gelu(x) - want) / np.abs(want)).max() < 5e-10


@pytest.mark.filterwarnings("error")
def test_special_values():
    got = gelu(np.float32([np.nan, np.inf, -np.inf, 0, -15, -100, 3e38, -3e38]))
    np.testing.assert_array_equal(got, np.float32([np.nan, np.inf, 0, 0, 0, 0, 3e38, 0]))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, BLOCK), (BLOCK + 1,)])
def test_values_do_not_depend_on_the_shape(shape):
    x = np.random.default_rng(secrets.randbits(64)).normal(0, 2, shape).astype(np.float32)
    got = gelu(x)
    assert got.shape == shape
    for same in (gelu(np.asfortranarray(x)), gelu(np.repeat(x[..., None], 2, -1)[..., 0])):
        np.testing.assert_array_equal(same, got)
    np.testing.assert_array_equal(got, np.float32([gelu(np.float32([value]))[0] for value in x.ravel()]).reshape(shape))
