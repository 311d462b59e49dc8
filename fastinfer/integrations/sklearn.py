"""TextEmbedder: texts to vectors as a step of a scikit-learn pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ..api import Model
from .lazy import Lazy

__all__ = ["TextEmbedder"]


class TextEmbedder(TransformerMixin, BaseEstimator):
    """A transformer that turns n texts into an array (n, dim) float32. There is nothing to fit.

    model                                    the name or the folder of a model, a fastinfer.Model, or None for the model inside
    device, dtype, threads                   as fastinfer.load takes them
    prompt, prompt_name, normalize, dim,
    batch_tokens                             as Model.embed takes them

    Texts are a list, an array or a column of str, not a table: in a ColumnTransformer, name one column by a str. The model is
    loaded when it is first used. Clones and pickles, such as those that joblib sends to other processes, hold its name.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        *,
        device: str | Sequence[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.threads = threads
        self.prompt = prompt
        self.prompt_name = prompt_name
        self.normalize = normalize
        self.dim = dim
        self.batch_tokens = batch_tokens

    def fit(self, X: Any, y: Any = None) -> TextEmbedder:
        """Load the model and check the options. Raises what fastinfer.load and Model.embed raise."""
        self._embed([])
        return self

    def transform(self, X: Any) -> np.ndarray:
        """One vector per text: (n, dim) float32."""
        return self._embed(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names of the columns: textembedder0, textembedder1 and so on."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{i}" for i in range(self._embed([]).shape[1])], object)

    def _embed(self, texts: Any) -> np.ndarray:
        source = self.model, self.device, self.dtype, self.threads
        if self.__dict__.get("_source") != source:
            self._source, self._lazy = source, Lazy(*source)
        options = {name: getattr(self, name) for name in ("prompt", "prompt_name", "normalize", "dim", "batch_tokens")}
        vectors: np.ndarray = self._lazy().embed(texts, **options)
        return vectors

    def __getstate__(self) -> Any:
        return {name: value for name, value in super().__getstate__().items() if name not in ("_source", "_lazy")}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
