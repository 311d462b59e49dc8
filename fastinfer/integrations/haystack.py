"""Embedders and a ranker for Haystack."""

from __future__ import annotations

import dataclasses
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from ..api import Model
from .lazy import Lazy

__all__ = ["FastinferDocumentEmbedder", "FastinferRanker", "FastinferTextEmbedder"]


class Component:
    """What the components share: a model that warm_up() loads, and the settings that a saved pipeline holds.

    model                   the name or the folder of a model, a fastinfer.Model (which cannot be saved), or None for the model inside
    device, dtype, threads  as fastinfer.load takes them
    settings                further arguments of the component

    Haystack makes another class of each component, so that super() does not work in its methods.
    """

    def __init__(self, model: str | Model | None, device: str | list[str], dtype: str | None, threads: int | None, **settings: Any) -> None:
        self._model = Lazy(model, device, dtype, threads)
        self._settings = settings

    def warm_up(self) -> None:
        """Load the model."""
        self._model()

    def to_dict(self) -> dict[str, Any]:
        """The component as a pipeline saves it. Raises InputError for a component that got a Model."""
        settings: dict[str, Any] = default_to_dict(self, **self._model.settings, **self._settings)
        return settings

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component that to_dict() described."""
        return default_from_dict(cls, data)


@component
class FastinferTextEmbedder(Component):
    """Turns a query into a vector, with the model's prompt for queries. dim: as Model.embed takes it."""

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        device: str | list[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        dim: int | None = None,
    ) -> None:
        Component.__init__(self, model, device, dtype, threads, dim=dim)
        self._dim = dim

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The vector of a text."""
        return {"embedding": self._model().embed([text], prompt_name="query", dim=self._dim)[0].tolist()}


@component
class FastinferDocumentEmbedder(Component):
    """Gives each document a vector, with the model's prompt for documents.

    dim                   as Model.embed takes it
    meta_fields_to_embed  entries of a document's meta that are put before its content, with `separator` between them
    progress_bar          show a progress bar on standard error
    """

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        device: str | list[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        dim: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        separator: str = "\n",
        progress_bar: bool = False,
    ) -> None:
        fields = meta_fields_to_embed or []
        settings = {"dim": dim, "meta_fields_to_embed": fields, "separator": separator, "progress_bar": progress_bar}
        Component.__init__(self, model, device, dtype, threads, **settings)
        self._dim, self._fields, self._separator, self._progress = dim, fields, separator, progress_bar

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Copies of the documents, with their vectors."""
        texts = [self._text(document) for document in documents]
        vectors = self._model().embed(texts, prompt_name="document", dim=self._dim, progress=self._progress).tolist()
        return {"documents": [dataclasses.replace(d, embedding=vector) for d, vector in zip(documents, vectors, strict=True)]}

    def _text(self, document: Document) -> str:
        meta = [str(document.meta[field]) for field in self._fields if document.meta.get(field) is not None]
        return self._separator.join([*meta, document.content or ""])


@component
class FastinferRanker(Component):
    """Puts documents in the order of Model.rank, with its scores. top_k: documents to keep; None: all."""

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        device: str | list[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        top_k: int | None = 10,
    ) -> None:
        Component.__init__(self, model, device, dtype, threads, top_k=top_k)
        self._top_k = top_k

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Copies of the best documents, best first, with their scores. top_k: replaces that of the component."""
        best = self._top_k if top_k is None else top_k
        ranked = self._model().rank(query, [document.content or "" for document in documents], top_k=best)
        return {"documents": [dataclasses.replace(documents[i], score=score) for i, score in ranked]}
