"""A function for SQL: register(connection) makes embed(text) known to DuckDB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..api import Model
from .lazy import Lazy

__all__ = ["register"]


def register(
    connection: Any,
    model: str | os.PathLike[str] | Model | None = None,
    *,
    name: str = "embed",
    device: str | Sequence[str] = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> None:
    """Add a function `name` to a DuckDB connection that turns a VARCHAR into a FLOAT[dim], a chunk of rows at a time.

    model                   the name or the folder of a model, a fastinfer.Model, or None for the model inside
    device, dtype, threads  as fastinfer.load takes them
    options                 of Model.embed, such as dim=128 or prompt_name="query"

    It needs pyarrow. The vector of NULL is NULL.
    """
    import pyarrow as pa

    loaded = Lazy(model, device, dtype, threads)()
    width = loaded.embed([], **options).shape[1]

    def embed(column: Any) -> Any:
        vectors = pa.array(loaded.embed(column.to_pylist(), **options).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(vectors, width)

    connection.create_function(name, embed, ["VARCHAR"], f"FLOAT[{width}]", type="arrow")
