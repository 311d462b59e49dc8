"""Embedders with the architectures of BERT, XLM-RoBERTa, RoBERTa, DistilBERT and MPNet."""

from __future__ import annotations

import torch

from .build import IDENTITY, TANH, Family, prefixed, renamed, sentence, then, with_positions, without

EMBED = ("embed", "rank")
DOT = {"similarity_fn_name": "dot"}
QUERY = {"query": "Represent this sentence for searching relevant passages: "}

# --- BERT ---

MINILM = Family(
    "sentence-transformers/all-MiniLM-L6-v2",
    "mean, normalised; 48 of 64 positions; position_ids stored",
    "BertModel",
    EMBED,
    names=with_positions,
    files=sentence(normalize=True, limit=48, settings={}),
)
BGE = MINILM.like("BAAI/bge-small-en-v1.5", "cls, normalised", files=sentence("cls", normalize=True, limit=64, lower=True, settings={}))
BERT = [
    MINILM,
    MINILM.like(
        "sentence-transformers/all-MiniLM-L12-v2",
        "mean, normalised; four layers; tokenizer.json cuts and pads",
        config={"num_hidden_layers": 4},
        files=sentence(normalize=True, limit=48),
        cuts=24,
    ),
    MINILM.like("sentence-transformers/paraphrase-MiniLM-L6-v2", "mean, not normalised", files=sentence(limit=32, settings={})),
    MINILM.like("sentence-transformers/multi-qa-MiniLM-L6-cos-v1", "mean, normalised", files=sentence(normalize=True, limit=64)),
    MINILM.like("sentence-transformers/msmarco-bert-base-dot-v5", "mean; dot product", files=sentence(limit=64, settings=DOT)),
    MINILM.like(
        "sentence-transformers/bert-base-nli-mean-tokens",
        "a folder of 2019: the model in 0_BERT; pytorch_model.bin; gamma and beta; vocab.txt alone",
        names=then(with_positions, renamed(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))),
        files=sentence(limit=48, first="0_BERT") | {"0_BERT/tokenizer.json": None},
        weights="pytorch_model.bin",
        inside="0_BERT",
    ),
    MINILM.like(
        "sentence-transformers/stsb-bert-base",
        "an old folder: the model in 0_Transformer",
        files=sentence(limit=48, first="0_Transformer"),
        inside="0_Transformer",
    ),
    MINILM.like("sentence-transformers/bert-base-nli-max-tokens", "max pooling", files=sentence("max", limit=48)),
    MINILM.like("a BERT with the mean over the root of the length", "mean_sqrt_len_tokens", files=sentence("mean_sqrt", limit=48)),
    MINILM.like(
        "a BERT with two poolings",
        "cls and mean, side by side",
        files=sentence(limit=48)
        | {"1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
    ),
    MINILM.like(
        "sentence-transformers/LaBSE",
        "cased; cls; Dense with tanh; normalised",
        vocabulary="bert, cased",
        files=sentence("cls", dense=((32, 32, True, TANH),), normalize=True, limit=32, dense_weights="pytorch_model.bin"),
    ),
    BGE,
    BGE.like("BAAI/bge-base-en-v1.5", "cls, normalised; four heads", config={"num_attention_heads": 4}),
    BGE.like(
        "BAAI/bge-large-en-v1.5",
        "cls, normalised; width 64",
        config={"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
        files=sentence("cls", normalize=True, limit=64, lower=True, width=64, settings={}),
    ),
    BGE.like("BAAI/bge-small-zh-v1.5", "cls, normalised; tokens without ##"),
    BGE.like("a cased BERT in a folder with do_lower_case", "lower case by sentence_bert_config.json", vocabulary="bert, cased"),
    BGE.like("thenlper/gte-small", "mean, normalised; float16", files=sentence(normalize=True, limit=64), dtype=torch.float16),
    BGE.like("thenlper/gte-base", "mean, normalised; no pooler", files=sentence(normalize=True, limit=64), names=without("pooler")),
    BGE.like(
        "intfloat/e5-small-v2", "mean, normalised; vocab.txt alone", files=sentence(normalize=True, limit=64) | {"tokenizer.json": None}
    ),
    BGE.like("avsolatorio/GIST-small-Embedding-v0", "cls, normalised; a lower limit", files=sentence("cls", normalize=True, limit=40)),
    BGE.like(
        "mixedbread-ai/mxbai-embed-large-v1",
        "cls, not normalised; prompts; float16",
        files=sentence("cls", limit=64, settings={"prompts": {**QUERY, "passage": ""}, "default_prompt_name": None}),
        dtype=torch.float16,
    ),
    BGE.like("WhereIsAI/UAE-Large-V1", "cls, not normalised", files=sentence("cls", limit=64)),
    BGE.like(
        "Snowflake/snowflake-arctic-embed-m",
        "cls, normalised; a prompt for queries; no pooler",
        names=without("pooler"),
        files=sentence("cls", normalize=True, limit=64, settings={"prompts": QUERY, "default_prompt_name": None}),
    ),
    BGE.like(
        "bge-small fine-tuned with a default prompt",
        "cls; a prompt by default",
        files=sentence("cls", limit=64, settings={"prompts": QUERY, "default_prompt_name": "query"}),
    ),
    BGE.like(
        "bge-small fine-tuned with include_prompt false",
        "mean without the prompt's tokens; a prompt by default",
        files=sentence(limit=64, settings={"prompts": QUERY, "default_prompt_name": "query"}, include_prompt=False),
    ),
    MINILM.like("princeton-nlp/sup-simcse-bert-base-uncased", "no modules.json; pytorch_model.bin", files={}, weights="pytorch_model.bin"),
    MINILM.like("a BertModel inside another module", "the prefix bert. before every name", names=prefixed("bert.")),
    MINILM.like("a BertModel out of DataParallel", "the prefix module. before every name", names=prefixed("module."), native=True),
    MINILM.like("a BertModel out of sentence-transformers", "the prefix auto_model.", names=prefixed("auto_model."), native=True),
    MINILM.like("a BertModel with a loss", "a tensor that transformers ignores", names=lambda t: t | {"loss_fct.weight": torch.ones(3)}),
    MINILM.like("a BERT in two shards", "model.safetensors.index.json", weights="model.safetensors.index.json"),
    MINILM.like("a BERT in bfloat16", "bfloat16", dtype=torch.bfloat16),
    MINILM.like("a BERT with the approximation of GELU", "gelu_new", config={"hidden_act": "gelu_new"}),
    MINILM.like("a BERT with ReLU", "relu", config={"hidden_act": "relu"}),
    MINILM.like("a BERT that cuts at the left", "truncation_side left", tokenizer={"truncation_side": "left"}),
    MINILM.like("a BERT whose settings keep capitals", "do_lower_case against tokenizer.json", tokenizer={"do_lower_case": False}),
    MINILM.like("a BERT whose settings keep accents", "strip_accents against tokenizer.json", tokenizer={"strip_accents": False}),
]

# --- XLM-RoBERTa, CamemBERT, RoBERTa ---

SIZE_514 = {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
E5 = Family(
    "intfloat/multilingual-e5-large",
    "XLM-R's tokens; mean, normalised",
    "XLMRobertaModel",
    EMBED,
    "xlm-r",
    config=SIZE_514,
    names=with_positions,
    files=sentence(normalize=True, limit=64),
)
DISTILROBERTA = E5.like(
    "sentence-transformers/all-distilroberta-v1", "byte-level BPE; mean, normalised", model="RobertaModel", vocabulary="roberta"
)
XLM_R = [
    E5,
    MINILM.like("intfloat/multilingual-e5-small", "BERT with XLM-R's tokens; mean, normalised", vocabulary="xlm-r"),
    MINILM.like(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "BERT with XLM-R's tokens; mean",
        vocabulary="xlm-r, fast class",
        files=sentence(limit=32),
    ),
    E5.like("sentence-transformers/paraphrase-multilingual-mpnet-base-v2", "XLM-R in spite of its name; mean", files=sentence(limit=32)),
    E5.like("intfloat/multilingual-e5-large-instruct", "mean, normalised; float16", dtype=torch.float16),
    E5.like(
        "BAAI/bge-m3",
        "cls, normalised; pytorch_model.bin; its sparse and ColBERT heads beside it",
        files=sentence("cls", normalize=True, limit=64, settings={})
        | {"sparse_linear.pt": {"weight": torch.zeros(1, 32)}, "colbert_linear.pt": {"weight": torch.zeros(32, 32)}},
        weights="pytorch_model.bin",
    ),
    E5.like(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "cls, normalised; a prompt for queries",
        files=sentence("cls", normalize=True, limit=64, settings={"prompts": {"query": "query: "}}),
    ),
    E5.like(
        "dangvantuan/sentence-camembert-base",
        "CamemBERT's tokens; mean",
        model="CamembertModel",
        vocabulary="camembert",
        files=sentence(limit=32),
    ),
    DISTILROBERTA,
    DISTILROBERTA.like(
        "a RoBERTa that puts a blank first", "add_prefix_space against tokenizer.json", tokenizer={"add_prefix_space": True}
    ),
    DISTILROBERTA.like(
        "princeton-nlp/sup-simcse-roberta-base",
        "no modules.json; pytorch_model.bin; the prefix roberta.",
        names=then(with_positions, prefixed("roberta.")),
        files={},
        weights="pytorch_model.bin",
    ),
    DISTILROBERTA.like(
        "sentence-transformers/stsb-roberta-base-v2",
        "vocab.json and merges.txt alone; limit in sentence_roberta_config.json",
        files=sentence(limit=40, limit_file="sentence_roberta_config.json") | {"tokenizer.json": None},
    ),
]

# --- DistilBERT, MPNet ---

NO_BERT = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
DISTIL = Family(
    "sentence-transformers/multi-qa-distilbert-cos-v1",
    "mean, normalised",
    "DistilBertModel",
    EMBED,
    "distilbert",
    config={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, **NO_BERT},
    files=sentence(normalize=True, limit=64),
)
ALL_MPNET = Family(
    "sentence-transformers/all-mpnet-base-v2",
    "relative positions in buckets; mean, normalised",
    "MPNetModel",
    EMBED,
    "mpnet",
    config={"max_position_embeddings": 66, "layer_norm_eps": 1e-5},
    published={"architectures": ["MPNetForMaskedLM"]},
    names=with_positions,
    files=sentence(normalize=True, limit=48),
)
SMALL = [
    DISTIL,
    DISTIL.like("sentence-transformers/msmarco-distilbert-base-tas-b", "cls; dot product", files=sentence("cls", limit=64, settings=DOT)),
    DISTIL.like(
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "cased; mean; Dense of another width with tanh",
        vocabulary="bert, cased",
        files=sentence(dense=((32, 24, True, TANH),), limit=32),
    ),
    DISTIL.like(
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
        "cased; mean; Dense without bias and activation",
        vocabulary="bert, cased",
        files=sentence(dense=((32, 16, False, IDENTITY),), limit=48),
    ),
    DISTIL.like(
        "an embedder saved by sentence-transformers 6",
        "newer names of modules and keys; mean; Dense with tanh",
        files=sentence(dense=((32, 24, True, TANH),), limit=32, settings=DOT | {"prompts": QUERY}),
        saved_by="SentenceTransformer",
    ),
    ALL_MPNET,
    ALL_MPNET.like(
        "sentence-transformers/multi-qa-mpnet-base-dot-v1",
        "relative positions; cls; dot product",
        files=sentence("cls", limit=64, settings=DOT),
    ),
    ALL_MPNET.like("sentence-transformers/paraphrase-mpnet-base-v2", "relative positions; mean", files=sentence(limit=64)),
    ALL_MPNET.like(
        "microsoft/mpnet-base", "relative positions; masks", model="MPNetForMaskedLM", tasks=("fill_mask",), names=None, files={}
    ),
]

FAMILIES = [*BERT, *XLM_R, *SMALL]
