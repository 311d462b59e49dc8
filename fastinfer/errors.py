"""What can go wrong, by name, and the wording of the checks that many modules share.

A message says what, where, what was got, what was expected, and, where it is known, what to do.
"""

from __future__ import annotations

import contextlib
import operator
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DtypeError",
    "FastinferError",
    "InputError",
    "ShapeError",
    "TaskError",
    "about",
    "check_array",
    "check_int",
    "short",
]


class FastinferError(Exception):
    """Base of every error that fastinfer raises on purpose."""


class ConfigError(FastinferError, ValueError):
    """A config.json (or a Config) says something that cannot be."""


class CheckpointError(FastinferError, ValueError):
    """A checkpoint's files are missing, broken, or do not fit its config."""


class ShapeError(FastinferError, ValueError):
    """An array has the wrong shape."""


class DtypeError(FastinferError, TypeError):
    """An array has the wrong dtype, or is no array."""


class InputError(FastinferError, ValueError):
    """A text, a row of ids or an argument cannot be used."""


class TaskError(FastinferError, ValueError):
    """The model has no head for what was asked."""


class BackendError(FastinferError, RuntimeError):
    """A device, ISA or dtype was asked for that cannot run here."""


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Errors raised on purpose in here begin with what they are about."""
    try:
        yield
    except FastinferError as error:
        error.args = (f"{what}: {error}",)
        raise


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60
_brief.maxlevel = 3


def short(value: Any) -> str:
    """The repr of a value that came from a file or a caller, cut and on one line: it may be of any length and depth."""
    return " ".join(_brief.repr(value).split())


def check_int(
    name: str, value: Any, low: int | None = None, high: int | None = None, *, error: type[FastinferError] = InputError, because: str = ""
) -> int:
    """`value` as an int when it is an integer from `low` to `high`, or raise `error` naming it.

    name     what the caller called it, e.g. "depth"
    low      the least value, and `high` the greatest; None: no limit
    because  added to the message, e.g. what else is accepted

    numpy integers and whatever else has __index__ count; a bool does not. What is stored or compared later is an int.
    """
    whole: int | None = None
    with contextlib.suppress(TypeError):
        whole = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    if whole is None or (low is not None and whole < low) or (high is not None and whole > high):
        limits = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise error(f"{name} is {short(value)}, expected an integer{limits}{because}")
    return whole


def check_array(
    name: str, array: Any, shape: Sequence[int | str], dtype: Any = np.float32, *, because: str = "", contiguous: bool = True
) -> np.ndarray:
    """Return `array` when it is an ndarray of `dtype` whose shape fits, or raise naming it.

    name     what the caller called it, e.g. "w_in"
    shape    sizes, any integers; or letters for sizes that are free, e.g. ("T", 768)
    because  where the expectation comes from, added to the message

    Raises DtypeError for a wrong dtype, byte order or no array; ShapeError for a wrong shape or, when
    `contiguous`, for an array that is not C-contiguous and aligned.
    """
    dtype = np.dtype(dtype)
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"{name} is a {type(array).__name__}, expected a numpy array of {dtype}")
    if array.dtype != dtype:
        raise DtypeError(f"{name} has dtype {array.dtype}, expected {dtype}: convert it with {name}.astype(np.{dtype})")
    shape = [s if isinstance(s, str) else operator.index(s) for s in shape]
    wanted = "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
    why = f"\n  {because}" if because else ""
    if array.ndim != len(shape) or any(not isinstance(s, str) and s != got for s, got in zip(shape, array.shape, strict=True)):
        raise ShapeError(f"{name} is {array.shape}, expected {wanted}{why}")
    if contiguous and not (array.flags.c_contiguous and array.flags.aligned):
        raise ShapeError(f"{name} has strides {array.strides}, expected a C-contiguous, aligned {wanted}: use np.ascontiguousarray({name})")
    return array
