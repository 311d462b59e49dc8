"""Folders that fastinfer refuses, and shall name: other architectures, other word splitting, formats without the tensors."""

from __future__ import annotations

import torch

from .build import Family, modules
from .embedders import MINILM
from .heads import SIZE_514, labels
from .rotary import NOMIC

GENERATOR = torch.Generator().manual_seed(3)
A, B = (torch.randn(shape, generator=GENERATOR) * 0.3 for shape in ((4, 32), (32, 4)))
LORA = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["query"],
    "bias": "none",
    "fan_in_fan_out": False,
    "task_type": "FEATURE_EXTRACTION",
    "base_model_name_or_path": "bert-base-uncased",
    "use_rslora": False,
    "modules_to_save": None,
}
QUERY = "encoder.layer.0.attention.self.query"
ADAPTER = {
    "adapter_config.json": LORA,
    "adapter_model.safetensors": {f"base_model.model.{QUERY}.lora_A.weight": A, f"base_model.model.{QUERY}.lora_B.weight": B},
}


def _without_adapter(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base weights of which the oracle's are the sum with the adapter."""
    return tensors | {f"{QUERY}.weight": tensors[f"{QUERY}.weight"] - LORA["lora_alpha"] / LORA["r"] * B @ A}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90868376\n"
NO_TENSORS = {"model.safetensors": None}
FAMILIES = [
    MINILM.like(
        "a LoRA adapter beside its base model", "the adapter added to the weights", names=_without_adapter, extra=ADAPTER, native=True
    ),
    MINILM.like(
        "a folder with an adapter alone",
        "its base model",
        extra=ADAPTER | {"config.json": None, "model.safetensors": None},
        refused="adapter",
    ),
    MINILM.like("a folder of GGUF files", "tensors in safetensors", extra=NO_TENSORS | {"model-Q8_0.gguf": "GGUF"}, refused="gguf"),
    MINILM.like("a folder of ONNX files", "tensors in safetensors", extra=NO_TENSORS | {"onnx/model.onnx": "ONNX"}, refused="onnx"),
    MINILM.like("a folder of TensorFlow files", "tensors in safetensors", extra=NO_TENSORS | {"tf_model.h5": "HDF"}, refused="tensorflow"),
    MINILM.like("a folder of Flax files", "tensors in safetensors", extra=NO_TENSORS | {"flax_model.msgpack": "Flax"}, refused="flax"),
    MINILM.like("a clone without git-lfs", "the tensors themselves", extra={"model.safetensors": POINTER}, refused="lfs"),
    MINILM.like(
        "sentence-transformers/static-retrieval-mrl-en-v1",
        "a table of tokens alone",
        files=modules(("StaticEmbedding", "")),
        extra={"config.json": None},
        refused="StaticEmbedding",
    ),
    MINILM.like(
        "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill", "two ways", files=modules(("Router", "")), refused="Router"
    ),
    MINILM.like(
        "a BERT quantised by bitsandbytes",
        "integers of another library",
        names=lambda tensors: {name: t.to(torch.int8) if "query.weight" in name else t for name, t in tensors.items()},
        published={"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        refused="quantization_config",
    ),
    Family("albert/albert-base-v2", "layers that share weights", "AlbertModel", config={"embedding_size": 16}, refused="albert"),
    Family(
        "google/bigbird-roberta-base", "sparse attention", "BigBirdModel", config={"attention_type": "original_full"}, refused="big_bird"
    ),
    Family(
        "allenai/longformer-base-4096",
        "sliding attention",
        "LongformerModel",
        vocabulary="roberta",
        config=SIZE_514 | {"attention_window": 8},
        refused="longformer",
    ),
    Family(
        "xlnet/xlnet-base-cased",
        "two streams",
        "XLNetModel",
        vocabulary="xlm-r",
        config={"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
        refused="xlnet",
    ),
    Family("openai-community/gpt2", "a decoder", "GPT2Model", vocabulary="gpt2", refused="gpt2"),
    Family(
        "facebook/bart-large-mnli",
        "an encoder and a decoder",
        "BartForSequenceClassification",
        ("zero_shot",),
        "roberta",
        config={
            "d_model": 32,
            **{
                f"{side}_{what}": n
                for side in ("encoder", "decoder")
                for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
            },
            **labels("contradiction", "neutral", "entailment"),
        },
        refused="bart",
    ),
    NOMIC.like(
        "nomic-ai/nomic-embed-text-v2-moe",
        "a mixture of experts",
        vocabulary="xlm-r",
        published={"moe_every_n_layers": 2, "num_experts": 8, "moe_top_k": 2, "activation_function": "gelu"},
        refused="expert",
    ),
    MINILM.like(
        "tohoku-nlp/bert-base-japanese-v3",
        "Japanese word splitting by MeCab",
        tokenizer={"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"},
        files={"tokenizer.json": None},
        refused="BertJapaneseTokenizer",
    ),
]
