"""Activations: their names, their NumPy functions, and the numbers that identify them in kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

__all__ = ["ACTIVATIONS", "NUMBERS", "Activation", "gelu"]

Activation: TypeAlias = Literal["gelu", "tanh", "relu", "silu", "gelu_tanh"]

# None is the identity. fi_activation in src/cpu/kernels.h has the same numbers; src/cuda gets them as macros KIND_<NAME>.
NUMBERS: dict[str | None, int] = {name: number for number, name in enumerate((None, *get_args(Activation)))}


# erfc(z) exp(z**2) / 2 = t P(t) with t = 1 / (1 + 0.4 z), for 0 <= z <= 10.7: the coefficients of P, highest power first. P meets the
# function at 12 Chebyshev points in t, solved in 40 digits with mpmath. Its largest relative error is 3.6e-10.
ERFC = (
    *(0.011576419683802085, -0.08417035992247746, 0.25441315997147795, -0.400805169201791, 0.34866470762311885, -0.21011622426230986),
    *(0.12754527598568852, 0.032531427751151254, 0.09160249834492107, 0.1030221164092789, 0.11290043303336841, 0.11283571459535661),
)
BLOCK = 4096  # values at a time: the float64 arrays of more do not stay in the caches (15 ns a value, and 18 without blocks)


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel, arXiv 1606.08415), in x's dtype.

    It is computed as max(x, 0) - |x| erfc(|x| / sqrt 2) / 2 in float64, which cancels nothing, so every float32 is within 0.51 ulp.
    """
    y = np.empty_like(x, order="C")
    given, out = np.ravel(x), y.reshape(-1)
    for begin in range(0, given.size, BLOCK):
        part = given[begin : begin + BLOCK].astype(np.float64)
        out[begin : begin + BLOCK] = np.maximum(part, 0) - _below_zero(np.minimum(np.abs(part), 15))  # GELU(-15) is 0 in float32
    return y


def _below_zero(a: np.ndarray) -> np.ndarray:
    """-GELU(-a) for 0 <= a <= 15 in float64, which overwrites a."""
    t = a * (0.4 * 0.5**0.5)
    t += 1
    np.divide(1, t, out=t)
    y: np.ndarray = t * ERFC[0]
    for coefficient in ERFC[1:]:
        y += coefficient
        y *= t
    y *= a
    a *= a
    a *= -0.5
    y *= np.exp(a, out=a)
    return y


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x)) (Elfwing et al., arXiv 1702.03118)."""
    x = np.maximum(x, np.float32(-120))  # below that it is 0 in float32; without this, -infinity would give NaN
    e = np.exp(-np.abs(x))
    y: np.ndarray = x * np.where(x >= 0, 1, e) / (1 + e)
    return y


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The GELU through tanh, x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) (Hendrycks & Gimpel, arXiv 1606.08415)."""
    x = np.maximum(x, np.float32(-15))
    y: np.ndarray = np.float32(0.5) * x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)))
    return y


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": gelu,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": silu,
    "gelu_tanh": gelu_tanh,
}
