"""Embed: a function that adds vectors to batches of rows, for engines that call it in many processes."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..api import Model, load
from ..errors import InputError, about, listed, near, required, short
from ..values import kind_of

__all__ = ["Embed"]

OPENED = 4  # models that a process keeps: an engine hands a task a new copy of its function


class Embed:
    """A function that gives a batch of rows, with a column of the vectors of its texts added. It can be pickled.

    model    as fastinfer.load takes it, or a fastinfer.Model
    column   the column of the texts
    to       the name of the column of the vectors
    device, dtype, threads, max_depth  as fastinfer.load takes them; ignored for a Model. An engine runs a process per CPU, so threads is 1
    options  of Model.embed, such as prompt_name="document", dim=128, precision="int8" or na="skip"

    width    numbers, or bytes of bits, of a vector
    type     their numpy.dtype

    Ray's map_batches calls it with a dict of arrays, a table of pyarrow or one of pandas; Dask's map_partitions with a table of pandas;
    Spark's mapInPandas and mapInArrow with an iterator of tables, which gives an iterator. A column of pandas, as in a function of
    Spark's pandas_udf, gives a column of vectors. In tables, a vector is a fixed-size list of Arrow, made without a copy; an iterator
    of tables of pyarrow gets lists of any size, because Spark knows no others. Other columns are left as they are.

    A pickle holds the name of the model, a digest of its files and the options, and no weights. A process opens the model once, mapped.

    Raises InputError for another kind of batch, for a batch without the column of texts, and as Model.embed does.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        *,
        column: str = "text",
        to: str = "embedding",
        device: str | Sequence[str] = "auto",
        dtype: str | None = None,
        threads: int | None = 1,
        max_depth: int | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("column", column), ("to", to)):
            if not isinstance(value, str):
                raise InputError(f"{name} is {short(value)}, expected the name of a column")
        if not isinstance(model, Model):
            model = load(model, device=device, dtype=dtype, threads=threads, max_depth=max_depth)
        none = model.embed([], **options)
        self.column, self.to, self.width, self.type = column, to, none.shape[1], none.dtype
        self._options, self._pickled = options, pickle.dumps(model)
        self._model: Model | None = model

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None}

    @property
    def model(self) -> Model:
        """The model, which this process opens once."""
        if self._model is None:
            with _OPENING[0]:
                self._model = _opened(self._pickled)
        return self._model

    @property
    def refuses_missing(self) -> bool:
        """Whether a missing text is an error."""
        return bool(self._options.get("na", "raise") == "raise")

    def __call__(self, batch: Any) -> Any:
        if isinstance(batch, Iterator):
            return (self._added(part, fixed=False) for part in batch)
        return self._added(batch, fixed=True)

    def vectors(self, texts: Any) -> np.ndarray:
        """The vectors of texts: (B, width)."""
        with about(f"column {short(self.column)}"):
            return self.model.embed(texts, **self._options)

    def field(self, *, fixed: bool = True) -> Any:
        """The pyarrow.Field of the column of the vectors. fixed: as a fixed-size list, as in tables."""
        arrow = _arrow()
        return arrow.field(self.to, arrow.list_(arrow.from_numpy_dtype(self.type), self.width if fixed else -1))

    def _added(self, batch: Any, *, fixed: bool) -> Any:
        """The batch with the vectors. fixed: the vectors of a table of pyarrow are lists of a fixed size."""
        if isinstance(batch, dict):
            return {**batch, self.to: self.vectors(batch[self._found(batch)])}
        if _is_a(batch, "pandas", "Series"):
            return self._series(batch)
        if _is_a(batch, "pandas", "DataFrame"):
            return batch.assign(**{self.to: self._series(batch[self._found(batch.columns)])})
        if _is_a(batch, "pyarrow", "Table", "RecordBatch"):
            texts = batch.column(self._found(batch.schema.names)).to_pylist()
            return batch.append_column(self.field(fixed=fixed), self._lists(self.vectors(texts), fixed=fixed))
        raise InputError(f"the batch is {kind_of(batch)}, expected a dict of arrays, or a table of pandas or pyarrow")

    def _found(self, columns: Any) -> str:
        """The column of the texts, which a batch with these columns has. Raises InputError for a batch whose columns do not fit."""
        names = list(map(str, columns))
        if self.column not in names:
            known = listed(map(short, names)) or "none"
            raise InputError(f"the batch has no column {short(self.column)}, only {known}{near(self.column, names)}")
        if self.to in names:
            raise InputError(f"the batch has a column {short(self.to)}: name the column of the vectors otherwise, with to=")
        return self.column

    def _series(self, texts: Any) -> Any:
        """A pandas.Series of the vectors, with the index of the texts."""
        pandas = required("pandas", "a batch of pandas", "bulk")
        lists = self._lists(self.vectors(texts), fixed=True)
        return pandas.Series(pandas.arrays.ArrowExtensionArray(lists), index=texts.index, name=self.to)

    def _lists(self, vectors: np.ndarray, *, fixed: bool) -> Any:
        """The vectors as an array of Arrow, which shares their memory."""
        arrow = _arrow()
        numbers = arrow.array(vectors.reshape(-1))
        if fixed:
            return arrow.FixedSizeListArray.from_arrays(numbers, self.width)
        ends = arrow.array(np.arange(len(vectors) + 1) * self.width).cast(arrow.int32())  # refuses more numbers than such a list may have
        return arrow.ListArray.from_arrays(ends, numbers)


def _arrow() -> Any:
    return required("pyarrow", "a batch of pandas or pyarrow", "bulk")


def _is_a(value: Any, library: str, *names: str) -> bool:
    """Whether a value is an instance of a class of a library, which need not be installed."""
    return any(kind.__module__.partition(".")[0] == library and kind.__name__ in names for kind in type(value).__mro__)


@functools.lru_cache(OPENED)
def _opened(pickled: bytes) -> Model:
    model: Model = pickle.loads(pickled)
    return model


_OPENING = [threading.Lock()]


def _renew_lock() -> None:
    """A fork does not have the thread that may hold the lock."""
    _OPENING[0] = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
