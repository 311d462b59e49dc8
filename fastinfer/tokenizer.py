"""Text to ids: single texts and pairs, one truncation policy, character offsets.

The tokenizer.json of a checkpoint decides how text is cut into tokens; padding and truncation that it may
ask for are switched off, since batches are packed and the limit is the model's.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .config import Config
from .errors import CheckpointError, InputError
from .tokenizer_file import open_tokenizer

__all__ = ["Tokenizer", "TruncationWarning", "as_singles", "as_text", "as_texts", "each_text", "warn_of"]

SHARED = 128  # tokens that neighbouring windows of a long text share


class TruncationWarning(UserWarning):
    """Texts were cut to the model's limit.

    cut      how many of `texts`
    longest  tokens of the longest text
    limit    tokens that are allowed
    first    index of the first text that was cut, or None
    """

    def __init__(self, cut: int, texts: int, longest: int, limit: int, first: int | None = None) -> None:
        super().__init__(cut, texts, longest, limit, first)
        self.cut, self.texts, self.longest, self.limit, self.first = cut, texts, longest, limit, first

    def __str__(self) -> str:
        first = "" if self.first is None else f", the first is texts[{self.first}]"
        return (
            f"{self.cut} of {self.texts} texts had more than {self.limit} tokens, the model's limit, "
            f"and were cut (the longest had {self.longest}{first})"
        )

    @classmethod
    def total(cls, cuts: Sequence[TruncationWarning]) -> TruncationWarning | None:
        """One warning for the texts of several, one after another; None where no text was cut."""
        if not any(c.cut for c in cuts):
            return None
        before = itertools.accumulate((c.texts for c in cuts), initial=0)
        first = next((count + c.first for count, c in zip(before, cuts, strict=False) if c.first is not None), None)
        counts = sum(c.cut for c in cuts), sum(c.texts for c in cuts), max(c.longest for c in cuts)
        return cls(*counts, cuts[0].limit, first)


def warn_of(cuts: Sequence[TruncationWarning]) -> None:
    """One warning for all of these, where texts were cut. It names the line outside fastinfer that made the call."""
    warning = TruncationWarning.total(cuts)
    if warning is not None:
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
            level, frame = level + 1, frame.f_back
        warnings.warn(warning, stacklevel=level)


class Tokens(NamedTuple):
    """Part of an encoding: those attributes of tokenizers.Encoding that are used here."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    sequence_ids: list[int | None]

    @classmethod
    def of(cls, encoding: Any) -> Tokens:
        return cls(*(getattr(encoding, name) for name in cls._fields))

    def take(self, rows: Sequence[int]) -> Tokens:
        """The tokens of these rows."""
        return Tokens(*([column[row] for row in rows] for column in self))


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    text    index of the text
    rows    its tokens, as rows of those of the whole text
    tokens  its tokens
    """

    text: int
    rows: Sequence[int]
    tokens: Tokens


def as_texts(texts: Any, name: str = "texts") -> list:
    """A list of texts, each a str or a pair (str, str) as a tuple. One str or one tuple is a batch of one.

    Raises InputError naming what is no text, and for a collection of which it is not clear which texts in which order it holds.
    """
    return list(each_text(texts, name))


def each_text(texts: Any, name: str = "texts") -> Iterator[str | tuple[str, str]]:
    """as_texts() one by one, for a stream."""
    if isinstance(texts, (str, tuple)):
        texts = [texts]
    for i, text in enumerate(_ordered(texts, name)):
        yield as_text(text, f"{name}[{i}]")


def as_singles(texts: Any, name: str = "texts") -> list[str]:
    """as_texts() where pairs have no meaning, so that a tuple is a batch."""
    singles = as_texts(list(texts) if isinstance(texts, tuple) else texts, name)
    for i, text in enumerate(singles):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}] is a pair, expected a str")
    return singles


def _ordered(texts: Any, name: str) -> Iterable:
    """`texts`, an iterable whose items are the texts in their order. Raises InputError with what to pass instead."""
    expected = "a str, a pair (str, str), or a list of these"
    if isinstance(texts, Mapping):
        hint = f"the texts in it, such as list({name}.values())"
    elif isinstance(texts, Set):
        hint = f"a list, such as sorted({name}): a set has no order to answer in"
    elif hasattr(type(texts), "columns"):  # a table of pandas, polars or pyarrow, which iterates over its columns
        hint = f'the texts of one column, such as list({name}["column"])'
    elif isinstance(texts, np.ndarray) and texts.ndim == 0:
        hint = f"the str in it, {name}.item()"
    elif isinstance(texts, (bytes, bytearray, memoryview)):
        hint = f"a str, such as {name}.decode()"
    elif not isinstance(texts, Iterable):
        raise InputError(f"{name} is {_kind(texts)}, expected {expected}")
    else:
        return texts
    raise InputError(f"{name} is {_kind(texts)}, expected {expected}: pass {hint}")


def as_text(text: Any, name: str) -> str | tuple[str, str]:
    """A str, or a pair of them as a tuple. Raises InputError for anything else, and for a str that is no Unicode text."""
    if not isinstance(text, str):
        if not isinstance(text, (tuple, list)) or len(text) != 2 or not all(isinstance(t, str) for t in text):
            raise InputError(f"{name} is {_kind(text)}, expected a str or a pair (str, str)")
        return as_text(text[0], f"{name}[0]"), as_text(text[1], f"{name}[1]")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is no Unicode text: {error.reason} at character {error.start}") from None
    return text


class Tokenizer:
    """A checkpoint's tokenizer.json, with the model's limit of tokens per text.

    raw: the tokenizers.Tokenizer inside; what it raises is a CheckpointError (tokenizer_file.py).
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.raw = open_tokenizer(path, config.vocabulary)
        if self.marked and self.raw.decoder is None:
            self.raw.decoder = decoders.WordPiece(self.raw.model.continuing_subword_prefix)
        size = self.raw.get_vocab_size(with_added_tokens=True)
        if size > config.vocabulary:
            raise CheckpointError(
                f"{path} has {size} tokens, but the model's vocabulary is {config.vocabulary}: it belongs to another model"
            )
        self._config = config
        for count in (1, 2):
            if self.raw.num_special_tokens_to_add(count == 2) >= config.max_tokens:
                raise CheckpointError(
                    f"{path} adds {self.raw.num_special_tokens_to_add(count == 2)} tokens to a text, but max_tokens is {config.max_tokens}"
                )

    def encode(self, texts: Sequence[Any], *, words: bool = False, cuts: list[TruncationWarning] | None = None) -> list[Any]:
        """Per text its tokens: ids, type_ids, offsets (characters), word_ids, sequence_ids (None: a special token).

        Texts over the model's limit are cut (of a pair, the longer one first), with one TruncationWarning per call.

        words  each text is a list of words: word_ids and offsets are of these
        cuts   takes the warning, for a caller that warns once of all of them
        """
        limit = self._config.max_tokens
        encodings = self.raw.encode_batch(texts, is_pretokenized=words)
        long = [i for i, e in enumerate(encodings) if len(e) > limit]
        longest = max((len(encodings[i]) for i in long), default=0)
        warning = TruncationWarning(len(long), len(texts), longest, limit, long[0] if long else None)
        for i in long:
            encodings[i] = _cut(Tokens.of(encodings[i]), limit)
        if cuts is None:
            warn_of([warning])
        else:
            cuts.append(warning)
        return encodings

    def batch(self, encodings: Sequence[Any]) -> PackedBatch:
        """Pack encodings; a text without any token becomes the one token that begins a text (or pads, where there is none)."""
        ids = self._config.ids
        blank = next((i for i in (ids.cls, ids.sep, ids.pad) if i is not None), None)
        rows = [encoding.ids or [blank] for encoding in encodings]
        if blank is None and [None] in rows:
            raise InputError(
                f"texts[{rows.index([None])}] gives no tokens, and the model names no token that could stand for an empty text"
            )
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))

        def flat(lists: list[list[int]]) -> np.ndarray:
            return np.fromiter(itertools.chain.from_iterable(lists), np.int32, lengths.sum())

        types = flat([encoding.type_ids or [0] for encoding in encodings]) if self._config.token_types > 1 else None
        return PackedBatch.from_flat(flat(rows), lengths, types)

    @property
    def marked(self) -> bool:
        """Whether the vocabulary marks the pieces that continue a word ("##ly"), not the space before a word."""
        return bool(getattr(self.raw.model, "continuing_subword_prefix", None))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Tokens as they stand behind a mask token: " the" begins a word, "ly" continues one."""
        mask = self._config.ids.mask
        before, *texts = self.raw.decode_batch([[mask], *([mask, id_] for id_ in ids)], skip_special_tokens=False)
        return [text.removeprefix(before) for text in texts]

    def windows(self, texts: Sequence[Any]) -> tuple[list[Tokens], list[Window]]:
        """(tokens of each text, uncut, the windows that cover them): one window where a text fits, else several that share tokens.

        Of a pair (question, context), each window has the whole question and a part of the context. Raises InputError for a question
        that leaves no room.
        """
        wholes = [Tokens.of(encoding) for encoding in self.raw.encode_batch(texts)]
        return wholes, [window for i, whole in enumerate(wholes) for window in self._windows(i, whole, texts[i])]

    def _windows(self, i: int, whole: Tokens, text: Any) -> Iterator[Window]:
        side = 0 if isinstance(text, str) else 1
        inside = [row for row, of in enumerate(whole.sequence_ids) if of == side]
        room = self._config.max_tokens - (len(whole.ids) - len(inside))
        if room < 1:
            raise InputError(
                f"questions[{i}] fills the model's limit of {self._config.max_tokens} tokens: no room for a context: {text[0]:.80}"
            )
        if len(inside) <= room:
            yield Window(i, range(len(whole.ids)), whole)
            return
        before, after = range(inside[0]), range(inside[-1] + 1, len(whole.ids))
        shared = min(SHARED, room // 2)
        for start in range(0, len(inside) - shared, room - shared):
            rows = [*before, *inside[start : start + room], *after]
            yield Window(i, rows, whole.take(rows))


def _cut(tokens: Tokens, limit: int) -> Tokens:
    """The first tokens of a text, its special tokens kept; a pair loses tokens from the longer text until both are as long."""
    first, second = (tokens.sequence_ids.count(side) for side in (0, 1))
    room = limit - tokens.sequence_ids.count(None)
    if first <= second:
        first = min(first, room // 2)
        second = room - first
    else:
        second = min(second, room // 2)
        first = room - second
    left = {0: first, 1: second}
    rows = []
    for row, side in enumerate(tokens.sequence_ids):
        if side is not None:
            left[side] -= 1
            if left[side] < 0:
                continue
        rows.append(row)
    return tokens.take(rows)


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:3])})"
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
