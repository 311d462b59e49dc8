"""Names of stored tensors as the readers of layouts know them: without the prefixes of wrappers and of the body, norms by one name."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from ...errors import CheckpointError, short
from ..tensor import Tensor

__all__ = ["BODY", "bare", "bare_name", "candidates", "in_body"]

# A body is found by its table of words. What stands before that name is a prefix.
WORDS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight", "encoder.embedding.word_embedding.weight")
# Prefixes of wrappers (data parallel, compiled, adapters, sentence-transformers) and of bodies inside a model with a head.
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "auto_model.", "model.")
BODIES = (
    "bert.",
    "roberta.",
    "distilbert.",
    "electra.",
    "mpnet.",
    "deberta.",
    "ernie.",
    "data2vec_text.",
    "roberta_prelayernorm.",
    "nomic_bert.",
)
PREFIXES = (*WRAPPERS, *BODIES, "new.", "gte.", "question_encoder.bert_model.", "ctx_encoder.bert_model.", "encoder.")
BODY = ("embeddings.", "encoder.", "transformer.", "layers.", "embedding.", "emb_ln.", "final_norm.")


def candidates(name: str) -> Iterator[str]:
    """`name`, then the name without its first known prefix, without its first two, and so on."""
    yield name
    while (prefix := next((p for p in PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
        yield name


def bare_name(name: str, known: Container[str]) -> str:
    """The first of candidates(name) that is in `known`; without one, `name` without all its prefixes."""
    found = name
    for found in candidates(name):
        if found in known:
            break
    return found


def bare(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without the prefixes that stand before the table of words, and with .weight and .bias for norms.

    Only prefixes in PREFIXES are taken away, in the order in which they stand before the table of words; names of heads may have all,
    some or none of them. Raises CheckpointError where two tensors would get one name.
    """
    stored = {_modern(name): tensor for name, tensor in stored.items()}
    words = [name for name in stored if name in WORDS or name.endswith(tuple(f".{end}" for end in WORDS))]
    if len(words) != 1:
        return stored
    chain, left = [], words[0]
    while left not in WORDS and (prefix := next((p for p in PREFIXES if left.startswith(p)), None)) is not None:
        chain.append(prefix)
        left = left.removeprefix(prefix)
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        for prefix in chain:
            name = name.removeprefix(prefix)
        if name in found:
            raise CheckpointError(f"two tensors are called {short(name)}, one of them with a prefix of {short(''.join(chain))}")
        found[name] = tensor
    return found


def in_body(name: str, layers: int) -> bool:
    """Whether a bare name is that of a tensor which the body of `layers` layers would need: one outside has a higher layer's number."""
    if not name.startswith(BODY):
        return False
    number = next((part for part in name.split(".") if part.isascii() and part.isdigit()), None)
    return number is None or int(number[:9]) < layers


def _modern(name: str) -> str:
    """A tensor's name with the endings .weight and .bias, which older checkpoints call .gamma and .beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
