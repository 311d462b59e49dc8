"""Vectors for txtai: Embeddings(method="fastinfer.integrations.txtai.FastinferVectors", path=NAME)."""

from __future__ import annotations

from typing import Any

import numpy as np
from txtai.vectors import Vectors

from .lazy import Lazy

__all__ = ["FastinferVectors"]


class FastinferVectors(Vectors):
    """Vectors of data and of queries, each with the model's prompt of its kind. txtai finds this class by its name.

    Its settings are `path`, the name or the folder of a model (left out: the model inside), and `vectors`, a dict of device, dtype and
    threads as fastinfer.load takes them, and dim as Model.embed takes it. txtai's `instructions` replace the model's prompts.
    """

    def loadmodel(self, path: str | None) -> Lazy:
        """The model. txtai keeps it for other indexes with the same settings."""
        options = self.config.get("vectors") or {}
        return Lazy(path, **{name: value for name, value in options.items() if name != "dim"})

    def encode(self, data: Any, category: str | None = None) -> np.ndarray:
        """One vector per text: (n, dim) float32, which txtai may change."""
        options = {"prompt": ""} if self.instructions else {"prompt_name": "query" if category == "query" else "document"}
        vectors: np.ndarray = self.model().embed(list(data), dim=(self.config.get("vectors") or {}).get("dim"), **options)
        return vectors
