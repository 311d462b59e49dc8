"""Task heads: the tensors each declares, its forward over final hidden states, and decoding to answers."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .config import Config, Tag
from .tokenizer import Tokenizer, Tokens

__all__ = [
    "STRATEGIES",
    "best_spans",
    "decode_answers",
    "decode_classes",
    "decode_mask",
    "decode_tags",
    "forward_answer",
    "forward_classify",
    "forward_embed",
    "forward_fill_mask",
    "forward_tag",
    "join_windows",
    "merge_tags",
    "pieces",
    "tensors",
    "trim",
    "words",
]

ANSWER_TOKENS = 30  # longest answer
# Letters of scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def tensors(config: Config) -> dict[str, tuple[tuple[int, ...], str]]:
    """{name: (shape, family)} of all heads, names beginning with the task's."""
    spec: dict[str, tuple[tuple[int, ...], str]] = {}
    hidden, tasks = config.hidden, config.tasks

    def linear(name: str, out: int, width: int) -> None:
        spec[f"{name}.weight"] = ((out, width), "matrices")
        spec[f"{name}.bias"] = ((out,), "vector")

    if tasks.fill_mask:
        if tasks.fill_mask.transform:
            linear("fill_mask.transform", hidden, hidden)
            spec["fill_mask.norm.weight"] = ((hidden,), "vector")
            spec["fill_mask.norm.bias"] = ((hidden,), "vector")
        if not tasks.fill_mask.tied:
            spec["fill_mask.decoder.weight"] = ((config.vocabulary, hidden), "matrices")
        if tasks.fill_mask.bias:
            spec["fill_mask.bias"] = ((config.vocabulary,), "vector")
    if tasks.classify:
        width = hidden
        for i, layer in enumerate(tasks.classify.layers):
            linear(f"classify.layers.{i}", layer.width, width)
            width = layer.width
        linear("classify.out", len(tasks.classify.labels), width)
    if tasks.tag:
        linear("tag.out", len(tasks.tag.labels), hidden)
    if tasks.answer:
        linear("answer.out", 2, hidden)
    return spec


def _linear(ops: Any, x: np.ndarray, layer: Any, activation: str | None = None) -> np.ndarray:
    out = ops.empty(len(x), ops.outputs(layer.weight))
    ops.linear(x, layer.weight, bias=layer.bias, activation=activation, out=out)
    return out


def _pool(ops: Any, x: np.ndarray, batch: PackedBatch, kind: str) -> np.ndarray:
    out = ops.empty(len(batch), x.shape[1], dtype=np.float32)
    ops.pool(x, batch.cu_seqlens, kind, out=out)
    return out


def forward_embed(ops: Any, x: np.ndarray, batch: PackedBatch, config: Config) -> np.ndarray:
    """(T, D) -> (B, D), pooled as the checkpoint says."""
    return _pool(ops, x, batch, config.tasks.embed.pooling)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Each row at length 1; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def forward_classify(ops: Any, x: np.ndarray, batch: PackedBatch, config: Config, heads: Any) -> np.ndarray:
    """(T, D) -> logits (B, K)."""
    head = config.tasks.classify
    h = _pool(ops, x, batch, head.pooling)
    for layer, weights in zip(head.layers, heads.classify.layers or (), strict=True):
        h = _linear(ops, h, weights, layer.activation)
    return _linear(ops, h, heads.classify.out)


def forward_tag(ops: Any, x: np.ndarray, heads: Any) -> np.ndarray:
    """(T, D) -> logits (T, K)."""
    return _linear(ops, x, heads.tag.out)


def forward_answer(ops: Any, x: np.ndarray, heads: Any) -> np.ndarray:
    """(T, D) -> start and end logits (T, 2)."""
    return _linear(ops, x, heads.answer.out)


def forward_fill_mask(ops: Any, x: np.ndarray, config: Config, heads: Any, eps: float) -> np.ndarray:
    """The rows to decode (M, D) -> logits (M, V)."""
    if config.tasks.fill_mask.transform:
        x = _linear(ops, x, heads.fill_mask.transform, "gelu")
        ops.norm(x, heads.fill_mask.norm, eps, out=x)
    decoder = heads.fill_mask.decoder
    out = ops.empty(len(x), ops.outputs(decoder.weight))
    ops.linear(x, decoder.weight, bias=heads.fill_mask.bias, out=out)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, float32, safe for any finite logits."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, e) / (1 + e)


def decode_classes(logits: np.ndarray, config: Config, top_k: int | None) -> list:
    """(B, K) -> per text a list of (label, score), best first; a regression (one label, identity) -> list of float."""
    head = config.tasks.classify
    if head.output == "identity" and len(head.labels) == 1:
        return logits[:, 0].tolist()
    scores = {"softmax": softmax, "sigmoid": sigmoid, "identity": np.asarray}[head.output](logits)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(head.labels[k], float(row[k])) for k in best] for row, best in zip(scores, order, strict=True)]


# --- words and windows of a text ---


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
    return piece.start < before.end or not any(map(_apart, text[before.end - 1 : piece.start + 1]))


@functools.lru_cache(4096)
def _apart(char: str) -> bool:
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


# --- decoding ---


# What a word's probabilities (K,) are, from those of its tokens (tokens, K); "simple" has no words, each token stands for itself.
STRATEGIES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "simple": None,
    "first": lambda scores: scores[0],
    "average": lambda scores: scores.mean(0),
    "max": lambda scores: scores[scores.max(1).argmax()],
}


def decode_tags(
    scores: np.ndarray, tokens: Tokens, text: str, head: Tag, strategy: str, marked: bool
) -> list[tuple[int, int, str, float, str]]:
    """The probabilities (tokens, K) of a text to its spans (start, end, name, score, text[start:end]), in reading order.

    strategy  of STRATEGIES; marked  as in words()
    """
    choose = STRATEGIES[strategy]
    found = pieces(tokens, text)
    if choose is None:
        units = [(piece.start, piece.end) for piece in found]
        scores = scores[[piece.row for piece in found]]
    else:
        parts = words(found, text, marked)
        units = [(word.start, word.end) for word in parts]
        scores = np.stack([choose(scores[word.rows]) for word in parts]) if parts else scores[:0]
    spans = ((*trim(text, start, end), name, score) for start, end, name, score in merge_tags(scores, units, head.labels, head.scheme))
    return [(start, end, name, score, text[start:end]) for start, end, name, score in spans if start < end]


def merge_tags(
    scores: np.ndarray, units: Sequence[tuple[int, int]], labels: Sequence[str], scheme: str
) -> list[tuple[int, int, str, float]]:
    """Probabilities to spans (start, end, name, score).

    scores (units, K); units: (start, end) of each word or token, in reading order. Neighbours join when the second continues the
    first (I- after B- or I- of the same name; in scheme "io", the same name). The score is the mean over the units.
    """
    spans: list[tuple[int, int, str, float, int]] = []
    open_name = None
    for (start, end), best, score in zip(units, scores.argmax(1), scores.max(1, initial=0), strict=True):
        label = labels[best]
        if label == "O":
            open_name = None
            continue
        name = label[2:] if scheme == "bio" else label
        begins = scheme == "bio" and label.startswith("B-")
        if name == open_name and not begins:
            first, _, _, total, count = spans[-1]
            spans[-1] = (first, end, name, total + float(score), count + 1)
        else:
            spans.append((start, end, name, float(score), 1))
        open_name = name
    return [(start, end, name, total / count) for start, end, name, total, count in spans]


def decode_answers(
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


def decode_mask(
    tokenizer: Tokenizer, text: str | tuple[str, str], tokens: Any, place: int, best: Sequence[tuple[int, float]]
) -> list[tuple[str, float, str | tuple[str, str]]]:
    """(token, score, text with the mask at row `place` filled) of each (id, score)."""
    side = tokens.sequence_ids[place] or 0
    whole = text if isinstance(text, str) else text[side]
    span = trim(whole, *tokens.offsets[place])
    answers = []
    for (id_, score), piece in zip(best, tokenizer.pieces([id_ for id_, _ in best]), strict=True):
        filled = fill(whole, *span, piece, tokenizer.marked)
        shown = (tokenizer.raw.id_to_token(id_) or "") if tokenizer.marked else piece
        answers.append((shown, score, filled if isinstance(text, str) else (filled, text[1]) if side == 0 else (text[0], filled)))
    return answers


def fill(text: str, start: int, end: int, token: str, marked: bool) -> str:
    """`text` with the mask in start..end replaced by a token, which joins the word before it unless it begins with a space.

    marked: as in words(). Such a vocabulary knows no spaces, so one is put in only between two words.
    """
    before = text[:start]
    if not token.startswith(" "):
        before = before.rstrip()
    elif not before or before[-1].isspace() or (marked and (_apart(before[-1]) or _apart(token[1]))):
        token = token[1:]
    return before + token + text[end:]
