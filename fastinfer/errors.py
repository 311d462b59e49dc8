"""The error classes, and the checks that many modules share.

A message says what is wrong and where, the value found, the value expected and, if known, what to do. It may quote
files, callers and other libraries. So every message is bounded and made printable in one place, FastinferError.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import re
import reprlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = [
    "BackendError",
    "BackendWarning",
    "BusyError",
    "CheckpointError",
    "CheckpointWarning",
    "ConfigError",
    "DtypeError",
    "FastinferError",
    "InputError",
    "InputWarning",
    "ShapeError",
    "TaskError",
    "about",
    "check_array",
    "check_flag",
    "check_int",
    "is_plain",
    "listed",
    "near",
    "no_scipy",
    "printable",
    "required",
    "short",
    "warn",
]

LONGEST = 4000  # characters: limit of a message
LISTED = 20  # items: limit of a list in a message


def printable(text: object, limit: int = LONGEST) -> str:
    """`text` in at most `limit` characters, none of which acts on a terminal or a log; a longer text loses its middle.

    Characters that str.isprintable refuses are escaped: control characters, marks that turn the direction of writing, lone
    surrogates. A newline stays only before two blanks, as in our own lists, so that a quoted line cannot pose as a new message.
    """
    text = _cut(str(text), limit)
    if text.isprintable():
        return text
    return _cut(_ACTIVE.sub(lambda found: found[0] if found[0].isprintable() else found[0].encode("unicode_escape").decode(), text), limit)


_ACTIVE = re.compile(r"\n(?!  )|[^\n -~]")


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = "  [...]  "
    end = limit // 4
    return text[: limit - end - len(mark)] + mark + text[-end:]


def listed(items: Iterable[object], between: str = ", ") -> str:
    """The first LISTED items with `between` between them, then the number of further items."""
    items = list(items)
    more = [f"... and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return between.join([*map(str, items[:LISTED]), *more])


def near(name: object, known: Iterable[str]) -> str:
    """The words ": did you mean X?" with the known name X that is spelled most like `name`; "" if none is."""
    import difflib

    spelled = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower()[:100], spelled, 1) if isinstance(name, str) else []
    return f": did you mean {spelled[found[0]]}?" if found else ""


class FastinferError(Exception):
    """Base of every error that fastinfer raises on purpose. Its message is printable()."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class ConfigError(FastinferError, ValueError):
    """A config.json (or a Config) has a key or a value that is not allowed."""


class CheckpointError(FastinferError, ValueError):
    """A checkpoint's files are missing, broken, or do not fit its config."""


class CheckpointWarning(UserWarning):
    """A checkpoint is used, but not all that it holds. Its message is printable()."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class ShapeError(FastinferError, ValueError):
    """An array has the wrong shape."""


class DtypeError(FastinferError, TypeError):
    """An array has the wrong dtype, or a value is not an array."""


class InputError(FastinferError, ValueError):
    """A text, a row of ids or an argument cannot be used."""


class InputWarning(UserWarning):
    """Not all of a text was read."""


class TaskError(FastinferError, ValueError):
    """The model has no head for the requested task."""


class BackendError(FastinferError, RuntimeError):
    """The requested device, ISA or dtype cannot run here."""


class BackendWarning(UserWarning):
    """A model or a layer computes otherwise than was asked for, or slower than it could. Its message is printable()."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


def no_scipy(what: str) -> InputError:
    """The error for `what` where SciPy is missing, which is an extra."""
    return InputError(f"{what}, and SciPy is missing: pip install 'fastinfer[scipy]'")


class BusyError(FastinferError, RuntimeError):
    """A Batcher takes no further request: as many texts as it may hold are waiting, or it is closed."""


def required(module: str, what: str, extra: str, package: str | None = None) -> Any:
    """A module that only `what` needs, imported. Raises InputError, which names the extra of fastinfer that brings it.

    package  the name that pip knows it by; None: the name of the module
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise InputError(f"{what} needs {package}: pip install {package}, or fastinfer[{extra}] ({error})") from None


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """The message of a FastinferError raised in the block begins with `what`."""
    try:
        yield
    except FastinferError as error:
        FastinferError.__init__(error, f"{what}: {error}")
        raise


def warn(warning: Warning) -> None:
    """Give a warning that names the line outside fastinfer which made the call."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)


class _Brief(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 10_000 else f"an integer of {value.bit_length()} bits"


_brief = _Brief()
_brief.maxstring = _brief.maxother = 60
_brief.maxlevel = 3


def short(value: Any) -> str:
    """The repr of a value, cut and on one line: values from files and callers may have any length and depth."""
    return " ".join(_brief.repr(value).split())


def check_int(
    name: str, value: Any, low: int | None = None, high: int | None = None, *, error: type[FastinferError] = InputError, because: str = ""
) -> int:
    """`value` as an int. Raises `error` naming it unless it is an integer from `low` to `high`.

    name     the caller's name for it, e.g. "depth"
    low      the least value, and `high` the greatest; None: no limit
    because  added to the message, e.g. other values that are accepted

    numpy integers and other types with __index__ are accepted; a bool is not. The result is always a plain int.
    """
    whole: int | None = None
    with contextlib.suppress(TypeError):
        whole = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    if whole is None or (low is not None and whole < low) or (high is not None and whole > high):
        limits = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise error(f"{name} is {short(value)}, expected an integer{limits}{because}")
    return whole


def is_plain(value: Any) -> bool:
    """Whether `value` has the operators of a numpy array: an ndarray or a memmap, but not a matrix or a masked array."""
    return type(value) in (np.ndarray, np.memmap)


def check_array(
    name: str, array: Any, shape: Sequence[int | str], dtype: Any = np.float32, *, because: str = "", contiguous: bool = True
) -> np.ndarray:
    """Return `array` if it is a plain ndarray of `dtype` whose shape fits, or raise an error naming it.

    name     the caller's name for it, e.g. "w_in"
    shape    sizes as integers, or a name for each size that is free, e.g. ("T", 768)
    because  where the expectation comes from, added to the message

    Raises DtypeError for a wrong dtype or byte order, or if it is not an array; ShapeError for a wrong shape or, when
    `contiguous`, for an array that is not C-contiguous and aligned.
    """
    dtype = np.dtype(dtype)
    if not is_plain(array):
        hint = f": pass np.asarray({name}), if plain values are meant" if isinstance(array, np.ndarray) else ""
        raise DtypeError(f"{name} is a {type(array).__name__}, expected a numpy array of {dtype}{hint}")
    if array.dtype != dtype:
        raise DtypeError(f"{name} has dtype {array.dtype}, expected {dtype}: convert it with {name}.astype(np.{dtype})")
    assert isinstance(array, np.ndarray)
    sizes = tuple(got if isinstance(size, str) else operator.index(size) for size, got in zip(shape, array.shape, strict=False))
    if array.ndim == len(shape) and array.shape == sizes and (not contiguous or (array.flags.c_contiguous and array.flags.aligned)):
        return array
    wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    if array.ndim != len(shape) or array.shape != sizes:
        raise ShapeError(f"{name} is {array.shape}, expected {wanted}" + (f"\n  {because}" if because else ""))
    raise ShapeError(f"{name} has strides {array.strides}, expected a C-contiguous, aligned {wanted}: use np.ascontiguousarray({name})")


def check_flag(name: str, value: Any) -> bool:
    """`value`, a bool of Python or numpy, as a bool. Raises InputError for other types, such as 0 and 1."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {short(value)}, expected True or False")
    return bool(value)
