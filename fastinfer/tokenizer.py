"""Text to ids: single texts and pairs, one truncation policy, character offsets.

The tokenizer.json of a checkpoint decides how text is cut into tokens; padding and truncation that it may
ask for are switched off, since batches are packed and the limit is the model's.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .boundaries import boundaries
from .config import Config
from .errors import CheckpointError, InputError
from .tokenizer_file import open_tokenizer

__all__ = ["Tokenizer", "TruncationWarning", "as_text", "as_texts", "each_text", "warn_of"]

ANSWER_STRIDE = 128  # tokens that neighbouring windows of a long context share
# Texts, and characters of them, that the library gets in one call: it answers no signal before the call ends (20 ms of English text on
# one CPU), and keeps 170 bytes a token.
CALL_TEXTS, CALL_CHARACTERS = 1024, 1 << 16
# Characters of a long text that are tokenised at first for each token that is kept; where they do not suffice, four times as many.
CHARACTERS_PER_TOKEN = 8
IMPORTED_IN = os.getpid()  # another process is a fork of this one


class TruncationWarning(UserWarning):
    """Texts were cut to the model's limit: `cut` of `texts`; the longest had at least `longest` tokens, `limit` are allowed.

    Only the beginning of a very long text is tokenised, so that the longest may have more.
    """

    def __init__(self, cut: int, texts: int, longest: int, limit: int) -> None:
        super().__init__(cut, texts, longest, limit)
        self.cut, self.texts, self.longest, self.limit = cut, texts, longest, limit

    def __str__(self) -> str:
        return (
            f"{self.cut} of {self.texts} texts had more than {self.limit} tokens, the model's limit, "
            f"and were cut (the longest had at least {self.longest})"
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

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of several parts, one after another."""
        return cls(*(list(itertools.chain.from_iterable(columns)) for columns in zip(*parts, strict=True)))

    def moved(self, characters: int, words: int) -> Tokens:
        """The same tokens so many characters and words further on."""
        offsets = [(start + characters, end + characters) for start, end in self.offsets]
        return self._replace(offsets=offsets, word_ids=[None if word is None else word + words for word in self.word_ids])


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
        encodings: list[Any] = []
        said: list[TruncationWarning] = []
        for portion in self.portions(texts):
            encodings += self._encode(portion, words, said)
        if cuts is None:
            warn_of(said)
        else:
            cuts += said
        return encodings

    def packed(self, texts: Iterable[Any], cuts: list[TruncationWarning]) -> Iterator[PackedBatch]:
        """batch() of encode(), a portion at a time, so that no more encodings exist than those of one."""
        done = 0
        for portion in self.portions(texts):
            yield self.batch(self._encode(portion, False, cuts), done)
            done += len(portion)

    def portions(self, texts: Iterable[Any], *, whole: bool = False) -> Iterator[list[Any]]:
        """The texts in lists, each small enough for one call of the library; whole: long texts are not to be cut."""
        most = sys.maxsize if whole else CHARACTERS_PER_TOKEN * self._config.max_tokens
        portion: list[Any] = []
        characters = 0
        for text in texts:
            portion.append(text)
            characters += sum(min(len(side), most) for side in _sides(text))
            if len(portion) == CALL_TEXTS or characters >= CALL_CHARACTERS:
                yield portion
                portion, characters = [], 0
        if portion:
            yield portion

    def wholes(self, texts: Sequence[Any]) -> list[Tokens]:
        """All tokens of each text of a portion. A question of over max_tokens tokens, which no context can stand beside, may be cut."""
        texts = [text if isinstance(text, str) else (self._question(text[0]), text[1]) for text in texts]
        long = [len(_sides(text)[-1]) > CALL_CHARACTERS for text in texts]
        encodings = iter(self._call([text for text, is_long in zip(texts, long, strict=True) if not is_long]))
        return [self._whole(_sides(text)) if is_long else Tokens.of(next(encodings)) for text, is_long in zip(texts, long, strict=True)]

    def _encode(self, texts: list[Any], words: bool, cuts: list[TruncationWarning]) -> list[Any]:
        """encode() of one portion."""
        limit, size = self._config.max_tokens, CHARACTERS_PER_TOKEN * self._config.max_tokens
        begun = texts if words else [self._beginning(text, size) for text in texts]
        encodings = self._call(begun, words)
        cut = longest = 0
        for i, text in enumerate(texts):
            size, part = CHARACTERS_PER_TOKEN * limit, begun[i]
            while part is not text and not _settled(encodings[i], part, text, limit):
                size *= 4
                part = self._beginning(text, size)
                encodings[i] = self._call([part])[0]
            if len(encodings[i]) > limit:
                cut, longest = cut + 1, max(longest, len(encodings[i]))
                encodings[i] = _cut(Tokens.of(encodings[i]), limit)
        cuts.append(TruncationWarning(cut, len(texts), longest, limit))
        return encodings

    def _question(self, text: str) -> str:
        """A text, or a beginning of it that has over max_tokens tokens."""
        size, part = CHARACTERS_PER_TOKEN * self._config.max_tokens, None
        while part is not text and (part is None or len(self._call([part])[0]) <= self._config.max_tokens):
            part = self._beginning(text, size)
            size *= 4
        return part

    def _beginning(self, text: Any, size: int) -> Any:
        """A text up to its first boundary behind `size` characters, or the text itself; each side of a pair so."""
        if not isinstance(text, str):
            sides = tuple(self._beginning(side, size) for side in text)
            return text if all(map(operator.is_, sides, text)) else sides
        found = self._boundary.search(text, size) if len(text) > size and self._boundary else None
        return text[: found.start()] if found else text

    @functools.cached_property
    def _boundary(self) -> re.Pattern[str] | None:
        return boundaries(self.raw)

    def _whole(self, sides: tuple[str, ...]) -> Tokens:
        """All tokens of a text, or of a pair whose second text is long, taken from pieces between boundaries."""
        *first, long = sides
        parts: list[Tokens] = []
        before = after = None
        at = words = 0
        while at < len(long):
            lead = min(at, 1)  # one character in front shows that the piece does not begin the text
            start = at - lead
            found = self._boundary.search(long, at + CALL_CHARACTERS) if self._boundary else None
            at = found.start() if found else len(long)
            piece = Tokens.of(self._call([(*first, long[start:at]) if first else long[start:at]])[0])
            rows = [row for row, side in enumerate(piece.sequence_ids) if side == len(first)]
            inside = piece.take([row for row in rows if piece.offsets[row][1] > 1]) if lead else piece.take(rows)
            if inside.ids:
                before, after = piece.take(range(rows[0])), piece.take(range(rows[-1] + 1, len(piece.ids)))
                parts.append(inside.moved(start, words - inside.word_ids[0]))
                words = parts[-1].word_ids[-1] + 1
        return Tokens.join([before, *parts, after]) if parts else piece

    def _call(self, texts: list[Any], words: bool = False) -> list[Any]:
        """What the library makes of texts, with its threads where it can have them."""
        # A fork lacks the threads that the library may have started before. It knows, unless the environment tells it to use them: then it
        # would wait for ever.
        forked = os.getpid() != IMPORTED_IN and "TOKENIZERS_PARALLELISM" in os.environ
        alone = len(texts) < 2 or forked or Tokenizer._threadless
        if not alone:
            try:
                return self.raw.encode_batch(texts, is_pretokenized=words)
            except BaseException as error:  # its panics are no Exceptions
                if not isinstance(error, CheckpointError) and type(error).__name__ != "PanicException":
                    raise
        one = [self.raw.encode(text, is_pretokenized=True) if words else self.raw.encode(*_sides(text)) for text in texts]
        Tokenizer._threadless |= not alone  # texts one by one went well, so that threads could not be started: the library tries only once
        return one

    _threadless = False  # in this process

    def batch(self, encodings: Sequence[Any], first: int = 0) -> PackedBatch:
        """Pack encodings; a text without any token becomes the one token that begins a text (or pads, where there is none).

        first  the number that an error gives to the first of them
        """
        ids = self._config.ids
        blank = next((i for i in (ids.cls, ids.sep, ids.pad) if i is not None), None)
        rows = [encoding.ids or [blank] for encoding in encodings]
        if blank is None and [None] in rows:
            raise InputError(
                f"texts[{first + rows.index([None])}] gives no tokens, and the model names no token that could stand for an empty text"
            )
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))

        def flat(lists: list[list[int]]) -> np.ndarray:
            return np.fromiter(itertools.chain.from_iterable(lists), np.int32, lengths.sum())

        types = flat([encoding.type_ids or [0] for encoding in encodings]) if self._config.token_types > 1 else None
        return PackedBatch.from_flat(flat(rows), lengths, types)

    def windows(self, question: str, context: str) -> list[Tokens]:
        """The tokens of (question, window of context) for windows that cover a context of any length, neighbours sharing tokens."""
        (whole,) = self.wholes([(question, context)])
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
    """The first tokens of a text, its special tokens kept; of a pair as _shares() says."""
    left = _shares(*_counts(tokens), limit - tokens.sequence_ids.count(None))
    rows = []
    for row, side in enumerate(tokens.sequence_ids):
        if side is not None:
            left[side] -= 1
            if left[side] < 0:
                continue
        rows.append(row)
    return tokens.take(rows)


def _shares(first: int, second: int, room: int) -> list[int]:
    """Tokens that are kept of two texts with more than `room` tokens: the longer one loses tokens until both are as long."""
    if first <= second:
        first = min(first, room // 2)
        return [first, room - first]
    second = min(second, room // 2)
    return [room - second, second]


def _counts(tokens: Any) -> list[int]:
    """Tokens of the first and of the second text of a pair, without the special ones."""
    sides = tokens.sequence_ids
    return [sides.count(0), sides.count(1)]


def _settled(encoding: Any, part: Any, text: Any, limit: int) -> bool:
    """Whether the encoding of `part`, how `text` begins, is cut to the same tokens as that of the text, whatever the rest of it is."""
    room = limit - encoding.sequence_ids.count(None)
    least = _counts(encoding)
    most = [sys.maxsize if begun is not side else count for begun, side, count in zip(_sides(part), _sides(text), least, strict=False)]
    if len(most) == 1:
        return least[0] > room
    # The first text's share grows with its own length and shrinks with that of the second.
    shares = _shares(most[0], least[1], room)
    return sum(least) > room and shares == _shares(least[0], most[1], room) and all(map(operator.ge, least, shares))


def _sides(text: Any) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:3])})"
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
