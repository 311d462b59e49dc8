"""Activations: their names, their NumPy functions, and the numbers that identify them in kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

__all__ = ["ACTIVATIONS", "NUMBERS", "Activation", "gelu"]

Activation: TypeAlias = Literal["gelu", "tanh", "relu", "silu", "gelu_tanh"]

# None is the identity. fi_activation in src/cpu/kernels.h has the same numbers; src/cuda gets them as macros KIND_<NAME>.
NUMBERS: dict[str | None, int] = {name: number for number, name in enumerate((None, *get_args(Activation)))}


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel, arXiv 1606.08415)."""
    from scipy.special import erf

    x = np.maximum(x, np.float32(-15))  # below -15 GELU is 0 in float32; without this, -infinity would give NaN
    y: np.ndarray = np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))
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
