"""Tensor holds the bits of a stored tensor and converts it between the dtypes of the format."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CheckpointError, DtypeError

__all__ = ["DTYPES", "FROM_SAFETENSORS", "Tensor"]

# name in this project -> (name in safetensors, numpy dtype of the bits; bfloat16 is uint16, since numpy lacks it)
DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "int8": ("I8", np.dtype("i1")),
    "int32": ("I32", np.dtype("<i4")),
}
FROM_SAFETENSORS = {code: (name, dtype) for name, (code, dtype) in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A stored tensor: data (its bits; bfloat16 as uint16), the name of their dtype, and for int8 a float32 scale per row."""

    data: np.ndarray
    dtype: str
    scale: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def release(self) -> None:
        """Let the system drop the pages of a mapped file that hold this tensor. A later access reads them from the file again."""
        base: Any = self.data
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        whole = np.frombuffer(base, np.uint8)
        if whole.flags.writeable:  # anonymous memory: no file could restore the pages
            return
        begin = self.data.ctypes.data - whole.ctypes.data
        first, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + self.data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            base.madvise(mmap.MADV_DONTNEED, first, end - first)

    def float32(self) -> np.ndarray:
        """The values as float32; the stored array itself where it is float32 already."""
        if self.dtype == "bfloat16":
            bits: np.ndarray = self.data.astype(np.uint32) << 16
            return bits.view(np.float32)
        if self.dtype == "int8":
            assert self.scale is not None
            scaled: np.ndarray = self.data * self.scale[..., None]
            return scaled
        values: np.ndarray = self.data.astype(np.float32, copy=False)
        return values

    def to(self, dtype: str) -> Tensor:
        """The same values stored as `dtype`. bfloat16 rounds to nearest even; the int8 scale of a row is its largest magnitude / 127.

        Raises CheckpointError when a finite value is too large for float16 or bfloat16, and for NaN or infinity in int8.
        Raises DtypeError for int32 and for unknown dtypes.
        """
        if dtype not in DTYPES or "int32" in (dtype, self.dtype):
            raise DtypeError(f"cannot store {self.dtype} as {dtype!r}, expected one of float32, float16, bfloat16, int8")
        if dtype == self.dtype:
            return self
        values = self.float32()
        if dtype == "float32":
            return Tensor(values, dtype)
        if dtype != "int8":
            limit, instead = {"float16": (65504.0, "bfloat16"), "bfloat16": (3.3895313892515355e38, "float32")}[dtype]
            peak = float(np.abs(values).max(initial=0, where=np.isfinite(values)))
            if peak > limit:
                raise CheckpointError(f"a weight of magnitude {peak:g} does not fit into {dtype} (at most {limit:g}): use {instead}")
        if dtype == "float16":
            return Tensor(values.astype(np.float16), dtype)
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(values).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return Tensor(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), dtype)
        peaks = np.abs(values).max(axis=-1, initial=0)
        if not np.isfinite(peaks).all():
            raise CheckpointError("a weight is NaN or infinite, which int8 cannot hold: use bfloat16, or repair the weights")
        scale = peaks / np.float32(127)
        scale[scale == 0] = 1
        return Tensor(np.rint(values / scale[..., None]).clip(-127, 127).astype(np.int8), dtype, scale)
