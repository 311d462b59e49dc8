"""An embedding function for Chroma. Importing this module registers it, so that a saved collection opens with its model."""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb import Documents, EmbeddingFunction, Embeddings
from chromadb.utils.embedding_functions import register_embedding_function

from ..api import Model
from ..errors import InputError, short
from .lazy import Lazy

__all__ = ["FastinferEmbeddingFunction"]

SPACES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}  # similarity of a model: Chroma's name for it


@register_embedding_function
class FastinferEmbeddingFunction(EmbeddingFunction[Documents]):
    """Vectors of documents and of queries, each with the model's prompt of its kind.

    model                   the name or the folder of a model, a fastinfer.Model (which cannot be saved), or None for the model inside
    device, dtype, threads  as fastinfer.load takes them
    dim                     as Model.embed takes it
    """

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        device: str | list[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        dim: int | None = None,
    ) -> None:
        self._model, self._dim = Lazy(model, device, dtype, threads), dim

    def __call__(self, input: Documents) -> Embeddings:
        return self._embed(input, "document")

    def embed_query(self, input: Documents) -> Embeddings:
        """The vectors of queries."""
        return self._embed(input, "query")

    def _embed(self, texts: Documents, prompt_name: str) -> list[np.ndarray]:
        return list(self._model().embed(list(texts), prompt_name=prompt_name, dim=self._dim))

    @staticmethod
    def name() -> str:
        """The name under which Chroma finds this function again."""
        return "fastinfer"

    def default_space(self) -> Any:
        """The space in which Chroma compares vectors: the one that the model was made for."""
        head = self._model().config.tasks.embed
        return SPACES.get("" if head is None else head.similarity, "cosine")

    def get_config(self) -> dict[str, Any]:
        """What a saved collection keeps. Raises InputError for a function that got a Model."""
        return {**self._model.settings, "dim": self._dim}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> FastinferEmbeddingFunction:
        """The function that get_config() described."""
        FastinferEmbeddingFunction.validate_config(config)
        return FastinferEmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise InputError for a setting that this function does not have."""
        known = {"model", "device", "dtype", "threads", "dim"}
        if not isinstance(config, dict) or not set(config) <= known:
            raise InputError(f"the settings of an embedding function are {short(config)}, expected {', '.join(sorted(known))} alone")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise InputError for another model or length of vectors: those that the collection holds would not fit."""
        for name in ("model", "dim"):
            if old_config.get(name) != new_config.get(name):
                old, new = short(old_config.get(name)), short(new_config.get(name))
                raise InputError(f"{name} is {new}, expected {old}, with which the vectors of the collection were made: make another one")
