"""Question answering: the answers are spans of a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Answer, Config
from ..tokens import Tokens
from ..weights import Weights
from .common import Shapes, layers_tensors, linear, linear_tensors, softmax, through_layers
from .words import Word, trim

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "best_spans", "decode", "forward", "join", "moved", "tensors"]

LOGITS = "token"

Decoded = tuple[dict[tuple[int, int], float], float]
ANSWER_TOKENS = 30  # tokens: the length of the longest answer


def tensors(head: Answer, config: Config) -> Shapes:
    """The tensors of the layers, and of the map from them to the logits of start and end."""
    spec, width = layers_tensors(head.layers, config.hidden)
    return spec | linear_tensors("out", 2, width)


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Answer, weights: Weights) -> Any:
    """The logits of start and end (T, 2) from hidden states (T, D)."""
    return linear(ops, through_layers(ops, x, weights, "answer", head.layers), weights.tasks, "answer.out")


def decode(
    logits: np.ndarray, rows: Sequence[int], tokens: Tokens, text: str, word_of: Mapping[int, Word], none: int | None, top_k: int
) -> Decoded:
    """({(start, end): score} of the best answers, score of "no answer") in one window of a context.

    logits  (tokens of the window, 2)
    rows    the row in `tokens` of each token of the window; `tokens` has the question and the whole context
    word_of {row: its word}; answers are widened to whole words. Empty: answers begin and end at any token
    none    id of the token whose start and end mean "no answer"; None: the score of "no answer" is 0

    A span's score is the probability of its start times that of its end. Both are softmaxes over the tokens of the context and
    the token `none`. Scores of spans that become equal by widening are added.
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


def moved(windows: Sequence[Decoded], characters: int) -> list[Decoded]:
    """Results of decode() for windows of a part of a context that begins so many characters after the context."""
    return [({(start + characters, end + characters): score for (start, end), score in found.items()}, none) for found, none in windows]


def join(windows: Sequence[Decoded], context: str, no_answer: bool) -> list[tuple[int, int, float, str]]:
    """The answers (start, end, score, context[start:end]) of a context, best first, from the results of decode() for its windows.

    A span gets its best score of all windows. "No answer" gets its least score, because no window may hold an answer.
    """
    scores: dict[tuple[int, int], float] = {}
    for found, _ in windows:
        scores |= {span: max(score, scores.get(span, 0.0)) for span, score in found.items()}
    best = [(start, end, score, context[start:end]) for (start, end), score in scores.items()]
    if no_answer:
        best.append((0, 0, min(score for _, score in windows), ""))
    return sorted(best, key=lambda answer: -answer[2])


def best_spans(start: np.ndarray, end: np.ndarray, top_k: int, longest: int = ANSWER_TOKENS) -> list[tuple[int, int, float]]:
    """The top_k best (first, last, start[first] * end[last]) with first <= last < first + longest, best first.

    start, end (tokens,) are probabilities. The function allocates a table of tokens x longest numbers.
    """
    if not len(start):
        return []
    last = np.arange(len(start))[:, None] + np.arange(longest)
    table = np.where(last < len(end), start[:, None] * end[np.minimum(last, len(end) - 1)], -1.0).ravel()
    top_k = min(top_k, len(table))
    near = np.flatnonzero(table >= np.partition(table, -top_k)[-top_k])
    best = near[np.argsort(-table[near], kind="stable")[:top_k]]
    return [(int(k // longest), int(k // longest + k % longest), float(table[k])) for k in best if table[k] >= 0]
