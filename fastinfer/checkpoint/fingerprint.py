"""A short text that tells models apart, so that vectors of one are not compared with vectors of another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..config import Config
from ..schema import MAX_SIZE
from .tensor import Tensor

__all__ = ["fingerprint", "samples"]

SAMPLE = 64  # bytes at the beginning, in the middle and at the end of a tensor: a page of the file each, so a load stays fast


def samples(stored: Mapping[str, Tensor]) -> bytes:
    """Samples of the values of each tensor, with its name, dtype and shape."""
    found = []
    for name in sorted(stored):
        tensor = stored[name]
        values = tensor.data.reshape(-1)
        count = max(1, SAMPLE // values.itemsize)
        found.append(f"{name} {tensor.dtype} {tensor.data.shape}".encode())
        for first in (0, len(values) // 2, max(0, len(values) - count)):
            found.append(np.ascontiguousarray(values[first : first + count]).tobytes())
    return b"".join(found)


def fingerprint(config: Config, sampled: bytes, max_depth: int | None) -> str:
    """32 hexadecimal digits of what decides about the vectors of a model: its config, the depth of walks and samples of each tensor.

    Weights that were trained differ everywhere, so samples tell them apart. The device and the dtype of computing do not count.
    """
    import hashlib  # imports OpenSSL, which takes longer than most modules

    depth = None if max_depth is None else min(max_depth, MAX_SIZE)  # a number of thousands of digits has no decimal text
    return hashlib.blake2b(f"{config.to_json()}{depth}".encode() + sampled, digest_size=16).hexdigest()
