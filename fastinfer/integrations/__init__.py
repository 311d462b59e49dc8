"""fastinfer in other libraries: a module for each, which imports it. Importing fastinfer imports none of them.

sklearn      TextEmbedder, a transformer
langchain    FastinferEmbeddings, FastinferReranker
llama_index  FastinferEmbedding, FastinferRerank
haystack     FastinferTextEmbedder, FastinferDocumentEmbedder, FastinferRanker
chroma       FastinferEmbeddingFunction
txtai        FastinferVectors
spacy        the pipeline component "fastinfer"
mteb         FastinferEncoder, FastinferCrossEncoder
duckdb       register, which adds a function to SQL
"""
