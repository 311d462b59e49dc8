"""Checkpoints of other tools: how each is recognised, its config, and the names of its tensors in this format.

Tensors are only renamed, transposed, concatenated and dropped. So load() opens these folders directly, and
tools/convert.py writes them in this project's format. A setting that would need another op is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import CheckpointError, ConfigError, short
from ..tensor import Tensor
from .crammed import crammed
from .gated import alibi, gte, modernbert, nomic
from .huggingface import bert, data2vec, distilbert, dpr, electra, ernie, roberta
from .settings import SPECIAL_TOKENS
from .source import Source
from .tokenizer import Found, find_tokenizer
from .variants import deberta, mpnet, prenorm_roberta

__all__ = ["RECOGNISED", "SPECIAL_TOKENS", "Found", "translate"]

RECOGNISED = """\
  fastinfer: config.json with format_version
  crammedBERT: config.json with model_type crammedBERT and arch; dense or FFF, masked language model or classifier
  Hugging Face BERT: model_type bert; BertModel, BertForMaskedLM, ForSequenceClassification, ForTokenClassification,
    ForQuestionAnswering, ForPreTraining; sentence-transformers folders around it
  RoBERTa family: model_type roberta, xlm-roberta or camembert, the same heads
  DistilBERT: model_type distilbert, the same heads
  MPNet, ELECTRA, ERNIE, DPR, data2vec-text, roberta-prelayernorm, DeBERTa-v2 and v3: the same heads where they have them
  nomic_bert, ModernBERT, gte v1.5 (new, gte), JinaBERT v2 and MosaicBERT (bert with ALiBi)"""

READERS = {
    "crammedBERT": crammed,
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": roberta,
    "camembert": roberta,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "electra": electra,
    "ernie": ernie,
    "dpr": dpr,
    "data2vec-text": data2vec,
    "roberta-prelayernorm": prenorm_roberta,
    "nomic_bert": nomic,
    "modernbert": modernbert,
    "new": gte,
    "gte": gte,
    "deberta-v2": deberta,
}


def translate(data: Any, stored: Mapping[str, Tensor], folder: Path) -> tuple[Config, dict[str, Tensor], Found]:
    """(Config, {name in this format: Tensor}, tokenizer) of a foreign checkpoint.

    data    the object in its config.json
    stored  its tensors by their own names

    Raises CheckpointError for a layout that is not recognised, and for missing or unknown tensors. Raises ConfigError
    for a recognised layout with a setting that is not supported.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind is None and isinstance(data, dict) and "hidden_size" in data and any("attention.self.query" in name for name in stored):
        kind = "bert"  # older files have no model_type
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise CheckpointError(f"{folder}: a checkpoint with model_type {short(kind)} is not recognised. Recognised are:\n{RECOGNISED}")
    if kind == "bert" and (data.get("position_embedding_type") == "alibi" or "alibi_starting_size" in data):
        reader = alibi
    source = Source({**data, "model_type": kind}, stored, folder)
    try:
        config, made = reader(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: a {kind} config lacks {error}, or has it as another type") from None
    return config, made, source.tokenizer or find_tokenizer(folder, source.data, config.vocabulary)
