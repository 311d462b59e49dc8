"""Words and windows of a text, from which tags and answers are made."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..tokens import Tokens

__all__ = ["Piece", "Word", "apart", "join_windows", "pieces", "trim", "words"]

# The first and the last letter of scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
SPACELESS = (
    *(("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u3005", "\u30ff")),
    *(("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff")),
)


class Piece(NamedTuple):
    """A token of a text: its row, the number of its word, and the span of its characters without white space around them."""

    row: int
    word: int | None
    start: int
    end: int


class Word(NamedTuple):
    """A word of a text: the rows of its tokens, and the span of its characters."""

    rows: list[int]
    start: int
    end: int


def pieces(tokens: Tokens, text: str, side: int = 0) -> list[Piece]:
    """The tokens of a text, without special tokens. side: 0 or 1, the text of a pair, as in tokens.sequence_ids."""
    return [Piece(row, tokens.word_ids[row], *trim(text, *tokens.offsets[row])) for row, of in enumerate(tokens.sequence_ids) if of == side]


def words(pieces: Sequence[Piece], text: str, marked: bool) -> list[Word]:
    """The words that pieces form, in reading order. A token of white space alone is not a word, but it may begin one.

    marked  True: the vocabulary marks pieces that continue a word ("##ly"), so the tokenizer's own words are used

    Other vocabularies mark the space before a word, so the tokenizer's words include punctuation that touches them. For these, a word
    ends at white space, punctuation and symbols. In scripts that write no spaces between words, every token is a word.
    """
    found: list[tuple[list[int], int, int]] = []
    before = None
    for piece in pieces:
        if before is not None and _continues(before, piece, text, marked):
            rows, start, end = found[-1]
            rows.append(piece.row)
            found[-1] = (rows, piece.start if start == end else start, piece.end)
        else:
            found.append(([piece.row], piece.start, piece.end))
        before = piece
    return [Word(*word) for word in found if word[1] < word[2]]


def _continues(before: Piece, piece: Piece, text: str, marked: bool) -> bool:
    """Whether a piece belongs to the word of the piece before it."""
    if marked or before.start == before.end:  # a token of white space begins the word that the tokenizer gives it
        return piece.word == before.word
    return piece.start < before.end or not any(map(apart, text[before.end - 1 : piece.start + 1]))


@functools.lru_cache(4096)
def apart(char: str) -> bool:
    """Whether a character separates words: white space, punctuation, a symbol, or a letter of a script without spaces."""
    return char.isspace() or unicodedata.category(char)[0] in "PS" or any(first <= char <= last for first, last in SPACELESS)


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends, because some tokenizers include the space before a word."""
    span = text[start:end]
    return (end, end) if not span.strip() else (end - len(span.lstrip()), start + len(span.rstrip()))


def join_windows(windows: Sequence[tuple[Sequence[int], np.ndarray]], whole: Tokens) -> np.ndarray:
    """The values (tokens, K) float32 of a whole text, joined from those of its windows. Special tokens get zeros.

    windows  (row in `whole` of each token, values (rows, K)) of each window

    Where two windows overlap, the first half of the tokens comes from the earlier window and the rest from the later one. So each
    token comes from the window in which it is farther from the border.
    """
    joined = np.zeros((len(whole.ids), windows[0][1].shape[1]), np.float32)
    end = None  # the row after the last token of the window before
    for rows, said in windows:
        inside = [i for i, row in enumerate(rows) if whole.sequence_ids[row] is not None]
        taken = inside if end is None else inside[(end - rows[inside[0]] + 1) // 2 :]
        joined[[rows[i] for i in taken]] = said[taken]
        end = rows[inside[-1]] + 1 if inside else None
    return joined
