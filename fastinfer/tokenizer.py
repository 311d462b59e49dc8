"""Text to ids: single texts and pairs, one truncation policy, character offsets.

The tokenizer.json of a checkpoint decides how text is cut into tokens. Its padding and truncation are
switched off, since batches are packed and the model sets the limit. Only the side on which texts are cut is taken from it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .batch import PackedBatch
from .boundaries import boundaries
from .config import Config
from .cutting import next_cut, sections, settled, shortened, sides_of
from .errors import CheckpointError, InputError, short, warn
from .tokenizer_file import Plain, TokenizerFile, is_free, open_tokenizer, plain, read_tokenizer
from .tokens import Section, Tokens, Window
from .values import Missing, Text, check_missing, is_missing, kind_of, ordered

__all__ = ["Tokenizer", "TruncationWarning", "as_singles", "as_text", "as_texts", "each_text", "present", "present_singles"]
__all__ += ["warn_of"]

SHARED = 128  # tokens that neighbouring windows of a long text share
# Texts and characters that the library gets in one call. It handles no signal before the call ends (20 ms of English text on one CPU),
# and keeps 170 bytes a token.
CALL_TEXTS, CALL_CHARACTERS = 1024, 1 << 16
# Characters of a long text that are tokenised at first for each token that is kept; if they do not suffice, four times as many are tried.
CHARACTERS_PER_TOKEN = 8
# A call with more than ASK_CHARACTERS first tests that memory is free, at most MOST_ASKED bytes. ASKED_FOR_THREADS bytes are tested
# before the library starts its threads, which reserve 64 MB of addresses each.
ASK_CHARACTERS, MOST_ASKED, ASKED_FOR_THREADS = 4096, 256 << 20, 512 << 20
# Times, in characters tokenised meanwhile: the fixed part of each text, and waking the library's threads, on two CPUs.
CHARACTERS_BESIDES, WORTH_THREADS = 40, 700
IMPORTED_IN = os.getpid()  # a process with another id is a fork of this one


class TruncationWarning(UserWarning):
    """Texts were cut to the model's limit. Only the beginning of a very long text is tokenised, so `longest` may be too low.

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
            f"and were cut (the longest had at least {self.longest}{first})"
        )

    @classmethod
    def total(cls, cuts: Sequence[TruncationWarning]) -> TruncationWarning | None:
        """One warning for the texts of several warnings, in their order; None if no text was cut."""
        if not any(c.cut for c in cuts):
            return None
        before = itertools.accumulate((c.texts for c in cuts), initial=0)
        first = next((count + c.first for count, c in zip(before, cuts, strict=False) if c.first is not None), None)
        counts = sum(c.cut for c in cuts), sum(c.texts for c in cuts), max(c.longest for c in cuts)
        return cls(*counts, cuts[0].limit, first)


def warn_of(cuts: Sequence[TruncationWarning]) -> None:
    """Give one warning for all of these if texts were cut. It names the line outside fastinfer that made the call."""
    warning = TruncationWarning.total(cuts)
    if warning is not None:
        warn(warning)


def as_texts(texts: Any, name: str = "texts", missing: list[int] | None = None) -> list[Any]:
    """A list of texts, each a str or a pair (str, str) as a tuple. One str or one tuple is a batch of one.

    missing  a list that gets the indices of missing texts, which become empty ones; None: a missing text is an error

    Raises InputError naming an item that is not a text, and for a collection whose texts or their order are not clear.
    """
    if type(texts) is str and texts.isascii():
        return [texts]
    if type(texts) is list and set(map(type, texts)) == {str} and all(map(str.isascii, texts)):
        return list(texts)
    return list(each_text(texts, name, missing))


def each_text(texts: Any, name: str = "texts", missing: list[int] | None = None) -> Iterator[Text]:
    """Yield the items of as_texts() one by one, for a stream."""
    if isinstance(texts, (str, tuple)):
        texts = [texts]
    for i, text in enumerate(ordered(texts, name)):
        if type(text) is str and text.isascii():
            yield text
            continue
        pair = isinstance(text, (tuple, list)) and len(text) == 2
        if any(map(is_missing, text)) if pair else is_missing(text):
            if missing is None:
                hint = "fill or leave out such rows, or pass na='empty' or na='skip' to a task"
                raise InputError(f"{name}[{i}] is {short(text)}, expected a str or a pair (str, str): {hint}")
            missing.append(i)
            text = tuple("" if is_missing(side) else side for side in text) if pair else ""
        yield as_text(text, f"{name}[{i}]")


def as_singles(texts: Any, name: str = "texts", missing: list[int] | None = None) -> list[str]:
    """as_texts() for tasks where pairs have no meaning: a tuple is a batch. Raises InputError for a pair."""
    singles = as_texts(list(texts) if isinstance(texts, tuple) else texts, name, missing)
    for i, text in enumerate(singles):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}] is a pair, expected a str")
    return singles


def present(texts: Any, na: Missing) -> tuple[Any, list[int]]:
    """(texts with an empty one for each missing one, the indices of the missing ones whose answers are to be empty).

    na  what becomes of missing texts: "raise", "empty" or "skip". "raise" leaves the texts to a later check, which refuses missing ones
    """
    if check_missing(na) == "raise" or isinstance(texts, PackedBatch):
        return texts, []
    missing: list[int] = []
    return as_texts(texts, missing=missing), missing if na == "skip" else []


def present_singles(texts: Any, na: Missing, name: str = "texts") -> tuple[list[str], list[int]]:
    """present() for tasks where pairs have no meaning, as as_singles() has it."""
    missing: list[int] = []
    singles = as_singles(texts, name, None if check_missing(na) == "raise" else missing)
    return singles, missing if na == "skip" else []


def as_text(text: Any, name: str) -> Text:
    """A str, or a pair of them as a tuple. Raises InputError for anything else, and for a str that is not valid Unicode."""
    if not isinstance(text, str):
        if not isinstance(text, (tuple, list)) or len(text) != 2 or not all(isinstance(t, str) for t in text):
            raise InputError(f"{name} is {kind_of(text)}, expected a str or a pair (str, str)")
        for i, side in enumerate(text):
            as_text(side, f"{name}[{i}]")
        return text[0], text[1]
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is no Unicode text: {error.reason} at character {error.start}") from None
    return text


class Tokenizer:
    """A checkpoint's tokenizer.json, with the model's limit of tokens per text.

    source  the file, or its content
    raw     the tokenizers.Tokenizer inside; its errors are CheckpointErrors (tokenizer_file.py)
    """

    def __init__(self, source: Path | TokenizerFile, config: Config) -> None:
        file = read_tokenizer(source, config.vocabulary) if isinstance(source, Path) else source
        self.raw, self._path = open_tokenizer(file, config.vocabulary), file.path
        model = self.raw.model
        added = [token.content for token in self.raw.get_added_tokens_decoder().values()]
        # What get_vocab_size(with_added_tokens=True) counts in a copy of the vocabulary.
        size = self.raw.get_vocab_size(with_added_tokens=False) + sum(model.token_to_id(word) is None for word in added)
        if size > config.vocabulary:
            raise CheckpointError(
                f"{file.path} has {size} tokens, but the model's vocabulary is {config.vocabulary}: it belongs to another model"
            )
        self._config = config
        self._left = file.keeps_end
        for count in (1, 2):
            if self.raw.num_special_tokens_to_add(count == 2) >= config.max_tokens:
                raise CheckpointError(
                    f"{file.path} adds {self.raw.num_special_tokens_to_add(count == 2)} tokens to a text, "
                    f"but max_tokens is {config.max_tokens}"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the content of the tokenizer.json that the library would write."""
        return _unpickled, (str(self._path), self.raw.to_str(), self._config, self._left)

    def cutting(self, left: bool) -> Tokenizer:
        """This tokenizer, which cuts long texts on the left or on the right, whatever its file says."""
        made = copy.copy(self)
        made._left = left
        return made

    def encode(self, texts: Sequence[Any], *, words: bool = False, cuts: list[TruncationWarning] | None = None) -> list[Any]:
        """Per text its tokens: ids, type_ids, offsets (characters), word_ids, sequence_ids (None: a special token).

        Texts over the model's limit are cut (of a pair, the longer one first), with one TruncationWarning per call.

        words  each text is a list of words, which word_ids and offsets refer to
        cuts   a list that gets the warnings, for a caller that warns once for several calls
        """
        encodings: list[Any] = []
        said: list[TruncationWarning] = []
        for portion in self.portions(texts, whole=self._left):
            encodings += self._encode(portion, words, said)
        if cuts is None:
            warn_of(said)
        else:
            cuts += said
        return encodings

    def packed(
        self, texts: Iterable[Any], cuts: list[TruncationWarning], *, only_first: bool = False, limit: int | None = None
    ) -> Iterator[PackedBatch]:
        """Yield batch() of encode() for one portion at a time, so that only one portion's encodings exist.

        only_first  cut the first text of a pair alone. Raises InputError for a second one that leaves no room
        limit       the most tokens of a text; None: the model's limit
        """
        done = 0
        for portion in self.portions(texts, whole=self._left):
            yield self.batch(self._encode(portion, False, cuts, only_first, limit, places=False), done)
            done += len(portion)

    def portions(self, texts: Iterable[Any], *, whole: bool = False) -> Iterator[list[Any]]:
        """The texts in lists, each small enough for one call of the library. whole: all of a long text is tokenised."""
        most = sys.maxsize if whole else CHARACTERS_PER_TOKEN * self._config.max_tokens
        portion: list[Any] = []
        characters = 0
        for text in texts:
            portion.append(text)
            characters += min(len(text), most) if isinstance(text, str) else sum(min(len(side), most) for side in text)
            if len(portion) == CALL_TEXTS or characters >= CALL_CHARACTERS:
                yield portion
                portion, characters = [], 0
        if portion:
            yield portion

    def wholes(self, texts: Sequence[Any]) -> list[Tokens]:
        """All tokens of each text of a portion. A question of over max_tokens tokens may be cut, as no context fits beside it."""
        texts = [text if isinstance(text, str) else (self._question(text[0]), text[1]) for text in texts]
        long = [len(sides_of(text)[-1]) > CALL_CHARACTERS for text in texts]
        encodings = iter(self._call([text for text, is_long in zip(texts, long, strict=True) if not is_long]))
        return [self._whole(sides_of(text)) if is_long else Tokens.of(next(encodings)) for text, is_long in zip(texts, long, strict=True)]

    def _encode(
        self,
        texts: list[Any],
        words: bool,
        cuts: list[TruncationWarning],
        only_first: bool = False,
        limit: int | None = None,
        places: bool = True,
    ) -> list[Any]:
        """encode() of one portion. places: as _call() takes it."""
        limit = limit or self._config.max_tokens
        size = CHARACTERS_PER_TOKEN * limit
        begun = texts if words or self._left else [self._beginning(text, size) for text in texts]
        encodings = self._call(begun, words, places)
        longest, cut = 0, []
        for i, text in enumerate(texts):
            size, part = CHARACTERS_PER_TOKEN * limit, begun[i]
            while part is not text and not settled(encodings[i], part, text, limit, only_first):
                size *= 4
                if isinstance(text, str) and size > CALL_CHARACTERS:
                    encodings[i] = self._whole((text,), limit)
                    break
                part = self._beginning(text, size)
                encodings[i] = self._call([part])[0]
            if len(encodings[i].ids) > limit:
                cut.append(i)
                longest = max(longest, len(encodings[i].ids))
                tokens = encodings[i] if isinstance(encodings[i], Tokens) else Tokens.of(encodings[i])
                encodings[i] = shortened(tokens, limit, only_first, self._left)
        cuts.append(TruncationWarning(len(cut), len(texts), longest, limit, cut[0] if cut else None))
        return encodings

    def _question(self, text: str) -> str:
        """A text, or a beginning of it that has over max_tokens tokens."""
        size, part = CHARACTERS_PER_TOKEN * self._config.max_tokens, None
        while part is not text and (part is None or len(self._call([part])[0]) <= self._config.max_tokens):
            part = self._beginning(text, size)
            size *= 4
        return part

    def _beginning(self, text: Any, size: int) -> Any:
        """A text up to its first boundary after `size` characters, or the text itself; a pair with both sides treated so."""
        if not isinstance(text, str):
            begun = tuple(self._beginning(side, size) for side in text)
            return text if all(map(operator.is_, begun, text)) else begun
        end = next_cut(text, size, self._boundary) if len(text) > size else len(text)
        return text if end == len(text) else text[:end]

    def sections(self, texts: Sequence[str]) -> list[Section]:
        """The parts in which very long texts are read, so that memory is bounded; of other texts, the whole. No part is blank, unless all
        of a text is."""
        found = []
        for i, text in enumerate(texts):
            parts = [Section(i, at, part) for at, part in sections(text, self._boundary)]
            found += [section for section in parts if section.part.strip()] or parts[:1]
        return found

    @functools.cached_property
    def _boundary(self) -> re.Pattern[str] | None:
        return boundaries(self.raw)

    def _whole(self, text: tuple[str, ...], most: int = sys.maxsize) -> Tokens:
        """All tokens of a text, or of a pair whose second text is long, taken from pieces between boundaries; or the first over `most`."""
        *first, long = text
        parts: list[Tokens] = []
        before = after = Tokens([], [], [], [], [])
        at = words = count = 0
        while at < len(long) and count <= most:
            lead = min(at, 1)  # with one character in front, the piece is not tokenised as the beginning of a text
            start = at - lead
            at = next_cut(long, at + CALL_CHARACTERS, self._boundary) if len(long) > at + CALL_CHARACTERS else len(long)
            piece = Tokens.of(self._call([(*first, long[start:at]) if first else long[start:at]])[0])
            rows = [row for row, side in enumerate(piece.sequence_ids) if side == len(first)]
            inside = piece.take([row for row in rows if piece.offsets[row][1] > 1]) if lead else piece.take(rows)
            if parts and rows and piece.offsets[rows[0]][0] < lead and self._is_unknown(parts[-1]):  # the character in front is in a word
                inside = parts[-1].grown(inside, piece.word_ids[rows[0]], start)
            if inside.ids:
                before, after = piece.take(range(rows[0])), piece.take(range(rows[-1] + 1, len(piece.ids)))
                parts.append(inside.moved(start, words - (inside.word_ids[0] or 0)))
                count += len(inside.ids)
                words = (parts[-1].word_ids[-1] or 0) + 1
        return Tokens.join([before, *parts, after]) if parts else piece

    def _is_unknown(self, tokens: Tokens) -> bool:
        """Whether the last token stands for a word of any length that is not in the vocabulary, as WordPiece takes very long ones."""
        model = self.raw.model
        return type(model).__name__ == "WordPiece" and tokens.ids[-1] == self.raw.token_to_id(model.unk_token)

    def _call(self, texts: list[Any], words: bool = False, places: bool = True) -> list[Any]:
        """The library's encodings of texts, made with its threads if they can start. Raises MemoryError.

        places  whether offsets are wanted. Without them, and for plain texts, the library takes up to half of the time less
        """
        # The library aborts when it gets no memory, so test for it first: up to 800 bytes a character were measured.
        characters = sum([len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts])
        if characters > ASK_CHARACTERS and not is_free(min(characters << 10, MOST_ASKED)):
            raise MemoryError(f"{min(characters << 10, MOST_ASKED) >> 20} MB to tokenise {characters} characters cannot be had")
        # A fork lacks the threads that the library may have started before. It notices that, unless the environment tells it to use
        # threads: then it would wait for ever.
        forked = os.getpid() != IMPORTED_IN and "TOKENIZERS_PARALLELISM" in os.environ
        few = len(texts) < 2 or characters + CHARACTERS_BESIDES * len(texts) < WORTH_THREADS
        if few or forked or Tokenizer._threads is False or (Tokenizer._threads is None and not is_free(ASKED_FOR_THREADS)):
            return self._one_by_one(texts, words)
        try:
            encodings: list[Any] = self.raw.encode_batch(texts, is_pretokenized=words) if places else self._without_places(texts)
        except BaseException as error:  # a panic of the library is not an Exception
            if not isinstance(error, CheckpointError) and type(error).__name__ != "PanicException":
                raise
            encodings = self._one_by_one(texts, words)
            Tokenizer._threads = False  # only the threads failed: they could not start, and the library tries only once
        else:
            Tokenizer._threads = True
        return encodings

    _threads: bool | None = None  # whether the library's threads could start in this process; None: not tried yet

    def _without_places(self, texts: list[Any]) -> list[Any]:
        """The library's encodings of texts, without offsets."""
        chosen = self._plain.of(texts) if self._plain else {}
        if self._plain is None or not chosen:
            encodings: list[Any] = self.raw.encode_batch_fast(texts)
            return encodings
        made = dict(zip(chosen, self._plain.raw.encode_batch_fast(list(chosen.values())), strict=True))
        others = iter(self.raw.encode_batch_fast([text for i, text in enumerate(texts) if i not in made]))
        return [made[i] if i in made else next(others) for i in range(len(texts))]

    @functools.cached_property
    def _plain(self) -> Plain | None:
        return plain(self.raw)

    def _one_by_one(self, texts: list[Any], words: bool) -> list[Any]:
        return [self.raw.encode(text, is_pretokenized=True) if words else self.raw.encode(*sides_of(text)) for text in texts]

    def batch(self, encodings: Sequence[Any], first: int = 0) -> PackedBatch:
        """Pack encodings. A text without tokens becomes one token: the model's cls, else sep, else pad; InputError if it has none.

        first  the number that an error gives to the first text
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

    @property
    def marked(self) -> bool:
        """Whether the vocabulary marks the pieces that continue a word ("##ly") instead of the space before a word."""
        return bool(getattr(self.raw.model, "continuing_subword_prefix", None))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token when it follows a mask token: " the" begins a word, "ly" continues one."""
        mask = self._config.ids.mask
        before, *texts = (self.raw.decode(row, skip_special_tokens=False) for row in ([mask], *([mask, id_] for id_ in ids)))
        return [text.removeprefix(before) for text in texts]

    def windows(self, texts: Sequence[Any], numbers: Sequence[int] | None = None) -> tuple[list[Tokens], list[Window]]:
        """(all tokens of each text, the windows that cover them). A text that fits has one window, a longer one several that share tokens.

        For a pair (question, context), each window has the whole question and a part of the context. Raises InputError for a question
        that leaves no room for a context.

        numbers  those that an error gives to the texts; None: from 0 on
        """
        wholes, said = self.wholes(texts), numbers or range(len(texts))
        return wholes, [window for i, whole in enumerate(wholes) for window in self._windows(i, whole, texts[i], said[i])]

    def _windows(self, i: int, whole: Tokens, text: Any, number: int) -> Iterator[Window]:
        side = 0 if isinstance(text, str) else 1
        inside = [row for row, of in enumerate(whole.sequence_ids) if of == side]
        room = self._config.max_tokens - (len(whole.ids) - len(inside))
        if room < 1:
            raise InputError(
                f"questions[{number}] fills the model's limit of {self._config.max_tokens} tokens: no room for a context: {text[0]:.80}"
            )
        if len(inside) <= room:
            yield Window(i, range(len(whole.ids)), whole)
            return
        before, after = range(inside[0]), range(inside[-1] + 1, len(whole.ids))
        shared = min(SHARED, room // 2)
        for start in range(0, len(inside) - shared, room - shared):
            rows = [*before, *inside[start : start + room], *after]
            yield Window(i, rows, whole.take(rows))


def _unpickled(path: str, text: str, config: Config, left: bool) -> Tokenizer:
    """A pickled Tokenizer. Its file was checked when it was first opened."""
    made = Tokenizer(TokenizerFile(Path(path), json.loads(text), set()), config)
    made._left = left
    return made
