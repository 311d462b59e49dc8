"""Vectors in fewer bytes: float16, int8, and one bit a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError, short

__all__ = ["PRECISIONS", "as_bits", "as_codes", "check_precision", "in_precision"]

PRECISIONS = ("float32", "float16", "int8", "binary", "ubinary")


def check_precision(value: Any, known: tuple[str, ...] = PRECISIONS) -> str:
    """`value`, one of the known names. Raises InputError."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"precision is {short(value)}, expected one of {', '.join(map(repr, known))}")
    return value


def in_precision(vectors: np.ndarray, precision: str) -> np.ndarray:
    """The vectors (B, D) float32 as Model.embed() gives them in this precision."""
    if precision == "float16":
        with np.errstate(over="ignore"):  # a number beyond 65,504 becomes infinity, as in every cast
            return vectors.astype(np.float16)
    if precision == "int8":
        return as_codes(vectors)[0]
    if precision == "ubinary":
        return as_bits(vectors)
    return (as_bits(vectors) ^ 0x80).view(np.int8) if precision == "binary" else vectors


def as_codes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes (B, D) int8, scale (B,) float32): codes * scale are the vectors, whose largest number becomes 127 or -127."""
    scale = np.abs(vectors).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
    codes = np.rint(vectors / np.where(scale > 0, scale, np.float32(1))[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scale


def as_bits(vectors: np.ndarray) -> np.ndarray:
    """(B, D / 8 rounded up) uint8: a bit for each number, set where it is positive, the first number in the highest bit."""
    return np.packbits(vectors > 0, axis=1)
