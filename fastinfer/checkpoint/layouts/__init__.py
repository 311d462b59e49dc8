"""Checkpoints of other tools: how each is recognised, its config, and the names of its tensors in this format.

Tensors are only renamed, transposed, concatenated and dropped. So load() opens these folders directly, and
`fastinfer convert` writes them in this project's format. A setting that would need another op is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import CheckpointError, ConfigError, about, short
from ..refusals import described, refuse_quantised
from ..tensor import Tensor
from .adapters import merge
from .crammed import crammed
from .decoders import decoder, t5
from .gated import alibi, flash_roberta, gte, modernbert, nomic
from .huggingface import bert, data2vec, distilbert, dpr, electra, ernie, roberta
from .names import bare
from .sentence_transformers import body_of, read_modules
from .settings import SPECIAL_TOKENS
from .source import Source, require
from .tokenizer import Found, find_tokenizer
from .variants import deberta, mpnet, prenorm_roberta

__all__ = ["RECOGNISED", "SPECIAL_TOKENS", "Found", "body_of", "look", "read_modules", "translate"]

RECOGNISED = """\
  fastinfer: config.json with format_version
  crammedBERT: config.json with model_type crammedBERT and arch; dense or FFF, masked language model or classifier
  Hugging Face BERT: model_type bert; BertModel, BertForMaskedLM, ForSequenceClassification, ForTokenClassification,
    ForQuestionAnswering, ForPreTraining; sentence-transformers folders around it
  RoBERTa family: model_type roberta, xlm-roberta or camembert, the same heads
  DistilBERT: model_type distilbert, the same heads
  MPNet, ELECTRA, ERNIE, DPR, data2vec-text, roberta-prelayernorm, DeBERTa-v2 and v3: the same heads where they have them
  nomic_bert, ModernBERT, gte v1.5 (new, gte), JinaBERT v2 and MosaicBERT (bert with ALiBi), jina-embeddings-v3, jina-reranker-v2
  T5 encoders; Qwen2, Qwen3, Mistral and Llama as embedders, in sentence-transformers folders"""

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
    "jina_embeddings_v3": flash_roberta,
    "t5": t5,
    "mt5": t5,
    "qwen2": decoder,
    "qwen3": decoder,
    "mistral": decoder,
    "llama": decoder,
}


def look(data: Any, folder: Path, root: Path) -> None:
    """Raise CheckpointError or ConfigError where a foreign config.json is that of a model which cannot run here, whatever its weights.

    data          the object in the config.json
    folder, root  as for translate()
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind is None and isinstance(data, dict) and "hidden_size" in data:
        return  # older files have no model_type, and their tensors tell
    if not isinstance(kind, str) or kind not in READERS:
        raise _not_recognised(data, folder)
    refuse_quantised(data, folder)
    if READERS[kind] is decoder and not (root / "modules.json").exists():
        raise ConfigError(
            f"{folder}: {kind} is a decoder, and without modules.json its folder does not say how it embeds: "
            "fastinfer runs encoders and embedders, not text generation"
        )


def translate(
    data: Any, stored: Mapping[str, Tensor], folder: Path, root: Path, read: Callable[[Path], dict[str, Tensor]]
) -> tuple[Config, dict[str, Tensor], Found]:
    """(Config, {name in this format: Tensor}, tokenizer) of a foreign checkpoint, with the adapter beside its weights merged in.

    data    the object in its config.json, which look() has let pass
    stored  its tensors by their own names
    folder  holds both; root: the folder that was opened, `folder` or one around it
    read    a function from another folder, such as that of a Dense module, to its tensors

    Raises CheckpointError for a layout that is not recognised, and for missing or unknown tensors. Raises ConfigError
    for a recognised layout with a setting that is not supported. Gives a CheckpointWarning that names what is left out.
    """
    look(data, folder, root)
    with about(str(folder)):
        stored = bare(stored)
    if (folder / "adapter_config.json").exists():
        data, stored = merge(data, stored, folder)
    kind = data.get("model_type")
    if kind is None and any("attention.self.query" in name for name in stored):
        kind = "bert"
    if kind is None:
        raise _not_recognised(data, folder)
    reader = READERS[kind]
    if kind == "bert" and (data.get("position_embedding_type") == "alibi" or "alibi_starting_size" in data):
        reader = alibi
    if kind == "xlm-roberta" and any(".mixer.Wqkv." in name for name in stored):
        reader = flash_roberta
    source = Source({**data, "model_type": kind}, stored, folder, root, read)
    try:
        if reader is not decoder:
            require(source, is_decoder=False, add_cross_attention=False, is_causal=False)
        config, made = reader(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: a {kind} config lacks {error}, or has it as another type") from None
    return config, made, source.tokenizer or find_tokenizer(folder, source.data, config.vocabulary)


def _not_recognised(data: Any, folder: Path) -> CheckpointError:
    data = data if isinstance(data, dict) else {}
    kind = f"model_type {short(data.get('model_type'))}{described(data)}"
    return CheckpointError(f"{folder}: a checkpoint with {kind} is not recognised. Recognised are:\n{RECOGNISED}")
