"""Values as people have them: columns of pandas, polars and pyarrow, arrays of NumPy, iterators, and rows without a text."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping, Set
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from .batch import PackedBatch
from .errors import InputError, short
from .progress import Show

__all__ = ["Batch", "EmbedOptions", "Filled", "Found", "Label", "Labels", "Missing", "Route", "Singles", "Span", "Text", "Texts", "Vectors"]
__all__ += ["check_missing", "is_missing", "kind_of", "ordered"]

# A missing text is None, NaN or pandas.NA. What is given instead of it: an error, the answer to an empty text, or an empty answer.
Missing: TypeAlias = Literal["raise", "empty", "skip"]
Text: TypeAlias = str | tuple[str, str]
# Columns of pandas and the others are iterables of Any to a type checker.
Singles: TypeAlias = str | Iterable[str | None]
Texts: TypeAlias = Text | Iterable[Text | list[str] | None] | PackedBatch
Batch: TypeAlias = Text | Iterable[Text | list[str]] | PackedBatch  # where a missing text is always an error

# Parts of answers. Any stands beside a type where the model or the texts decide, so that callers need not tell the cases apart.
Vectors: TypeAlias = NDArray[np.float32]
Label: TypeAlias = tuple[str, float]  # label, score
Labels: TypeAlias = list[Label] | Any  # a float, where the model has one label
Filled: TypeAlias = tuple[str, float, str | Any]  # token, score, the text with the mask filled: a pair, where that is one
Span: TypeAlias = tuple[int, int, str, float, str]  # start, end, label, score, text
Found: TypeAlias = tuple[int, int, float, str]  # start, end, score, text
Route: TypeAlias = tuple[NDArray[np.int32], NDArray[np.float32]]  # nodes, z


class EmbedOptions(TypedDict, total=False):
    """The options of Model.embed() beside `precision`, which decides the dtype of the vectors."""

    prompt: str | None
    prompt_name: str | None
    normalize: bool | None
    dim: int | None
    na: Missing
    batch_tokens: int | None
    threads: int | None
    progress: Show


def ordered(texts: Any, name: str) -> Iterable[Any]:
    """`texts`, an iterable, as one whose items are the texts in their order. Raises InputError with the value to pass instead."""
    expected = "a str, a pair (str, str), or a list of these"
    if isinstance(texts, Mapping):
        hint = f"the texts in it, such as list({name}.values())"
    elif isinstance(texts, Set) and not isinstance(texts, KeysView):
        hint = f"a list, such as sorted({name}): a set has no order to answer in"
    elif hasattr(type(texts), "columns"):  # a table of pandas, polars or pyarrow, which iterates over its columns
        hint = f'the texts of one column, such as {name}["column"]'
    elif isinstance(texts, np.ndarray) and texts.ndim == 0:
        hint = f"the str in it, {name}.item()"
    elif isinstance(texts, (bytes, bytearray, memoryview)):
        hint = f"a str, such as {name}.decode()"
    elif not isinstance(texts, Iterable):
        raise InputError(f"{name} is {kind_of(texts)}, expected {expected}")
    elif type(texts).__module__.partition(".")[0] == "pyarrow":
        return (value.as_py() for value in texts)
    elif isinstance(texts, np.ndarray) and texts.ndim == 1 and texts.dtype.kind in "OTU":
        listed: list[Any] = texts.tolist()  # str, not numpy.str_; None for a masked value
        return listed
    else:
        return texts
    raise InputError(f"{name} is {kind_of(texts)}, expected {expected}: pass {hint}")


def check_missing(na: Any) -> Missing:
    """`na`, if it is a Missing. Raises InputError."""
    if not isinstance(na, str) or na not in ("raise", "empty", "skip"):
        raise InputError(f"na is {short(na)}, expected 'raise', 'empty' or 'skip'")
    return na  # type: ignore[return-value]


def is_missing(value: Any) -> bool:
    """Whether a value stands for a text that is not there."""
    if value is None or isinstance(value, (float, np.floating)):
        return value is None or bool(value != value)
    return type(value).__name__ in ("NAType", "NaTType") and type(value).__module__.startswith("pandas.")


def kind_of(value: Any) -> str:
    """What a value is, in an error."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:3])})"
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
