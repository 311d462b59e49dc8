"""Task heads, a module each.

tensors(head, config)                      the tensors that it declares
forward(ops, x, batch, head, weights)      from the final hidden states to its logits, on the device
LOGITS                                     what has a row of logits: a "text", a "token", a "mask"; None: the head gives none
decode(...)                                from logits to answers, on the host
"""

from __future__ import annotations

from types import ModuleType

from ..config import Config
from . import answer, classify, common, embed, fill_mask, tag, words
from .common import Shapes

__all__ = ["HEADS", "answer", "classify", "common", "embed", "fill_mask", "tag", "tensors", "words"]

# By the names that the fields of config.Tasks have.
HEADS: dict[str, ModuleType] = {"embed": embed, "fill_mask": fill_mask, "classify": classify, "tag": tag, "answer": answer}


def tensors(config: Config) -> Shapes:
    """The tensors of all heads that the config has; names begin with the task's."""
    found: Shapes = {}
    for task in config.tasks.names:
        shapes = HEADS[task].tensors(getattr(config.tasks, task), config)
        found |= {f"{task}.{name}": shape for name, shape in shapes.items()}
    return found
