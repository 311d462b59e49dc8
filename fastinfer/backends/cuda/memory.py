"""Arrays on one GPU: their allocation, copies from and to the host, and the error when memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import BackendError


class Memory:
    """The memory of GPU `number`. batch_tokens: the default of that option, for the advice in the error."""

    def __init__(self, cupy: Any, number: int, batch_tokens: int) -> None:
        self.cupy, self.number, self._batch_tokens = cupy, number, batch_tokens

    def allocate(self, what: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialised array. Raises BackendError if memory runs out; `what` names the array in the message."""
        try:
            return self.cupy.empty(shape, dtype)
        except self.cupy.cuda.memory.OutOfMemoryError:
            size = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
            raise self.no_room(f"{what}: {np.dtype(dtype)} {shape}, {size:.0f} MB") from None

    def no_room(self, what: str) -> BackendError:
        """The error for memory that ran out."""
        with self.cupy.cuda.Device(self.number):
            free, total = (n / 1e6 for n in self.cupy.cuda.runtime.memGetInfo())
        return BackendError(
            f"cuda:{self.number} has no room for {what}; {free:.0f} of {total:.0f} MB are free.\n"
            f"  Give a smaller batch_tokens ({self._batch_tokens} where you give none), a smaller dtype (float16, int8) or another "
            "device; model.release() gives back what finished calls hold."
        )

    def send(self, what: str, values: np.ndarray) -> Any:
        """A copy of a host array on the GPU. what: its name in errors."""
        array = self.allocate(what, values.shape, values.dtype)
        array.set(np.ascontiguousarray(values))
        return array

    def bring(self, array: Any) -> Callable[[], np.ndarray]:
        """A function that gives a contiguous array on the host. The copy starts now, on the current stream; the function waits for it."""
        runtime = self.cupy.cuda.runtime
        memory = self.cupy.cuda.alloc_pinned_memory(max(array.nbytes, 1))
        stream, done = self.cupy.cuda.get_current_stream(), self.cupy.cuda.Event(disable_timing=True)
        runtime.memcpyAsync(memory.ptr, array.data.ptr, array.nbytes, runtime.memcpyDeviceToHost, stream.ptr)
        done.record(stream)

        def finish() -> np.ndarray:
            done.synchronize()
            result: np.ndarray = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape).copy()
            return result

        return finish

    def free(self) -> None:
        """Give back the unused memory in CuPy's pools."""
        with self.cupy.cuda.Device(self.number):
            self.cupy.get_default_memory_pool().free_all_blocks()
            self.cupy.get_default_pinned_memory_pool().free_all_blocks()
