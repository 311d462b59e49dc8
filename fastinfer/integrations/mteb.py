"""Encoders for MTEB, the benchmark of embeddings: mteb.evaluate(FastinferEncoder(NAME), tasks)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ScoringFunction

from .. import hub
from ..api import Model
from ..errors import TaskError
from .lazy import Lazy

__all__ = ["FastinferCrossEncoder", "FastinferEncoder"]


class FastinferEncoder(AbsEncoder):
    """An embedder. It puts the model's prompt for the task, else that for queries or documents, before each text.

    model             the name or the folder of a model, a fastinfer.Model, or None for the model inside
    revision          of a model on the hub
    device            as fastinfer.load takes it; None: "auto"
    dtype, threads    as fastinfer.load takes them
    dim               as Model.embed takes it
    name              org/name, under which MTEB keeps the results; None: the name on the hub, or fastinfer/ and the name of the folder
    """

    def __init__(
        self,
        model: str | Model | None = None,
        revision: str | None = None,
        *,
        device: str | Sequence[str] | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        dim: int | None = None,
        name: str | None = None,
    ) -> None:
        self.model = _loaded(model, revision, device, dtype, threads)
        head = self.model.config.tasks.embed
        if head is None:
            raise TaskError(f"{self.model!r} has no embed head, expected an embedder")
        self._dim = dim
        self._prompts = {prompt.name: prompt.text for prompt in head.prompts}
        width = self.model.embed([], dim=dim).shape[1]
        self.mteb_model_meta = _meta(
            self.model, model, name, revision, embed_dim=width, similarity_fn_name=ScoringFunction(head.similarity)
        )

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
        """One vector per text of the batches: (n, dim) float32."""
        name = get_prompt_name(self._prompts, task_metadata, prompt_type)
        if name is None and prompt_type is not None:
            name = prompt_type.value
        progress = bool(kwargs.get("show_progress_bar"))
        vectors: np.ndarray = self.model.embed(_texts(inputs), prompt_name=name, dim=self._dim, progress=progress)
        return vectors


class FastinferCrossEncoder:
    """A cross-encoder, which scores pairs of a query and a document. Its arguments are those of FastinferEncoder, but for dim."""

    def __init__(
        self,
        model: str | Model,
        revision: str | None = None,
        *,
        device: str | Sequence[str] | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        self.model = _loaded(model, revision, device, dtype, threads)
        head = self.model.config.tasks.classify
        if head is None or len(head.labels) != 1:
            raise TaskError(f"{self.model!r} has no classify head of one label, expected a cross-encoder")
        self.mteb_model_meta = _meta(self.model, model, name, revision, model_type=["cross-encoder"])

    def predict(self, inputs1: Any, inputs2: Any, **kwargs: Any) -> np.ndarray:
        """The score (n,) of each pair of texts of the batches."""
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        return np.array(self.model.classify(pairs, progress=bool(kwargs.get("show_progress_bar"))), np.float32)


def _loaded(model: str | Model | None, revision: str | None, device: Any, dtype: str | None, threads: int | None) -> Model:
    name = f"{model}@{revision}" if revision is not None and isinstance(model, str) else model
    return Lazy(name, "auto" if device is None else device, dtype, threads)()


def _texts(batches: Iterable[Any]) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


def _meta(model: Model, given: Any, name: str | None, revision: str | None, **known: Any) -> Any:
    """What MTEB wants to know of a model."""
    if name is None:
        name = given if isinstance(given, str) and hub.NAME.fullmatch(given) else f"fastinfer/{Path(model._name).name}"
    return ModelMeta.create_empty(
        {"name": name, "revision": revision, "max_tokens": model.config.max_tokens, "framework": ["NumPy"], **known}
    )
