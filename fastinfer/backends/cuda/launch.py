"""One launch of a kernel by the driver's cuLaunchKernelEx, called through ctypes: CuPy's own launches have no attributes.

Constants are those of cuda.h, CUDA 12 and 13 alike.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import BackendError

PROGRAMMATIC_STREAM_SERIALIZATION = 6


class Attribute(ctypes.Structure):
    """A CUlaunchAttribute that is an int: it begins the 64 bytes of values."""

    _fields_ = (("id", ctypes.c_int), ("_", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class Config(ctypes.Structure):
    """A CUlaunchConfig."""

    _fields_ = (
        ("sizes", ctypes.c_uint * 7),  # blocks, threads, bytes of dynamic shared memory
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


EARLY = ctypes.pointer(Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1))


@functools.cache
def library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def address(array: Any) -> int:
    """Where a CuPy array lies, 0 for None."""
    return 0 if array is None else array.data.ptr


def by_value(argument: Any) -> Any:
    """A kernel's argument as its bytes: an array's address, an int of 32 bits, a float of 32, or what has its size already."""
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    return argument if isinstance(argument, (np.ndarray, ctypes.c_int64)) else ctypes.c_void_p(address(argument))


def launch(function: int, blocks: tuple[int, ...], threads: int, shared: int, stream: int, arguments: Iterable[Any], early: bool) -> None:
    """Launch a kernel on `stream`. Raises BackendError.

    shared     bytes of dynamic shared memory
    arguments  values of ctypes, or structures of NumPy
    early      it may start while the kernel before it still runs: it awaits that one itself
    """
    config = Config((*blocks, *(1,) * (3 - len(blocks)), threads, 1, 1, shared), stream, EARLY, early)
    values = list(arguments)
    places = [v.ctypes.data if isinstance(v, np.ndarray) else ctypes.addressof(v) for v in values]
    status = library().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), (ctypes.c_void_p * len(places))(*places), None)
    if status:
        text = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(text))
        raise BackendError(f"a kernel cannot be launched: {(text.value or b'unknown error').decode()}")
