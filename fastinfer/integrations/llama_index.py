"""An embedding model and a reranker for LlamaIndex."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from ..errors import InputError
from .lazy import Lazy

__all__ = ["FastinferEmbedding", "FastinferRerank"]

NAME = Field(default=None, description="The name or the folder of a model; None: the model inside.")
DEVICE = Field(default="auto", description="As fastinfer.load takes it.")
DTYPE = Field(default=None, description="As fastinfer.load takes it.")
THREADS = Field(default=None, description="As fastinfer.load takes it.")


class FastinferEmbedding(BaseEmbedding):
    """Vectors of nodes and of queries, each with the model's prompt of its kind.

    model_name              the name or the folder of a model, or None for the model inside
    device, dtype, threads  as fastinfer.load takes them
    dim                     as Model.embed takes it
    """

    model_name: str | None = NAME
    device: str | list[str] = DEVICE
    dtype: str | None = DTYPE
    threads: int | None = THREADS
    dim: int | None = Field(default=None, description="As Model.embed takes it.")
    embed_batch_size: int = Field(default=512, description="Texts that one call embeds.", gt=0, le=2048)
    _model: Lazy = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Remember which model to load."""
        super().model_post_init(context)
        self._model = Lazy(self.model_name, self.device, self.dtype, self.threads)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in saved settings."""
        return "FastinferEmbedding"

    def _embed(self, texts: list[str], prompt_name: str) -> list[list[float]]:
        vectors: list[list[float]] = self._model().embed(texts, prompt_name=prompt_name, dim=self.dim).tolist()
        return vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "document")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(list(texts), "document")

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class FastinferRerank(BaseNodePostprocessor):
    """Keeps the nodes that Model.rank puts first, with its scores.

    model, device, dtype, threads  as for FastinferEmbedding; a cross-encoder, a ColBERT model or an embedder
    top_n                          nodes to keep; None: all of them, in their new order
    """

    model: str | None = NAME
    device: str | list[str] = DEVICE
    dtype: str | None = DTYPE
    threads: int | None = THREADS
    top_n: int | None = Field(default=3, description="Nodes to keep; None: all.")
    _model: Lazy = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Remember which model to load."""
        super().model_post_init(context)
        self._model = Lazy(self.model, self.device, self.dtype, self.threads)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in saved settings."""
        return "FastinferRerank"

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("got no query, expected query_bundle or query_str: nodes are ranked by how well they match it")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = self._model().rank(query_bundle.query_str, texts, top_k=self.top_n)
        return [NodeWithScore(node=nodes[i].node, score=score) for i, score in ranked]
