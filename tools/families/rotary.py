"""Rotary positions and gated feedforwards: nomic, ModernBERT, gte v1.5, jina-v3; decoders and T5, which are used as embedders."""

from __future__ import annotations

import torch

from .build import IDENTITY, Family, Tensors, prefixed, sentence, then, without
from .embedders import EMBED, SIZE_514
from .heads import ONE, RANK, labels

# --- rotary positions and gates ---

NO_NEW_KEYS = {
    **dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings", "hidden_act")
    ),
    **dict.fromkeys(("rope_parameters", "head_dim", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")),
}
NOMIC_KEYS = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 48,
    "n_positions": 64,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "max_trained_positions": 64,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "parallel_block": False,
    "causal": False,
    "use_rms_norm": False,
    "scale_attn_weights": True,
    "use_flash_attn": True,
    "fused_bias_fc": True,
    "pad_vocab_size_multiple": 64,
    "embd_pdrop": 0.0,
}
SEARCH = {"search_query": "search_query: ", "search_document": "search_document: "}
NOMIC = Family(
    "nomic-ai/nomic-embed-text-v1.5",
    "rotary positions, SwiGLU, no biases; old and new keys; mean",
    "NomicBertModel",
    EMBED,
    config={"hidden_act": "silu"},
    published=NOMIC_KEYS,
    names=without("pooler"),
    files=sentence(limit=64),
)
MODERN_KEYS = {"global_attn_every_n_layers": 3, "local_attention": 8, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
MODERN = Family(
    "answerdotai/ModernBERT-base",
    "rotary positions of two bases, local attention, GeGLU, norms before; masks",
    "ModernBertForMaskedLM",
    ("fill_mask",),
    "modernbert",
    config={"num_hidden_layers": 4, "cls_token_id": None, **MODERN_KEYS},
    published={"layer_types": None, "rope_parameters": None, **MODERN_KEYS},
)
MODERN_EMBED = MODERN.like(
    "Alibaba-NLP/gte-modernbert-base", "ModernBERT; cls", model="ModernBertModel", tasks=EMBED, files=sentence("cls", limit=64)
)
GTE = Family(
    "Alibaba-NLP/gte-base-en-v1.5",
    "rotary positions with a factor, packed GeGLU, no token types; cls",
    "GteModel",
    EMBED,
    # "ntk" with factor f: the base is multiplied by f, and each frequency is divided by f ** (2 / width of a head).
    config={"type_vocab_size": 0, "rope_parameters": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 2 ** (2 / 16)}},
    published={
        "model_type": "new",
        "architectures": ["NewModel"],
        "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
        "rope_parameters": None,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "ntk", "factor": 2.0},
        "pack_qkv": True,
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "logn_attention_clip1": False,
        "position_embedding_type": "rope",
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
    },
    names=without("pooler"),
    files=sentence("cls", limit=64),
    native=True,
)


ROTARY = [
    NOMIC,
    NOMIC.like(
        "nomic-ai/nomic-embed-text-v1",
        "rotary positions, SwiGLU; the old keys alone; normalised; prompts",
        published=NO_NEW_KEYS | {"rotary_scaling_factor": 2},
        native=True,
        files=sentence(normalize=True, limit=64, settings={"prompts": SEARCH}),
    ),
    NOMIC.like(
        "Snowflake/snowflake-arctic-embed-m-long",
        "nomic's architecture; the old keys alone; cls, normalised; a prompt",
        published=NO_NEW_KEYS,
        native=True,
        files=sentence("cls", normalize=True, limit=64, settings={"prompts": {"query": "search query: "}}),
    ),
    MODERN,
    MODERN_EMBED,
    MODERN_EMBED.like(
        "nomic-ai/modernbert-embed-base",
        "ModernBERT; mean, normalised; prompts",
        files=sentence(normalize=True, limit=64, settings={"prompts": SEARCH}),
    ),
    MODERN.like(
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "ModernBERT; one label on the mean",
        model="ModernBertForSequenceClassification",
        tasks=RANK,
        config={"classifier_pooling": "mean", **ONE},
        published={"sentence_transformers": {"activation_fn": IDENTITY}},
    ),
    MODERN.like(
        "a ModernBERT that classifies",
        "ModernBERT; three labels on the first state",
        model="ModernBertForSequenceClassification",
        tasks=("classify",),
        config={"classifier_pooling": "cls", **labels("bad", "so-so", "good")},
    ),
    MODERN.like(
        "a ModernBERT that tags",
        "ModernBERT; tags",
        model="ModernBertForTokenClassification",
        tasks=("tag",),
        config=labels("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    ),
    MODERN.like("a ModernBERT that answers", "ModernBERT; answers", model="ModernBertForQuestionAnswering", tasks=("answer",)),
    GTE,
    GTE.like(
        "Alibaba-NLP/gte-en-mlm-base", "gte's architecture; masks", model="GteForMaskedLM", tasks=("fill_mask",), names=None, files={}
    ),
    GTE.like(
        "Alibaba-NLP/gte-multilingual-base",
        "XLM-R's tokens; token types; a head that is left out",
        config={"type_vocab_size": 1},
        vocabulary="xlm-r",
        published={"architectures": ["NewForTokenClassification"]},
        names=then(
            without("pooler"), prefixed("new."), lambda t: t | {"classifier.weight": torch.ones(1, 32), "classifier.bias": torch.ones(1)}
        ),
        files=sentence("cls", normalize=True, limit=64),
    ),
    GTE.like(
        "Snowflake/snowflake-arctic-embed-m-v2.0",
        "gte's architecture by the name gte; cls, normalised; a prompt",
        config={"type_vocab_size": 1},
        vocabulary="xlm-r",
        published={"model_type": "gte", "architectures": ["GteModel"]},
        files=sentence("cls", normalize=True, limit=64, settings={"prompts": {"query": "query: "}}),
    ),
    GTE.like(
        "Alibaba-NLP/gte-multilingual-reranker-base",
        "gte's architecture; one label",
        model="GteForSequenceClassification",
        tasks=RANK,
        config={"type_vocab_size": 1, **ONE},
        vocabulary="xlm-r",
        published={"architectures": ["NewForSequenceClassification"]},
        names=None,
        files={},
    ),
]


def _jina_v3_names(tensors: Tensors) -> Tensors:
    """The names of jina-embeddings-v3, whose matrices hide behind parametrizations with five adapters each."""
    made: Tensors = {}
    for name, t in tensors.items():
        module, _, kind = f"roberta.{name}".rpartition(".")
        if kind == "weight" and t.ndim == 2:
            made[f"{module}.parametrizations.weight.original"] = t
            made[f"{module}.parametrizations.weight.0.lora_A"] = torch.zeros(5, 4, t.shape[1])
            made[f"{module}.parametrizations.weight.0.lora_B"] = torch.zeros(5, t.shape[0], 4)
        else:
            made[f"{module}.{kind}"] = t
    return made


JINA_V3 = Family(
    "jinaai/jina-embeddings-v3-hf",
    "XLM-R with rotary positions; mean, normalised",
    "JinaEmbeddingsV3Model",
    EMBED,
    "xlm-r",
    config=SIZE_514,
    files=sentence(normalize=True, limit=64),
)
ROTARY += [
    JINA_V3,
    JINA_V3.like(
        "jinaai/jina-embeddings-v3",
        "XLM-R with rotary positions; five adapters, none of which is the default",
        published={
            "model_type": "xlm-roberta",
            "architectures": ["XLMRobertaModel"],
            "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
            "position_embedding_type": "rotary",
            "rotary_emb_base": 20000.0,
            "rope_parameters": None,
            "lora_adaptations": ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"],
            "lora_alpha": 1,
            "lora_rank": 4,
            "use_flash_attn": True,
        },
        names=_jina_v3_names,
        native=True,
    ),
]

# --- T5 and decoders ---

T5 = Family(
    "sentence-transformers/gtr-t5-base",
    "relative positions, RMSNorm, no biases; mean; Dense; normalised",
    "T5EncoderModel",
    EMBED,
    "t5",
    config={
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
    },
    files=sentence(dense=((32, 24, False, IDENTITY),), normalize=True, limit=64),
)
QWEN = Family(
    "Qwen/Qwen3-Embedding-0.6B",
    "a decoder: rotary positions, RMSNorm, groups of heads; last token, normalised; a prompt",
    "Qwen3Model",
    EMBED,
    "qwen",
    dtype=torch.bfloat16,
    config={
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": None,
        "eos_token_id": None,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    published={
        "architectures": ["Qwen3ForCausalLM"],
        "rope_parameters": None,
        "layer_types": None,
        "rope_theta": 1000000,
        "rope_scaling": None,
    },
    files=sentence(
        "last",
        normalize=True,
        limit=None,
        settings={
            "prompts": {
                "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
                "document": "",
            },
            "similarity_fn_name": "cosine",
        },
    ),
)
QWEN2 = QWEN.like(
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "Qwen2, which looks both ways; biases of q, k and v; last token, normalised",
    model="Qwen2Model",
    config={"head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1, "is_causal": False},
    published={"architectures": ["Qwen2ForCausalLM"], "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}},
)
GEMMA_PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
DECODERS = [
    T5,
    T5.like(
        "hkunlp/instructor-large",
        "T5; an instruction that pooling leaves out",
        files=sentence(dense=((32, 24, False, IDENTITY),), normalize=True, limit=64, include_prompt=False),
    ),
    T5.like(
        "google/flan-t5-base, the encoder alone",
        "relative positions; a gate with an approximation of GELU",
        config={"feed_forward_proj": "gated-gelu"},
        files=sentence(limit=64),
    ),
    QWEN,
    QWEN.like("a Qwen3 saved with its language model", "the prefix model.", names=prefixed("model.")),
    QWEN2,
    Family(
        "EuroBERT/EuroBERT-210m",
        "rotary positions, RMSNorm, a gate, looks both ways",
        "EuroBertModel",
        vocabulary="modernbert",
        config={"num_key_value_heads": 2, "head_dim": 16},
    ),
    Family(
        "Salesforce/SFR-Embedding-2_R",
        "Mistral; last token, normalised",
        "MistralModel",
        EMBED,
        "mistral",
        config={
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
        },
        published={"rope_parameters": None, "rope_theta": 10000.0},
        files=sentence("last", normalize=True, limit=64),
    ),
    Family(
        "google/embeddinggemma-300m",
        "a decoder that looks both ways; two Dense; normalised; prompts",
        "Gemma3TextModel",
        EMBED,
        "gemma",
        config={
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "use_bidirectional_attention": True,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        files=sentence(
            dense=((32, 48, False, IDENTITY), (48, 32, False, IDENTITY)), normalize=True, limit=64, settings={"prompts": GEMMA_PROMPTS}
        ),
    ),
]

FAMILIES = [*ROTARY, *DECODERS]
