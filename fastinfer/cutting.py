"""Which tokens of a text are kept where it has more than the model's limit."""

from __future__ import annotations

import operator
import sys
from typing import Any

__all__ = ["kept", "settled", "sides"]


def kept(tokens: Any, limit: int, end: bool = False) -> list[int]:
    """The rows of the first `limit` tokens of a text, its special tokens included; the sides of a pair are cut as _shares() says.

    end  keep the last tokens of each side and not the first
    """
    counts = _counts(tokens)
    shares = _shares(counts[0], counts[1], limit - tokens.sequence_ids.count(None))
    skipped = [max(0, count - share) if end else 0 for count, share in zip(counts, shares, strict=True)]
    seen = [0, 0]
    rows = []
    for row, side in enumerate(tokens.sequence_ids):
        if side is not None:
            seen[side] += 1
            if not skipped[side] < seen[side] <= skipped[side] + shares[side]:
                continue
        rows.append(row)
    return rows


def settled(encoding: Any, part: Any, text: Any, limit: int) -> bool:
    """Whether `part`, the beginning of `text`, is cut to the same tokens as `text` would be, whatever follows it."""
    room = limit - encoding.sequence_ids.count(None)
    least = _counts(encoding)
    most = [sys.maxsize if begun is not side else count for begun, side, count in zip(sides(part), sides(text), least, strict=False)]
    if len(most) == 1:
        return bool(least[0] > room)
    # The first text's share grows with its own length and shrinks with that of the second.
    shares = _shares(most[0], least[1], room)
    return sum(least) > room and shares == _shares(least[0], most[1], room) and all(map(operator.ge, least, shares))


def sides(text: Any) -> tuple[str, ...]:
    """The one or two texts of a text or a pair."""
    return (text,) if isinstance(text, str) else tuple(text)


def _shares(first: int, second: int, room: int) -> list[int]:
    """Tokens to keep of two texts that have more than `room` together: the longer one loses tokens until both are equally long."""
    if first <= second:
        first = min(first, room // 2)
        return [first, room - first]
    second = min(second, room // 2)
    return [room - second, second]


def _counts(tokens: Any) -> list[int]:
    """Tokens of the first and of the second text of a pair, without the special ones."""
    of = tokens.sequence_ids
    return [of.count(0), of.count(1)]
