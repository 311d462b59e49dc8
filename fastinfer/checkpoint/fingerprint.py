"""A short text that tells models apart, so that vectors of one are not compared with vectors of another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..config import Config
from ..schema import MAX_SIZE
from .tensor import Tensor

__all__ = ["fingerprint"]

SAMPLE = 64  # bytes at the beginning, in the middle and at the end of a tensor: a page of the file each, so a load stays fast


def fingerprint(config: Config, stored: Mapping[str, Tensor], max_depth: int | None) -> str:
    """32 hexadecimal digits of what decides about the vectors of a model: its config, the depth of walks and samples of each tensor.

    Weights that were trained differ everywhere, so samples tell them apart. The device and the dtype of computing do not count.
    """
    import hashlib  # imports OpenSSL, which takes longer than most modules

    depth = None if max_depth is None else min(max_depth, MAX_SIZE)  # a number of thousands of digits has no decimal text
    found = hashlib.blake2b(f"{config.to_json()}{depth}".encode(), digest_size=16)
    for name in sorted(stored):
        tensor = stored[name]
        values = tensor.data.reshape(-1)
        count = max(1, SAMPLE // values.itemsize)
        found.update(f"{name} {tensor.dtype} {tensor.data.shape}".encode())
        for first in (0, len(values) // 2, max(0, len(values) - count)):
            found.update(np.ascontiguousarray(values[first : first + count]).tobytes())
    return found.hexdigest()
