"""Cutting texts and pairs that have more tokens than a model takes."""

from __future__ import annotations

import operator
import re
import sys
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .tokens import Tokens

__all__ = ["next_cut", "sections", "settled", "shortened", "sides_of"]

# Characters of a text without a boundary before it is cut all the same. Tokenizing takes up to 800 bytes a character, so this bounds
# memory. No word or sentence is so long; what comes so far behind the first max_tokens tokens does not change them.
SOLID = 1 << 17
SECTION = 1 << 18  # characters of a long text whose windows are computed together, at 500 bytes each
BETWEEN = re.compile(r"(?<=\w)(?=\W)|(?<=\W)(?=\w)")  # the end or the beginning of a word, in any language


def next_cut(text: str, at: int, boundary: re.Pattern[str] | None) -> int:
    """The first place from `at` on where a text can be cut: a boundary, else the end of a word within SOLID characters; or its end."""
    found = boundary.search(text, at, at + SOLID) if boundary else None
    if found is None and len(text) > at + SOLID:
        found = BETWEEN.search(text, at, at + SOLID)
        return found.start() if found else at + SOLID
    return found.start() if found else len(text)


def sections(text: str, boundary: re.Pattern[str] | None) -> list[tuple[int, str]]:
    """(start, part) of the parts of a text of over SECTION characters, which are read one after another; of a shorter text, the whole."""
    found: list[tuple[int, str]] = []
    at = 0
    while at < len(text) or not found:
        end = next_cut(text, at + SECTION, boundary) if len(text) > at + SECTION else len(text)
        found.append((at, text[at:end]))
        at = end
    return found


def shortened(tokens: Tokens, limit: int, only_first: bool, end: bool = False) -> Tokens:
    """The first `limit` tokens of a text, its special tokens kept; the sides of a pair are cut as shares() says.

    end  keep the last tokens of each side and not the first
    """
    first, second = counts(tokens)
    left = shares(first, second, limit - tokens.sequence_ids.count(None), only_first)
    skip = [first - left[0], second - left[1]] if end else [0, 0]
    if left[0] < 1 and only_first:
        raise InputError(f"a second text of {second} tokens leaves no room for the first: the model's limit is {limit}")
    rows = []
    for row, side in enumerate(tokens.sequence_ids):
        if side is not None and skip[side] > 0:
            skip[side] -= 1
            continue
        if side is not None:
            left[side] -= 1
            if left[side] < 0:
                continue
        rows.append(row)
    return tokens.take(rows)


def shares(first: int, second: int, room: int, only_first: bool) -> list[int]:
    """Tokens to keep of two texts that have more than `room` together: the longer one loses tokens until both are equally long.

    only_first  the first one loses tokens
    """
    if only_first:
        return [room - second, second]
    if first <= second:
        first = min(first, room // 2)
        return [first, room - first]
    second = min(second, room // 2)
    return [room - second, second]


def counts(tokens: Any) -> list[int]:
    """Tokens of the first and of the second text of a pair, without the special ones."""
    sides = tokens.sequence_ids
    return [sides.count(0), sides.count(1)]


def settled(encoding: Any, part: Any, text: Any, limit: int, only_first: bool) -> bool:
    """Whether `part`, the beginning of `text`, is cut to the same tokens as `text` would be, whatever follows it."""
    room = limit - encoding.sequence_ids.count(None)
    least = counts(encoding)
    most = [sys.maxsize if begun is not side else count for begun, side, count in zip(sides_of(part), sides_of(text), least, strict=False)]
    if len(most) == 1:
        return bool(least[0] > room)
    # The first text's share grows with its own length and shrinks with that of the second.
    kept = shares(most[0], least[1], room, only_first)
    return sum(least) > room and kept == shares(least[0], most[1], room, only_first) and all(map(operator.ge, least, kept))


def sides_of(text: Any) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)
