"""Cross-encoders, classifiers, taggers, models that answer or fill masks, SPLADE and ColBERT, on BERT's relatives."""

from __future__ import annotations

import torch

from .build import IDENTITY, SIGMOID, Family, Tensors, modules, prefixed, renamed, then, with_positions
from .embedders import DISTIL, SIZE_514

BIO = {0: "O", 1: "B-MISC", 2: "I-MISC", 3: "B-PER", 4: "I-PER"}


def labels(*names: str) -> dict[str, dict]:
    """The keys of config.json that name classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


ONE = labels("LABEL_0")
RANK = ("rank",)
ROBERTA = Family(
    "FacebookAI/roberta-base", "byte-level BPE; tied lm_head", "RobertaForMaskedLM", ("fill_mask",), "roberta", config=SIZE_514
)
BERT = Family("google-bert/bert-base-cased", "cased", "BertForMaskedLM", ("fill_mask",), "bert, cased")

# --- cross-encoders ---

MARCO = Family(
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    "one label without an activation",
    "BertForSequenceClassification",
    RANK,
    config=ONE,
    published={"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0.dev0"}},
)
BGE_RERANKER = Family(
    "BAAI/bge-reranker-base", "one label; no activation named", "XLMRobertaForSequenceClassification", RANK, "xlm-r", config=SIZE_514 | ONE
)
JINA_RERANKER_V2 = BGE_RERANKER.like(
    "jinaai/jina-reranker-v2-base-multilingual",
    "XLM-R with names of its own: Wqkv, fc1, norm1",
    published={
        "auto_map": {"AutoModel": "modeling_xlm_roberta.XLMRobertaModel"},
        "use_flash_attn": True,
        "position_embedding_type": "absolute",
    },
    native=True,
)


def _flash_names(tensors: Tensors) -> Tensors:
    """XLM-R's tensors by the names that jina's implementation gives them."""
    steps = renamed(
        ("roberta.embeddings.LayerNorm", "roberta.emb_ln"),
        ("encoder.layer.", "encoder.layers."),
        ("attention.output.dense", "mixer.out_proj"),
        ("attention.output.LayerNorm", "norm1"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("output.LayerNorm", "norm2"),
    )
    made = steps(tensors)
    for name in [name for name in made if ".attention.self.query." in name]:
        parts = [made.pop(name.replace("query", which)) for which in ("query", "key", "value")]
        made[name.replace("attention.self.query", "mixer.Wqkv")] = torch.cat(parts)
    return made


CROSS = [
    MARCO,
    MARCO.like(
        "cross-encoder/ms-marco-MiniLM-L12-v2",
        "an activation by its old name; pytorch_model.bin",
        published={"sentence_transformers": None, "sbert_ce_default_activation_function": IDENTITY},
        weights="pytorch_model.bin",
    ),
    MARCO.like(
        "cross-encoder/ms-marco-TinyBERT-L2-v2",
        "a sigmoid by name",
        published={"sentence_transformers": {"activation_fn": SIGMOID}},
    ),
    MARCO.like("a cross-encoder saved by sentence-transformers 6", "the activation in another file", saved_by="CrossEncoder"),
    MARCO.like(
        "a cross-encoder without token types",
        "model_input_names without token_type_ids",
        tokenizer={"model_input_names": ["input_ids", "attention_mask"]},
    ),
    BGE_RERANKER,
    BGE_RERANKER.like("BAAI/bge-reranker-v2-m3", "one label; more positions", config={"max_position_embeddings": 130}),
    BGE_RERANKER.like(
        "cross-encoder/stsb-roberta-base",
        "byte-level BPE; one label",
        model="RobertaForSequenceClassification",
        vocabulary="roberta",
    ),
    JINA_RERANKER_V2.like(JINA_RERANKER_V2.name, JINA_RERANKER_V2.needs, names=_flash_names),
    Family(
        "cross-encoder/ms-marco-electra-base",
        "ELECTRA; one label",
        "ElectraForSequenceClassification",
        RANK,
        config={"embedding_size": 32} | ONE,
        published={"sentence_transformers": {"activation_fn": IDENTITY}},
    ),
]

# --- classifiers ---

CLASSIFIERS = [
    Family(
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "two labels",
        "DistilBertForSequenceClassification",
        ("classify",),
        "distilbert",
        config=dict(DISTIL.config) | labels("NEGATIVE", "POSITIVE"),
    ),
    Family(
        "cardiffnlp/twitter-roberta-base-sentiment-latest",
        "three labels; pytorch_model.bin; position_ids",
        "RobertaForSequenceClassification",
        ("classify",),
        "roberta",
        config=SIZE_514 | labels("negative", "neutral", "positive"),
        names=lambda tensors: tensors | {"roberta.embeddings.position_ids": torch.arange(66)[None]},
        weights="pytorch_model.bin",
    ),
    Family(
        "SamLowe/roberta-base-go_emotions",
        "several labels for a text",
        "RobertaForSequenceClassification",
        ("classify",),
        "roberta",
        config=SIZE_514 | labels("admiration", "amusement", "anger", "neutral") | {"problem_type": "multi_label_classification"},
    ),
    Family(
        "nlptown/bert-base-multilingual-uncased-sentiment",
        "five labels; pooler",
        "BertForSequenceClassification",
        ("classify",),
        config=labels("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
    ),
    Family(
        "cross-encoder/quora-roberta-base (regression)",
        "a number for a text",
        "RobertaForSequenceClassification",
        ("classify",),
        "roberta",
        config=SIZE_514 | ONE | {"problem_type": "regression"},
    ),
    Family(
        "FacebookAI/roberta-large-mnli",
        "labels that the model was not trained on",
        "RobertaForSequenceClassification",
        ("classify", "zero_shot"),
        "roberta",
        config=SIZE_514 | labels("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
    ),
    Family(
        "cross-encoder/nli-MiniLM2-L6-H768",
        "labels that the model was not trained on; entailment in the middle",
        "RobertaForSequenceClassification",
        ("classify", "zero_shot"),
        "roberta",
        config=SIZE_514 | labels("contradiction", "entailment", "neutral"),
    ),
]

# --- taggers, answers, masks ---

TAGGERS = [
    Family(
        "dslim/bert-base-NER",
        "B- and I-; cased; a pooler that is not used",
        "BertForTokenClassification",
        ("tag",),
        "bert, cased",
        config={"id2label": BIO},
        names=lambda tensors: tensors | {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)},
    ),
    Family(
        "dbmdz/bert-large-cased-finetuned-conll03-english",
        "I- alone after the first",
        "BertForTokenClassification",
        ("tag",),
        "bert, cased",
        config=labels("O", "B-MISC", "I-MISC", "I-PER", "I-LOC"),
    ),
    Family(
        "Davlan/xlm-roberta-base-ner-hrl",
        "XLM-R's tokens",
        "XLMRobertaForTokenClassification",
        ("tag",),
        "xlm-r",
        config=SIZE_514 | labels("O", "B-DATE", "I-DATE", "B-PER", "I-PER"),
    ),
    Family(
        "a tagger with B-, I-, E- and S-",
        "S- and E- beside B- and I-",
        "BertForTokenClassification",
        ("tag",),
        "bert, cased",
        config=labels("O", "B-PER", "I-PER", "E-PER", "S-PER"),
    ),
    Family(
        "Jean-Baptiste/camembert-ner",
        "CamemBERT's tokens; labels without B-",
        "CamembertForTokenClassification",
        ("tag",),
        "camembert",
        config=SIZE_514 | labels("O", "I-LOC", "I-PER", "I-MISC"),
    ),
]
ANSWERS = [
    Family("deepset/xlm-roberta-base-squad2", "XLM-R's tokens", "XLMRobertaForQuestionAnswering", ("answer",), "xlm-r", config=SIZE_514),
    Family("deepset/electra-base-squad2", "ELECTRA", "ElectraForQuestionAnswering", ("answer",), config={"embedding_size": 32}),
    Family("deepset/roberta-base-squad2", "byte-level BPE", "RobertaForQuestionAnswering", ("answer",), "roberta", config=SIZE_514),
    Family(
        "distilbert/distilbert-base-cased-distilled-squad",
        "cased",
        "DistilBertForQuestionAnswering",
        ("answer",),
        "bert, cased",
        config=DISTIL.config,
    ),
    Family("google-bert/bert-large-uncased-whole-word-masking-finetuned-squad", "token types", "BertForQuestionAnswering", ("answer",)),
]
MASKS = [
    Family(
        "google-bert/bert-base-uncased",
        "gamma and beta; a next sentence head",
        "BertForPreTraining",
        ("fill_mask",),
        names=renamed(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    ),
    BERT,
    ROBERTA,
    ROBERTA.like("FacebookAI/xlm-roberta-base", "XLM-R's tokens", model="XLMRobertaForMaskedLM", vocabulary="xlm-r"),
    ROBERTA.like("almanach/camembert-base", "CamemBERT's tokens", model="CamembertForMaskedLM", vocabulary="camembert"),
    Family(
        "distilbert/distilbert-base-uncased", "vocab_projector", "DistilBertForMaskedLM", ("fill_mask",), "distilbert", config=DISTIL.config
    ),
]

# --- SPLADE and ColBERT ---

SPLADE = Family(
    "naver/splade-cocondenser-ensembledistil",
    "MLMTransformer and SpladePooling: the largest weight of each token",
    "BertForMaskedLM",
    ("sparse",),
    files=modules(("MLMTransformer", ""), ("SpladePooling", "1_SpladePooling"), package="sentence_transformers.sparse_encoder.models")
    | {
        "1_SpladePooling/config.json": {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None},
        "config_sentence_transformers.json": {"model_type": "SparseEncoder", "prompts": {}, "similarity_fn_name": "dot"},
    },
)
PROJECTION = torch.randn(16, 32, generator=torch.Generator().manual_seed(2)) * 0.3
COLBERT = Family(
    "colbert-ir/colbertv2.0",
    "HF_ColBERT: a linear map without bias; markers; masks in queries; punctuation left out",
    "BertModel",
    ("tokens", "rank"),
    published={"architectures": ["HF_ColBERT"]},
    names=then(with_positions, prefixed("bert."), lambda tensors: tensors | {"linear.weight": PROJECTION}),
    files={
        "artifact.metadata": {
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "query_token": "[Q]",
            "doc_token": "[D]",
            "query_maxlen": 40,
            "doc_maxlen": 48,
            "attend_to_mask_tokens": False,
            "mask_punctuation": True,
            "dim": 16,
            "similarity": "cosine",
        }
    },
)
SPARSE = [
    SPLADE,
    SPLADE.like("prithivida/Splade_PP_en_v1", "BertForMaskedLM without modules.json", files={}),
    SPLADE.like(
        "opensearch-project/opensearch-neural-sparse-encoding-v2-distill",
        "DistilBERT; log1p twice",
        model="DistilBertForMaskedLM",
        vocabulary="distilbert",
        config=DISTIL.config,
        files=dict(SPLADE.files) | {"1_SpladePooling/config.json": {"pooling_strategy": "max", "activation_function": "log1p_relu"}},
    ),
    SPLADE.like("a SPLADE saved by sentence-transformers 6", "newer names of modules", saved_by="SparseEncoder"),
    COLBERT,
    COLBERT.like("a ColBERT saved by sentence-transformers 6", "its map in a Dense module", saved_by="MultiVectorEncoder"),
    COLBERT.like("answerdotai/answerai-colbert-small-v1", "HF_ColBERT of three layers", config={"num_hidden_layers": 3}),
]

FAMILIES = [*CROSS, *CLASSIFIERS, *TAGGERS, *ANSWERS, *MASKS, *SPARSE]
