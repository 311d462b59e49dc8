"""A kernel launch by the driver's cuLaunchKernelEx. It is called through ctypes, because CuPy's own launches have no attributes.

The constants are from cuda.h; they are the same in CUDA 12 and 13.
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
    """A CUlaunchAttribute with an int value, which begins the 64 bytes for values."""

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
    """The CUDA driver."""
    return ctypes.CDLL("libcuda.so.1")


def address(array: Any) -> int:
    """The device address of a CuPy array; 0 for None."""
    return 0 if array is None else array.data.ptr


def by_value(argument: Any) -> Any:
    """A kernel argument with its size: an array becomes an address, an int 32 bits, a float 32 bits; other values stay."""
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    return argument if isinstance(argument, (np.ndarray, ctypes.c_int64)) else ctypes.c_void_p(address(argument))


def launch(function: int, blocks: tuple[int, ...], threads: int, shared: int, stream: int, arguments: Iterable[Any], early: bool) -> None:
    """Launch a kernel on `stream`. Raises BackendError with the driver's message.

    shared     bytes of dynamic shared memory
    arguments  values from ctypes, or structures from NumPy
    early      the kernel may start while the one before it still runs; the kernel itself waits for that one
    """
    config = Config((*blocks, *(1,) * (3 - len(blocks)), threads, 1, 1, shared), stream, EARLY, early)
    values = list(arguments)
    places = [v.ctypes.data if isinstance(v, np.ndarray) else ctypes.addressof(v) for v in values]
    status = library().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), (ctypes.c_void_p * len(places))(*places), None)
    if status:
        text = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(text))
        raise BackendError(f"a kernel cannot be launched: {(text.value or b'unknown error').decode()}")
