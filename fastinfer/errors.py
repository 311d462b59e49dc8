"""What can go wrong, by name, and the wording of the checks that many modules share.

A message says what, where, what was got, what was expected, and, where it is known, what to do. Names, values and
messages of others stand in it, too. So every message is bounded and made printable in one place, FastinferError.
"""

from __future__ import annotations

import contextlib
import operator
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
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
    "check_flag",
    "check_int",
    "is_plain",
    "listed",
    "printable",
    "short",
]

LONGEST = 4000  # characters of a message
LISTED = 20  # items that a message names


def printable(text: object, limit: int = LONGEST) -> str:
    """`text` in at most `limit` characters, none of which acts on a terminal or a log; what is longer loses its middle.

    What str.isprintable refuses is escaped: control characters, marks that turn the direction of writing, lone surrogates.
    A newline stays where two blanks follow, as in the lists of our own messages: no line of others looks like a new message.
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
    """The first items in a row, and how many more there are."""
    items = list(items)
    more = [f"... and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return between.join([*map(str, items[:LISTED]), *more])


class FastinferError(Exception):
    """Base of every error that fastinfer raises on purpose. Its message is printable()."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


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
        FastinferError.__init__(error, f"{what}: {error}")
        raise


class _Brief(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 10_000 else f"an integer of {value.bit_length()} bits"


_brief = _Brief()
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


def is_plain(value: Any) -> bool:
    """Whether this is an array whose operators mean what numpy's do: a matrix or a masked array is not, a memmap is."""
    return type(value) in (np.ndarray, np.memmap)


def check_array(
    name: str, array: Any, shape: Sequence[int | str], dtype: Any = np.float32, *, because: str = "", contiguous: bool = True
) -> np.ndarray:
    """Return `array` when it is a plain ndarray of `dtype` whose shape fits, or raise naming it.

    name     what the caller called it, e.g. "w_in"
    shape    sizes, any integers; or letters for sizes that are free, e.g. ("T", 768)
    because  where the expectation comes from, added to the message

    Raises DtypeError for a wrong dtype, byte order or no array; ShapeError for a wrong shape or, when
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
    """`value` as a bool when it is one, also numpy's. Raises InputError for what would only count as true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {short(value)}, expected True or False")
    return bool(value)
