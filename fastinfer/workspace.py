"""Workspace: the buffers of one call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["Workspace"]


class Workspace:
    """Named buffers that grow to the largest batch of one call and are freed when it ends. Enter it around the ops of each batch."""

    def __init__(self) -> None:
        self._buffers: dict[Any, Any] = {}

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Return the buffers at the end of the call."""

    def take(self, name: str, *shape: int, dtype: Any = None) -> Any:
        """The buffer `name` as an uninitialised array of `shape`. Later calls with this name, dtype and size of a row reuse its memory.

        So threads that are at different layers, each in some rows of their own, do not overwrite each other's.

        dtype  None: the dtype of activations
        """
        dtype = np.float32 if dtype is None else dtype
        size, key = math.prod(shape), (name, shape[1:], dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
