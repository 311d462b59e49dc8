"""Arrays that callers give, of the host or of a GPU, in the dtype and width of the kernels, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import DtypeError, ShapeError
from ..reference import check_layer_arrays
from .memory import Memory
from .shared import STORAGE


class Arrays:
    """Conversions for the compute dtype `act` and rows of `width` columns."""

    def __init__(self, memory: Memory, act: str, width: int) -> None:
        self._cupy, self._memory, self._act, self._width = memory.cupy, memory, act, width
        self._storage = np.dtype(STORAGE[act])

    def widened(self, x: Any, width: int) -> Any:
        """x padded with columns of zeros to `width`; x itself, contiguous, if it is as wide."""
        if x.shape[1] == width:
            return self._cupy.ascontiguousarray(x)
        wide = self._memory.allocate("a result", (len(x), width), self._storage)
        wide[:, x.shape[1] :] = 0
        wide[:, : x.shape[1]] = x
        return wide

    def taken(self, x: Any, out: Any, hidden: int) -> tuple[Any, Any]:
        """(x on this GPU, x in the compute dtype padded to the width of rows). Raises ShapeError, DtypeError or InputError."""
        if is_of_host(x):
            check_layer_arrays(x, out, hidden)
            given = self._memory.send("x", x)
        else:
            given = self._cupy.asarray(x) if hasattr(x, "__cuda_array_interface__") else self._cupy.from_dlpack(x)
            if given.ndim != 2 or given.shape[1] != hidden:
                raise ShapeError(f"x is {given.shape}, expected (T, {hidden})\n  hidden={hidden} comes from w_in")
            if given.dtype not in (np.float32, np.float16, self._storage):
                raise DtypeError(f"x has dtype {given.dtype}, expected float32, float16 or the bits of {self._act}")
        return given, self.widened(self.as_act(given), self._width)

    def as_act(self, x: Any) -> Any:
        """float32 or float16 values as the bits of the compute dtype."""
        if x.dtype == self._storage or self._act != "bfloat16":
            return x.astype(self._storage, copy=False)
        bits = self._cupy.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # this would make -0 of a GPU's NaN, 0x7fffffff
        return self._cupy.where(self._cupy.isnan(x), 0x7FC0, rounded).astype(np.uint16)

    def as_floats(self, y: Any, dtype: Any) -> Any:
        """Values of the compute dtype as an array of `dtype`, the dtype of the caller's x."""
        if self._act != "bfloat16" or dtype == self._storage:
            return self._cupy.ascontiguousarray(y, dtype)
        return (y.astype(np.uint32) << 16).view(np.float32).astype(dtype)


def is_of_host(x: Any) -> bool:
    """Whether x is neither an array on a GPU nor one that CuPy can share."""
    return isinstance(x, np.ndarray) or not any(hasattr(x, a) for a in ("__cuda_array_interface__", "__dlpack__"))
