"""Architectures that came after BERT: other embeddings, norms before, relative positions, ALiBi, disentangled attention."""

from __future__ import annotations

from .build import Family, prefixed, sentence, then, without
from .embedders import EMBED, SIZE_514
from .heads import ONE, RANK, labels

ELECTRA = Family(
    "google/electra-small-discriminator",
    "narrow embeddings and a linear map behind them; a head that is left out",
    "ElectraForPreTraining",
    config={"embedding_size": 16},
)
DPR = Family(
    "facebook/dpr-question_encoder-single-nq-base",
    "the prefix question_encoder.bert_model.; the first state",
    "DPRQuestionEncoder",
    config={"projection_dim": 0},
    oracle="pooler",
)
RELATIVES = [
    ELECTRA,
    ELECTRA.like("google/electra-base-generator", "masks through narrow embeddings", model="ElectraForMaskedLM", tasks=("fill_mask",)),
    Family("nghuyong/ernie-2.0-base-en", "embeddings of a task", "ErnieModel", config={"use_task_id": True, "task_type_vocab_size": 3}),
    Family("nghuyong/ernie-3.0-base-zh", "masks; embeddings of a task", "ErnieForMaskedLM", ("fill_mask",), config={"use_task_id": True}),
    Family("nghuyong/ernie-1.0-base-zh", "relu", "ErnieModel", config={"hidden_act": "relu"}),
    Family(
        "an MPNet that classifies",
        "relative positions; two labels",
        "MPNetForSequenceClassification",
        ("classify",),
        "mpnet",
        config={"max_position_embeddings": 66, "layer_norm_eps": 1e-5, **labels("no", "yes")},
    ),
    DPR,
    DPR.like("facebook/dpr-ctx_encoder-single-nq-base", "the prefix ctx_encoder.bert_model.; the first state", model="DPRContextEncoder"),
    Family("facebook/data2vec-text-base", "RoBERTa by another name", "Data2VecTextModel", vocabulary="roberta", config=SIZE_514),
    Family(
        "andreasmadsen/efficient_mlm_m0.40",
        "norms before attention and feedforward",
        "RobertaPreLayerNormForMaskedLM",
        ("fill_mask",),
        "roberta",
        config=SIZE_514,
    ),
]

# --- ALiBi ---

JINA_KEYS = {"model_type": "bert", "kind": None, "position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
JINA = Family(
    "jinaai/jina-embeddings-v2-small-en",
    "ALiBi, GeGLU; mean",
    "AlibiModel",
    EMBED,
    config={"num_attention_heads": 4, "kind": "jina"},
    published={
        **JINA_KEYS,
        "architectures": ["JinaBertForMaskedLM"],
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
        "attn_implementation": "torch",
    },
    files=sentence(limit=64),
    native=True,
)
ALIBI = [
    JINA,
    JINA.like(
        "jinaai/jina-embeddings-v2-base-en",
        "ALiBi with three heads; normalised",
        config={"hidden_size": 48, "num_attention_heads": 3},
        files=sentence(normalize=True, limit=64, width=48),
    ),
    JINA.like("jinaai/jina-embeddings-v2-base-de", "ALiBi, GeGLU; byte-level BPE", vocabulary="roberta"),
    JINA.like(
        "jinaai/jina-embeddings-v2-base-code",
        "ALiBi; queries and keys are normalised; byte-level BPE",
        config={"kind": "jina-code"},
        vocabulary="roberta",
        published={"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}},
    ),
    JINA.like(
        "jinaai/jina-reranker-v1-turbo-en",
        "ALiBi; one label",
        model="AlibiClassifier",
        tasks=RANK,
        config=ONE,
        published={"architectures": ["JinaBertForSequenceClassification"]},
        files={},
    ),
    JINA.like(
        "mosaicml/mosaic-bert-base",
        "ALiBi, GeGLU; Wqkv",
        config={"kind": "mosaic"},
        published={
            "architectures": ["BertForMaskedLM"],
            "auto_map": {"AutoModelForMaskedLM": "bert_layers.BertForMaskedLM"},
            "alibi_starting_size": 512,
            "feed_forward_type": None,
            "emb_pooler": None,
            "position_embedding_type": "absolute",
        },
        names=then(without("pooler"), prefixed("bert.")),
        tasks=("embed",),
        files={},
    ),
]

# --- DeBERTa ---

DEBERTA_KEYS = {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 32,
}
DEBERTA = Family(
    "mixedbread-ai/mxbai-rerank-xsmall-v1",
    "disentangled attention, positions in buckets; one label",
    "DebertaV2ForSequenceClassification",
    RANK,
    "deberta",
    config=DEBERTA_KEYS | ONE,
    published={"pos_att_type": "p2c|c2p"},
)
DISENTANGLED = [
    DEBERTA,
    DEBERTA.like(
        "MoritzLaurer/deberta-v3-base-zeroshot-v2.0",
        "disentangled attention; labels that the model was not trained on",
        tasks=("classify", "zero_shot"),
        config=labels("entailment", "not_entailment"),
    ),
    DEBERTA.like(
        "protectai/deberta-v3-base-prompt-injection-v2",
        "disentangled attention; two labels",
        tasks=("classify",),
        config=labels("SAFE", "INJECTION"),
    ),
    DEBERTA.like(
        "blaze999/Medical-NER",
        "disentangled attention; tags",
        model="DebertaV2ForTokenClassification",
        tasks=("tag",),
        config=labels("O", "B-AGE", "I-AGE", "B-SEX", "I-SEX"),
    ),
    DEBERTA.like(
        "deepset/deberta-v3-base-squad2",
        "disentangled attention; answers",
        model="DebertaV2ForQuestionAnswering",
        tasks=("answer",),
        config={"id2label": None, "label2id": None},
    ),
    DEBERTA.like(
        "microsoft/deberta-v2-xlarge",
        "disentangled attention and a convolution",
        model="DebertaV2Model",
        tasks=("embed",),
        config={"id2label": None, "label2id": None, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    DEBERTA.like(
        "microsoft/deberta-v3-small",
        "disentangled attention; no pooler",
        model="DebertaV2Model",
        tasks=("embed",),
        config={"id2label": None, "label2id": None},
    ),
]

FAMILIES = [*RELATIVES, *ALIBI, *DISENTANGLED]
