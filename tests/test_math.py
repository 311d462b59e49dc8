"""exp, erf, tanh and the exact GELU of every ISA against float64."""

import backends
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import special

_cpu = pytest.importorskip("fastinfer._cpu", reason="the compiled module is not built")

INF, NAN = np.inf, np.nan
TINY, LEAST, MOST = np.float32(1e-45), np.finfo(np.float32).tiny, np.finfo(np.float32).max  # LEAST: of the normal numbers
FUNCTIONS = {
    "exp": np.exp,
    "erf": special.erf,
    "tanh": np.tanh,
    # erfc keeps the digits of the left tail, which 1 + erf cancels.
    "gelu": lambda x: 0.5 * x * special.erfc(-x * 0.5**0.5),
}
# {beyond this x: the largest error allowed there, in units in the last place of float32; the unit of a denormal is the least denormal}
ULPS = {"exp": {-INF: 1.5}, "erf": {-INF: 2.5}, "tanh": {-INF: 3}, "gelu": {-1: 5, -2: 10, -3: 14, -4: 32}}
GELU_ERROR = 1e-7  # largest error divided by max(1, |x|)
# Dense points where the function bends.
SPAN = {"exp": (-104, 88.8), "erf": (-5, 5), "tanh": (-11, 11), "gelu": (-15, 15)}

each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_isa = pytest.mark.parametrize("isa", backends.ISAS)


def call(isa, function, x):
    x = np.ascontiguousarray(x, np.float32)
    out = np.full_like(x, 7)
    _cpu.Kernels(isa).array(function, x, out)
    return out


def in_float64(function, x):
    with np.errstate(over="ignore"):
        return FUNCTIONS[function](x.astype(np.float64))


@each_isa
@each_function
def test_accuracy(isa, function):
    # Thinned bit patterns reach every exponent of both signs, denormals included.
    patterns = np.arange(0, 2**32, 9973, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([np.linspace(*SPAN[function], 400_001, dtype=np.float32), patterns[np.isfinite(patterns)]])
    want, got = in_float64(function, x), call(isa, function, x)
    over = want > MOST
    assert (got[over] >= MOST).all(), "too large for float32: infinity, or the largest number where rounding decides"
    flushed = (want < LEAST) & (function == "exp")
    assert_array_equal(got[flushed], 0)
    x, want, got = x[~over & ~flushed], want[~over & ~flushed], got[~over & ~flushed]
    assert np.isfinite(got).all()
    error = np.abs(got.astype(np.float64) - want)
    if function == "gelu":
        assert (error / np.maximum(1, np.abs(x))).max() <= GELU_ERROR
    ulps = error / np.spacing(np.abs(want).astype(np.float32))
    for least, allowed in ULPS[function].items():
        at = np.where(x > least, ulps, 0).argmax()
        assert ulps[at] <= allowed, f"{function}({x[at]!r}) is {got[at]!r}, should be {want[at]!r}"


@each_isa
@each_function
def test_the_ends_of_float32(isa, function):
    x = np.array([0, -0.0, INF, -INF, NAN, -NAN, MOST, -MOST, 1e30, -1e30], np.float32)
    y = call(isa, function, x)
    right, left = {"exp": (INF, 0), "erf": (1, -1), "tanh": (1, -1), "gelu": (INF, 0)}[function]
    assert_array_equal(y[:6], [function == "exp", function == "exp", right, left, NAN, NAN])
    huge = {"gelu": [MOST, 0, np.float32(1e30), 0]}.get(function, [right, left] * 2)
    assert_array_equal(y[6:], huge)


@each_isa
@each_function
def test_denormals(isa, function):
    x = np.array([TINY, 3 * TINY, 2e-39, 1.1e-38], np.float32)
    x = np.concatenate([x, -x])
    assert np.abs(call(isa, function, x).astype(np.float64) - in_float64(function, x)).max() <= {"exp": 0}.get(function, 1.5 * TINY)


@each_isa
@pytest.mark.parametrize(("function", "x"), [("exp", np.linspace(-110, -80, 100_001)), ("gelu", -np.geomspace(1e30, 5, 100_001))])
def test_no_result_is_denormal(isa, function, x):
    y = np.abs(call(isa, function, x))
    assert y.any()
    assert ((y == 0) | (y >= LEAST)).all()
    assert_array_equal(y[: np.count_nonzero(y == 0)], 0)


@each_isa
@each_function
def test_a_result_does_not_depend_on_its_place(isa, function):
    x = np.random.default_rng(1).normal(0, 3, 77).astype(np.float32)
    y = call(isa, function, x)
    for count in range(40):
        for begin in (0, 1, 5):
            assert_array_equal(call(isa, function, x[begin : begin + count]), y[begin : begin + count])


@each_isa
@each_function
def test_neighbours_do_not_matter(isa, function):
    x = np.random.default_rng(2).normal(0, 3, 77).astype(np.float32)
    y = call(isa, function, x)
    for hostile in (NAN, INF, -MOST, TINY):
        mixed = x.copy()
        mixed[::3] = hostile
        assert_array_equal(np.delete(call(isa, function, mixed), np.s_[::3]), np.delete(y, np.s_[::3]))


@each_isa
@each_function
def test_nothing_is_written_behind_the_end_and_out_may_be_the_input(isa, function):
    x = np.random.default_rng(3).normal(0, 3, 77).astype(np.float32)
    y = call(isa, function, x)
    for count in (0, 1, 15, 16, 17, 33):
        buffer = x.copy()
        _cpu.Kernels(isa).array(function, buffer[:count], buffer[:count])
        assert_array_equal(buffer, np.concatenate([y[:count], x[count:]]))
