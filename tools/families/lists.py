"""The models that fastembed and text-embeddings-inference name, each with the family of the zoo whose layout it has.

fastembed: its registries, August 2026, of dense text embeddings (without the text halves of CLIP and SigLIP), rerankers, late interaction
and learned sparse embeddings (BM25 is not a model). text-embeddings-inference: the examples of its README, July 2026.
"""

from __future__ import annotations

MINILM, BGE, E5 = "sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5", "intfloat/multilingual-e5-large"
ARCTIC, NOMIC, QWEN = "Snowflake/snowflake-arctic-embed-m", "nomic-ai/nomic-embed-text-v1.5", "Qwen/Qwen3-Embedding-0.6B"
JINA, JINA_BPE = "jinaai/jina-embeddings-v2-base-en", "jinaai/jina-embeddings-v2-base-de"
GTE, GTE_XLM = "Alibaba-NLP/gte-base-en-v1.5", "Snowflake/snowflake-arctic-embed-m-v2.0"
NONE = ""  # no family of the zoo has this layout, and fastinfer does not load it

# list -> {published model: family}; the same name for both is written once
LISTS: dict[str, dict[str, str]] = {
    "fastembed, dense": {
        "BAAI/bge-base-en": BGE,
        "BAAI/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
        "BAAI/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
        "BAAI/bge-small-en": BGE,
        "BAAI/bge-small-en-v1.5": BGE,
        "BAAI/bge-small-zh-v1.5": "BAAI/bge-small-zh-v1.5",
        "mixedbread-ai/mxbai-embed-large-v1": "mixedbread-ai/mxbai-embed-large-v1",
        "snowflake/snowflake-arctic-embed-xs": ARCTIC,
        "snowflake/snowflake-arctic-embed-s": ARCTIC,
        "snowflake/snowflake-arctic-embed-m": ARCTIC,
        "snowflake/snowflake-arctic-embed-m-long": "Snowflake/snowflake-arctic-embed-m-long",
        "snowflake/snowflake-arctic-embed-l": ARCTIC,
        "jinaai/jina-clip-v1": NONE,
        "nomic-ai/nomic-embed-text-v1.5": NOMIC,
        "nomic-ai/nomic-embed-text-v1.5-Q": NOMIC,
        "nomic-ai/nomic-embed-text-v1": "nomic-ai/nomic-embed-text-v1",
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        "intfloat/multilingual-e5-large": E5,
        "sentence-transformers/all-MiniLM-L6-v2": MINILM,
        "jinaai/jina-embeddings-v2-base-en": JINA,
        "jinaai/jina-embeddings-v2-small-en": "jinaai/jina-embeddings-v2-small-en",
        "jinaai/jina-embeddings-v2-base-de": JINA_BPE,
        "jinaai/jina-embeddings-v2-base-code": "jinaai/jina-embeddings-v2-base-code",
        "jinaai/jina-embeddings-v2-base-zh": JINA_BPE,
        "jinaai/jina-embeddings-v2-base-es": JINA_BPE,
        "thenlper/gte-base": "thenlper/gte-base",
        "thenlper/gte-large": "thenlper/gte-base",
        "google/embeddinggemma-300m": "google/embeddinggemma-300m",
        "jinaai/jina-embeddings-v3": "jinaai/jina-embeddings-v3",
        "Qwen/Qwen3-Embedding-0.6B": QWEN,
        "Qwen/Qwen3-Embedding-0.6B-Q": QWEN,
    },
    "fastembed, rerankers": {
        "Xenova/ms-marco-MiniLM-L-6-v2": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "Xenova/ms-marco-MiniLM-L-12-v2": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "BAAI/bge-reranker-base": "BAAI/bge-reranker-base",
        "jinaai/jina-reranker-v1-tiny-en": "jinaai/jina-reranker-v1-turbo-en",
        "jinaai/jina-reranker-v1-turbo-en": "jinaai/jina-reranker-v1-turbo-en",
        "jinaai/jina-reranker-v2-base-multilingual": "jinaai/jina-reranker-v2-base-multilingual",
    },
    "fastembed, late interaction": {
        "colbert-ir/colbertv2.0": "colbert-ir/colbertv2.0",
        "answerdotai/answerai-colbert-small-v1": "answerdotai/answerai-colbert-small-v1",
        "jinaai/jina-colbert-v2": NONE,
    },
    "fastembed, learned sparse": {
        "prithivida/Splade_PP_en_v1": "prithivida/Splade_PP_en_v1",
        "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-gte": NONE,
        "Qdrant/bm42-all-minilm-l6-v2-attentions": NONE,
        "Qdrant/minicoil-v1": NONE,
    },
    "text-embeddings-inference": {
        "Qwen/Qwen3-Embedding-8B": QWEN,
        "Qwen/Qwen3-Embedding-4B": QWEN,
        "Qwen/Qwen3-Embedding-0.6B": QWEN,
        "Alibaba-NLP/gte-Qwen2-7B-instruct": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        "intfloat/multilingual-e5-large-instruct": "intfloat/multilingual-e5-large-instruct",
        "google/embeddinggemma-300m": "google/embeddinggemma-300m",
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        "Salesforce/SFR-Embedding-2_R": "Salesforce/SFR-Embedding-2_R",
        "Snowflake/snowflake-arctic-embed-l-v2.0": "Snowflake/snowflake-arctic-embed-l-v2.0",
        "Snowflake/snowflake-arctic-embed-m-v2.0": GTE_XLM,
        "WhereIsAI/UAE-Large-V1": "WhereIsAI/UAE-Large-V1",
        "nomic-ai/nomic-embed-text-v1": "nomic-ai/nomic-embed-text-v1",
        "nomic-ai/nomic-embed-text-v1.5": NOMIC,
        "sentence-transformers/all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
        "nomic-ai/nomic-embed-text-v2-moe": "nomic-ai/nomic-embed-text-v2-moe",
        "Alibaba-NLP/gte-large-en-v1.5": GTE,
        "answerdotai/ModernBERT-large": "answerdotai/ModernBERT-base",
        "voyageai/voyage-4-nano": NONE,
        "jinaai/jina-embeddings-v2-base-en": JINA,
        "jinaai/jina-embeddings-v2-base-code": "jinaai/jina-embeddings-v2-base-code",
        "BAAI/bge-reranker-large": "BAAI/bge-reranker-base",
        "BAAI/bge-reranker-base": "BAAI/bge-reranker-base",
        "Alibaba-NLP/gte-multilingual-reranker-base": "Alibaba-NLP/gte-multilingual-reranker-base",
        "Alibaba-NLP/gte-reranker-modernbert-base": "Alibaba-NLP/gte-reranker-modernbert-base",
        "SamLowe/roberta-base-go_emotions": "SamLowe/roberta-base-go_emotions",
    },
}
