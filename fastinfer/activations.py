"""Activations: their names, their NumPy functions, and the numbers that identify them in kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

__all__ = ["ACTIVATIONS", "NUMBERS", "Activation", "gelu"]

Activation: TypeAlias = Literal["gelu", "tanh", "relu"]

# None is the identity. fi_activation in src/cpu/kernels.h has the same numbers; src/cuda gets them as macros KIND_<NAME>.
NUMBERS: dict[str | None, int] = {name: number for number, name in enumerate((None, *get_args(Activation)))}


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel, arXiv 1606.08415)."""
    from scipy.special import erf

    x = np.maximum(x, np.float32(-15))  # below -15 GELU is 0 in float32; without this, -infinity would give NaN
    y: np.ndarray = np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))
    return y


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"gelu": gelu, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}
