"""Question answering: spans of a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Answer, Config
from ..tokenizer import Tokens
from ..weights import Weights
from .common import Shapes, linear, linear_tensors, softmax
from .words import Word, trim

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "best_spans", "decode", "forward", "join", "tensors"]

LOGITS = "token"

ANSWER_TOKENS = 30  # tokens of the longest answer


def tensors(head: Answer, config: Config) -> Shapes:
    """The map from hidden states to the logits of start and end."""
    return linear_tensors("out", 2, config.hidden)


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Answer, weights: Weights) -> Any:
    """(T, D) -> start and end logits (T, 2)."""
    return linear(ops, x, weights.tasks, "answer.out")


def decode(
    logits: np.ndarray, rows: Sequence[int], tokens: Tokens, text: str, word_of: Mapping[int, Word], none: int | None, top_k: int
) -> tuple[dict[tuple[int, int], float], float]:
    """({(start, end): score} of a context's best answers, score of no answer) as one window of the context has them.

    logits  (tokens of the window, 2)
    rows    the window's tokens, as rows of `tokens`, those of the question and the whole context
    word_of {row: its word}, to which answers are widened; empty: answers begin and end with any token
    none    id of the token whose start and end stand for no answer, or None: the score of no answer is then 0

    A span's score is the probability of its start times that of its end, over the tokens of the context and the token of no answer.
    Spans that become the same one by widening add up.
    """
    inside = [i for i, row in enumerate(rows) if tokens.sequence_ids[row] == 1]
    nothing = [i for i, row in enumerate(rows) if tokens.sequence_ids[row] is None and tokens.ids[row] == none][:1]
    start, end = softmax(logits[nothing + inside].T.astype(np.float64))
    count = len(nothing)
    found: dict[tuple[int, int], float] = {}
    for first, last, score in best_spans(start[count:], end[count:], 2 * top_k + 10 if word_of else top_k):
        i, j = rows[inside[first]], rows[inside[last]]
        begin = word_of[i].start if i in word_of else tokens.offsets[i][0]
        finish = word_of[j].end if j in word_of else tokens.offsets[j][1]
        span = trim(text, begin, finish)
        if span[0] < span[1]:
            found[span] = found.get(span, 0.0) + score
    return found, float((start * end)[:count].sum())


def join(windows: Sequence[tuple[dict[tuple[int, int], float], float]], context: str, no_answer: bool) -> list[tuple[int, int, float, str]]:
    """What decode() found in each window of a context, as (start, end, score, context[start:end]), best first.

    A span's score is the best that a window gives it, that of no answer the least: each window must lack one.
    """
    scores: dict[tuple[int, int], float] = {}
    for found, _ in windows:
        scores |= {span: max(score, scores.get(span, 0.0)) for span, score in found.items()}
    best = [(start, end, score, context[start:end]) for (start, end), score in scores.items()]
    if no_answer:
        best.append((0, 0, min(score for _, score in windows), ""))
    return sorted(best, key=lambda answer: -answer[2])


def best_spans(start: np.ndarray, end: np.ndarray, top_k: int, longest: int = ANSWER_TOKENS) -> list[tuple[int, int, float]]:
    """The best (first, last, start[first] * end[last]) with first <= last < first + longest, best first.

    start, end (tokens,): probabilities. Memory: tokens x longest numbers.
    """
    if not len(start):
        return []
    last = np.arange(len(start))[:, None] + np.arange(longest)
    table = np.where(last < len(end), start[:, None] * end[np.minimum(last, len(end) - 1)], -1.0).ravel()
    top_k = min(top_k, len(table))
    near = np.flatnonzero(table >= np.partition(table, -top_k)[-top_k])
    best = near[np.argsort(-table[near], kind="stable")[:top_k]]
    return [(int(k // longest), int(k // longest + k % longest), float(table[k])) for k in best if table[k] >= 0]
