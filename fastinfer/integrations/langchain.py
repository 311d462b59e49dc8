"""Embeddings and a reranker for LangChain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, PrivateAttr

from ..api import Model
from .lazy import Lazy

__all__ = ["FastinferEmbeddings", "FastinferReranker"]


class FastinferEmbeddings(Embeddings):
    """Vectors of documents and of queries, each with the model's prompt of its kind.

    model                   the name or the folder of a model, a fastinfer.Model, or None for the model inside
    device, dtype, threads  as fastinfer.load takes them
    dim                     as Model.embed takes it
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        *,
        device: str | Sequence[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        dim: int | None = None,
    ) -> None:
        self._model, self._dim = Lazy(model, device, dtype, threads), dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per document."""
        vectors: list[list[float]] = self._model().embed(list(texts), prompt_name="document", dim=self._dim).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        vector: list[float] = self._model().embed([text], prompt_name="query", dim=self._dim)[0].tolist()
        return vector


class FastinferReranker(BaseDocumentCompressor):
    """Keeps the documents that Model.rank puts first. Their metadata gets a "relevance_score".

    model, device, dtype, threads  as for FastinferEmbeddings; a cross-encoder, a ColBERT model or an embedder
    top_n                          documents to keep; None: all of them, in their new order
    """

    model: Any = None
    device: str | list[str] = "auto"
    dtype: str | None = None
    threads: int | None = None
    top_n: int | None = 3
    _model: Lazy = PrivateAttr()

    model_config = ConfigDict(extra="forbid")

    def model_post_init(self, context: Any) -> None:
        """Remember which model to load."""
        self._model = Lazy(self.model, self.device, self.dtype, self.threads)

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None) -> Sequence[Document]:
        """The best documents, best first, as copies with their scores."""
        kept = []
        for i, score in self._model().rank(query, [document.page_content for document in documents], top_k=self.top_n):
            metadata = {**documents[i].metadata, "relevance_score": score}
            kept.append(documents[i].model_copy(update={"metadata": metadata}))
        return kept
