"""Text to ids: single texts and pairs, one truncation policy, character offsets.

The tokenizer.json of a checkpoint decides how text is cut into tokens; padding and truncation that it may
ask for are switched off, since batches are packed and the limit is the model's.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .config import Config
from .errors import CheckpointError, InputError
from .tokenizer_file import open_tokenizer

__all__ = ["Tokenizer", "TruncationWarning", "as_text", "as_texts", "each_text", "warn_of"]

ANSWER_STRIDE = 128  # tokens that neighbouring windows of a long context share


class TruncationWarning(UserWarning):
    """Texts were cut to the model's limit: `cut` of `texts`; the longest had `longest` tokens, `limit` are allowed."""

    def __init__(self, cut: int, texts: int, longest: int, limit: int) -> None:
        super().__init__(cut, texts, longest, limit)
        self.cut, self.texts, self.longest, self.limit = cut, texts, longest, limit

    def __str__(self) -> str:
        return (
            f"{self.cut} of {self.texts} texts had more than {self.limit} tokens, the model's limit, "
            f"and were cut (the longest had {self.longest})"
        )


def warn_of(cuts: Sequence[TruncationWarning]) -> None:
    """One warning for all of these, where texts were cut."""
    if any(c.cut for c in cuts):
        counts = sum(c.cut for c in cuts), sum(c.texts for c in cuts), max(c.longest for c in cuts)
        warnings.warn(TruncationWarning(*counts, cuts[0].limit), stacklevel=3)


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


def as_texts(texts: Any, name: str = "texts") -> list:
    """A list of texts, each a str or a pair (str, str) as a tuple. One str or one tuple is a batch of one.

    Raises InputError naming what is no text.
    """
    return list(each_text(texts, name))


def each_text(texts: Any, name: str = "texts") -> Iterator[str | tuple[str, str]]:
    """as_texts() one by one, for a stream."""
    if isinstance(texts, (str, tuple)):
        texts = [texts]
    scalar = getattr(texts, "ndim", 1) == 0  # an array that looks iterable
    if isinstance(texts, (bytes, bytearray, Mapping, set, frozenset)) or not isinstance(texts, Iterable) or scalar:
        raise InputError(f"{name} is {_kind(texts)}, expected a str, a pair (str, str), or a list of these")
    for i, text in enumerate(texts):
        yield as_text(text, f"{name}[{i}]")


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
        warning = TruncationWarning(len(long), len(texts), max((len(encodings[i]) for i in long), default=0), limit)
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

    def windows(self, question: str, context: str) -> list[Tokens]:
        """The tokens of (question, window of context) for windows that cover a context of any length, neighbours sharing tokens."""
        whole = Tokens.of(self.raw.encode(question, context))
        inside = [row for row, side in enumerate(whole.sequence_ids) if side == 1]
        room = self._config.max_tokens - (len(whole.ids) - len(inside))
        if room < 1:
            raise InputError(
                f"the question fills the model's limit of {self._config.max_tokens} tokens: no room for a context: {question:.80}"
            )
        if len(inside) <= room:
            return [whole]
        before, after = range(inside[0]), range(inside[-1] + 1, len(whole.ids))
        shared = min(ANSWER_STRIDE, room // 2)
        starts = range(0, len(inside) - shared, room - shared)
        return [whole.take([*before, *inside[start : start + room], *after]) for start in starts]


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
