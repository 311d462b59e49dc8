"""Lazy: a model by name, which is loaded when it is first used."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from ..api import Model, load
from ..catalog import inside
from ..errors import InputError, short

__all__ = ["Lazy"]


class Lazy:
    """A callable that gives the Model, and loads it at the first call. Copies and pickles hold its name and options, not its weights.

    model                   as fastinfer.load takes it, or a Model
    device, dtype, threads  as fastinfer.load takes them; ignored for a Model
    """

    _loading = threading.Lock()

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        device: str | Sequence[str] = "auto",
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        if not (model is None or isinstance(model, (str, os.PathLike, Model))):
            raise InputError(f"model is {short(model)}, expected the name or the folder of a model, a fastinfer.Model, or None")
        self._loaded = model if isinstance(model, Model) else None
        self._given = self._loaded is not None
        self._name = None if isinstance(model, Model) or model is None else os.fspath(model)
        self._options: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads}

    def __call__(self) -> Model:
        if self._loaded is None:
            with Lazy._loading:
                if self._loaded is None:
                    self._loaded = load(self._name, **self._options)
        return self._loaded

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make an equal one, for a file of settings. Raises InputError for a Model that was loaded before.

        The model inside is named, because another release may have another one.
        """
        if self._given:
            raise InputError("got a Model, which a file of settings cannot hold: pass the name or the folder of the model")
        return {"model": inside()[0] if self._name is None and inside() else self._name, **self._options}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self._given else {"_loaded": None})


def _renew_lock() -> None:
    """A fork does not have the thread that may hold the lock."""
    Lazy._loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
