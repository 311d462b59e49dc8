"""Checkpoints of other tools: how each is recognised, its config, and the names of its tensors here.

Only renaming, transposing, concatenating and dropping happen, so load() opens these folders directly, and
tools/convert.py writes them in this project's format. What would need another op is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import CheckpointError, ConfigError, short
from ..tensor import Tensor
from .crammed import crammed
from .huggingface import bert, distilbert, roberta
from .settings import SPECIAL_TOKENS, read_options, read_vocabulary, special_tokens
from .source import Source

__all__ = ["RECOGNISED", "SPECIAL_TOKENS", "read_options", "read_vocabulary", "special_tokens", "translate"]

RECOGNISED = """\
  fastinfer: config.json with format_version
  crammedBERT: config.json with model_type crammedBERT and arch; dense or FFF, masked language model or classifier
  Hugging Face BERT: model_type bert; BertModel, BertForMaskedLM, ForSequenceClassification, ForTokenClassification,
    ForQuestionAnswering, ForPreTraining; sentence-transformers folders around it
  RoBERTa family: model_type roberta, xlm-roberta or camembert, the same heads
  DistilBERT: model_type distilbert, the same heads"""

READERS = {
    "crammedBERT": crammed,
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": roberta,
    "camembert": roberta,
    "distilbert": distilbert,
}


def translate(data: Any, stored: Mapping[str, Tensor], folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """A foreign config.json's object and tensors as (Config, tensors by the names of this format).

    Raises CheckpointError for a layout that is not recognised (listing those that are), for missing or
    unknown tensors; ConfigError for an architecture that is recognised and not supported.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind is None and isinstance(data, dict) and "hidden_size" in data and any("attention.self.query" in name for name in stored):
        kind = "bert"  # files older than model_type
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise CheckpointError(f"{folder}: a checkpoint with model_type {short(kind)} is not recognised. Recognised are:\n{RECOGNISED}")
    source = Source(data, stored, folder)
    try:
        return reader(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: a {kind} config lacks {error}, or has it as another type") from None
