"""Masked language modelling: a score per token of the vocabulary, and texts with their masks filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..batch import PackedBatch
from ..config import Config, FillMask
from ..tokenizer import Tokenizer
from ..weights import Norm, Weights
from .common import Shapes, linear, linear_tensors
from .words import apart, trim

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "decode", "fill", "forward", "tensors"]

LOGITS = "mask"


def tensors(head: FillMask, config: Config) -> Shapes:
    """The tensors of the transform and its norm, the decoder (V, E) unless it is tied, and the bias (V,), if the head has them."""
    spec: Shapes = {}
    width = config.embedding_width or config.hidden  # a decoder has the columns of the embedding, to which it may be tied
    if head.transform:
        spec |= linear_tensors("transform", width, config.hidden)
        spec |= {f"norm.{name}": ((width,), "vector") for name in ("weight", "bias")}
    if not head.tied:
        spec["decoder.weight"] = ((config.vocabulary, width), "matrices")
    if head.bias:
        spec["bias"] = ((config.vocabulary,), "vector")
    return spec


def forward(ops: Reference, x: Any, batch: PackedBatch, head: FillMask, weights: Weights) -> Any:
    """The logits (M, V) from the M rows (M, D) at masks."""
    tasks = weights.tasks
    if head.transform:
        x = linear(ops, x, tasks, "fill_mask.transform", head.activation)
        ops.norm(x, Norm(tasks["fill_mask.norm.weight"], tasks["fill_mask.norm.bias"]), weights.eps, out=x)
    decoder = tasks["fill_mask.decoder.weight"]
    out = ops.empty(len(x), ops.outputs(decoder))
    ops.linear(x, decoder, bias=tasks.get("fill_mask.bias"), out=out)
    return out


def decode(
    tokenizer: Tokenizer, text: str | tuple[str, str], tokens: Any, place: int, best: Sequence[tuple[int, float]]
) -> list[tuple[str, float, str | tuple[str, str]]]:
    """(token, score, text with the mask filled) for each (id, score) of `best`.

    place  the row of the mask in `tokens`
    """
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
    """`text` with the mask at start..end replaced by a token. The token joins the word before it unless it begins with a space.

    marked  as in words(). The tokens of such a vocabulary contain no spaces, so a space is kept only between two words.
    """
    before = text[:start]
    if not token.startswith(" "):
        before = before.rstrip()
    elif not before or before[-1].isspace() or (marked and (apart(before[-1]) or apart(token[1]))):
        token = token[1:]
    return before + token + text[end:]
