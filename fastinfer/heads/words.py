"""Words and windows of a text: what tags and answers are made of."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..tokenizer import Tokens

__all__ = ["Piece", "Word", "apart", "join_windows", "pieces", "trim", "words"]

# Letters of scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Piece(NamedTuple):
    """A token of a text: its row, the number of its word, and its characters `start` to `end`, without white space around."""

    row: int
    word: int | None
    start: int
    end: int


class Word(NamedTuple):
    """A word of a text: the rows of its tokens, and its characters `start` to `end`."""

    rows: list[int]
    start: int
    end: int


def pieces(tokens: Tokens, text: str, side: int = 0) -> list[Piece]:
    """The tokens of a text, without the special ones. side: which text of a pair, as in tokens.sequence_ids."""
    return [Piece(row, tokens.word_ids[row], *trim(text, *tokens.offsets[row])) for row, of in enumerate(tokens.sequence_ids) if of == side]


def words(pieces: Sequence[Piece], text: str, marked: bool) -> list[Word]:
    """The words that pieces form, in reading order. White space that is a token of its own is a word only where it begins one.

    marked  the vocabulary marks pieces that continue a word ("##ly"), so that the tokenizer's own words are used

    Other vocabularies mark the space before a word, so that the tokenizer's words include the punctuation that touches them. There
    a word ends at white space, at punctuation and symbols and, in scripts that write no spaces between words, with every token.
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
    if marked or before.start == before.end:  # white space that is a token begins the word that the tokenizer counts it to
        return piece.word == before.word
    return piece.start < before.end or not any(map(apart, text[before.end - 1 : piece.start + 1]))


@functools.lru_cache(4096)
def apart(char: str) -> bool:
    """Whether a character joins no word: white space, punctuation, a symbol, or a letter of a script without spaces."""
    return char.isspace() or unicodedata.category(char)[0] in "PS" or SPACELESS.match(char) is not None


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space around it: some tokenizers count the space before a word as part of it."""
    span = text[start:end]
    return (end, end) if not span.strip() else (end - len(span.lstrip()), start + len(span.rstrip()))


def join_windows(windows: Sequence[tuple[Sequence[int], np.ndarray]], whole: Tokens) -> np.ndarray:
    """(tokens, K) of a text, from what windows say of it: (rows of their tokens, (rows, K)) each; special tokens get zeros.

    Of the tokens that two neighbours share, the first half is taken from the earlier and the rest from the later window: each from
    where it is farther from the border.
    """
    joined = np.zeros((len(whole.ids), windows[0][1].shape[1]), np.float32)
    end = None  # behind the last token of the window before
    for rows, said in windows:
        inside = [i for i, row in enumerate(rows) if whole.sequence_ids[row] is not None]
        taken = inside if end is None else inside[(end - rows[inside[0]] + 1) // 2 :]
        joined[[rows[i] for i in taken]] = said[taken]
        end = rows[inside[-1]] + 1 if inside else None
    return joined
