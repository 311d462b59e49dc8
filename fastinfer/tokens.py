"""The tokens of a text, and the parts in which a text is read that is longer than a model takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Section", "Tokens", "Window"]


class Tokens(NamedTuple):
    """Part of an encoding: those attributes of tokenizers.Encoding that are used here."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    sequence_ids: list[int | None]

    @classmethod
    def of(cls, encoding: Any) -> Tokens:
        return cls._make(getattr(encoding, name) for name in cls._fields)

    def take(self, rows: Sequence[int]) -> Tokens:
        """The tokens of these rows."""
        return Tokens._make([column[row] for row in rows] for column in self)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of several parts, one after another."""
        return cls(*(list(itertools.chain.from_iterable(columns)) for columns in zip(*parts, strict=True)))

    def grown(self, later: Tokens, word: int | None, characters: int) -> Tokens:
        """Let the last token reach to the end of the word that goes on in `later`. What `later` has behind that word.

        word        the number of that word in `later`
        characters  where the text of `later` begins
        """
        rest = [row for row, other in enumerate(later.word_ids) if other != word]
        if len(rest) < len(later.ids):
            end = max(later.offsets[row][1] for row, other in enumerate(later.word_ids) if other == word)
            self.offsets[-1] = self.offsets[-1][0], characters + end
        return later.take(rest)

    def moved(self, characters: int, words: int) -> Tokens:
        """The same tokens, so many characters and words further on in the text."""
        offsets = [(start + characters, end + characters) for start, end in self.offsets]
        return self._replace(offsets=offsets, word_ids=[None if word is None else word + words for word in self.word_ids])


class Section(NamedTuple):
    """A part of a very long text, or another text as a whole: the index of the text, where the part begins in it, and the part."""

    text: int
    start: int
    part: str


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    text    index of the text
    rows    where its tokens stand among those of the whole text
    tokens  its tokens
    """

    text: int
    rows: Sequence[int]
    tokens: Tokens
