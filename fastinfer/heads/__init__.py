"""Task heads. Each has a module with these names:

tensors(head, config)                      the tensors of the head, as Shapes
forward(ops, x, batch, head, weights)      the head's logits from the final hidden states, on the device
LOGITS                                     a row of logits belongs to a "text", a "token" or a "mask"; None: the head has no logits
decode(...)                                the answers from the logits, on the host
"""

from __future__ import annotations

from types import ModuleType

from ..config import Config
from . import answer, classify, common, embed, embed_sparse, embed_tokens, fill_mask, tag, words
from .common import Shapes

__all__ = ["HEADS", "answer", "classify", "common", "embed", "embed_sparse", "embed_tokens", "fill_mask", "tag", "tensors", "words"]

# The keys are the names of the fields of config.Tasks.
HEADS: dict[str, ModuleType] = {
    "embed": embed,
    "fill_mask": fill_mask,
    "classify": classify,
    "tag": tag,
    "answer": answer,
    "embed_sparse": embed_sparse,
    "embed_tokens": embed_tokens,
}


def tensors(config: Config) -> Shapes:
    """The tensors of all heads that the config has. Their names begin with the name of the task."""
    found: Shapes = {}
    for task in config.tasks.names:
        shapes = HEADS[task].tensors(getattr(config.tasks, task), config)
        found |= {f"{task}.{name}": shape for name, shape in shapes.items()}
    return found
