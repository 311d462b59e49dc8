"""Workspace: the buffers of one call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["Workspace"]


class Workspace:
    """Named buffers that grow to the largest batch of one call and are freed when it ends. Enter it around the ops of each batch."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Return the buffers at the end of the call."""

    def take(self, name: str, *shape: int, dtype: Any = None) -> Any:
        """The buffer `name` as an uninitialised array of `shape`. Later calls with this name and dtype reuse its memory.

        dtype  None: the dtype of activations
        """
        dtype = np.float32 if dtype is None else dtype
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
