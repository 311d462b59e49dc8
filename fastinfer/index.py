"""Index: texts that are embedded once and searched often."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.reference import Reference
from .backends.search import Best, Stored, queries_at_once
from .embedding import PROMPTS
from .errors import CheckpointError, InputError, ShapeError, TaskError, check_flag, check_int, short
from .heads import embed
from .keys import Ids, Strings, checked_ids, new_ids
from .precision import as_bits, as_codes, check_precision
from .progress import Progress
from .rows import PRECISIONS, Rows, floats
from .run import Options, positive
from .similarity import host_backend
from .tokenizer import TruncationWarning, as_singles, warn_of

if TYPE_CHECKING:
    from .api import Model

__all__ = ["Index"]

PORTION = 8192  # texts that are embedded and stored at a time
# Rows whose scores are computed again from all that is stored, for each row that is asked for. docs/search.md has what they find.
RESCORED = {"float32": 1, "int8": 4, "binary": 40}
BLOCK = 1 << 14  # rows that are scored one by one at a time
GATHERED = 8192  # rows that are scored again at a time, for several queries
UNIT_ROUNDOFF = 2.0**-24


class Index:
    """Vectors of texts, made by add() or open(), and searched for those that are most like a query. len() is the number of texts.

    model       the model that embeds texts and queries, with its prompts for documents and queries, and whose similarity orders them
    precision   "float32"; "int8", a quarter of the memory; "binary", which scans one bit a number and scores the best with int8
    dim         keep the first numbers of each vector, so many; None: as the checkpoint says
    keep_texts  store the texts, too: text() gives them back

    Every vector is compared with every query: float32 misses no answer. int8 and binary score the best rows of the scan once more,
    with the query as it is. Scores are those of Model.rank(). Bit for bit, they do not depend on the other texts and queries, nor on
    threads. Of equal scores, the text that was added first comes first. Several threads may search at once, but not while another one adds
    or removes.
    """

    def __init__(self, model: Model, *, precision: str = "float32", dim: int | None = None, keep_texts: bool = False) -> None:
        head = _head(model)
        full = head.numbers(model.config.hidden)
        most = head.widths(model.config.hidden)[-1]
        size = full if dim is None else check_int("dim", dim, 1, most, because=", the numbers of a vector")
        self.model: Model | None = model
        self.precision = check_precision(precision, PRECISIONS)
        self.similarity: str = head.similarity
        self.dim = size
        self._cut = dim
        from . import index_file  # imports zipfile, which no other call needs

        self._named = index_file.Named(index_file.name_of(model), model.fingerprint)
        self._rows = Rows(self.precision, self.similarity, size)
        self._ids, self._next = Ids(), 0
        self._texts: Ids | None = Ids() if check_flag("keep_texts", keep_texts) else None

    def __len__(self) -> int:
        return self._rows.count - self._rows.removed

    def __contains__(self, key: object) -> bool:
        return self._ids.place(key) is not None

    def __repr__(self) -> str:
        size = f"{len(self)} vectors of {self.dim} numbers"
        return f"<fastinfer.Index of {size}, {self.precision}, {self.similarity}, model {self._named.name}>"

    @property
    def keeps_texts(self) -> bool:
        """Whether text() gives texts."""
        return self._texts is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored vectors, without ids and texts. Those of a mapped file are read as they are needed."""
        return self._rows.nbytes

    # --- what is stored ---

    def add(
        self,
        texts: Any,
        ids: Iterable[Any] | None = None,
        *,
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Embed texts as documents and store their vectors; or store ready vectors (B, dim), such as model.embed() gives.

        ids  an int for each text, or a str, with which search() names it; None: the integers that follow the largest so far, from 0 on

        Raises InputError for an id that the index has, and for vectors with NaN or infinity. After an error the index is as it was.
        """
        options = Options(batch_tokens, threads, progress)
        vectors = _as_vectors(texts, self.dim, "vectors")
        given: list[str] = [] if vectors is not None else as_singles(texts)
        count = len(given) if vectors is None else len(vectors)
        if vectors is not None and self._texts is not None:
            raise InputError("got vectors, expected texts: this index keeps its texts")
        if ids is None and self._ids.kind is str:
            raise InputError("ids is None, expected a str for each text, as the other ids of the index are")
        keys = new_ids(self._next, count) if ids is None else checked_ids(ids, count, self._ids)
        before = self._rows.count, self._rows.longest
        cuts: list[TruncationWarning] = []
        try:
            with Progress(count, enabled=check_flag("progress", options.progress)) as bar:
                for first in range(0, count, PORTION):
                    part = slice(first, first + PORTION)
                    new = self._embedded(given[part], 1, options, cuts) if vectors is None else self._checked(vectors[part], first)
                    self._rows.append(new, count - first)
                    bar.advance(min(PORTION, count - first))
            self._ids.extend(keys)
            if self._texts is not None:
                self._texts.extend(given)
        except BaseException:
            self._rows.shorten(*before)
            self._ids.shorten(before[0])
            if self._texts is not None:
                self._texts.shorten(before[0])
            raise
        if count and not isinstance(keys[0], str):
            self._next = max(self._next, max(keys) + 1)
        warn_of(cuts)

    def remove(self, ids: Any) -> None:
        """Remove the texts with these ids (one, or a list). They are not found any more; save() then leaves them out.

        Raises InputError for an id that the index does not have; nothing is removed then.
        """
        keys = [ids] if isinstance(ids, (str, int, np.integer)) else list(ids)
        keys = [int(key) if isinstance(key, np.integer) else key for key in keys]
        rows = [self._ids.place(key) for key in keys]
        for i, row in enumerate(rows):
            if row is None:
                raise InputError(f"ids[{i}] is {short(keys[i])}, which the index does not have")
        found = sorted({row for row in rows if row is not None})
        self._rows.remove(np.array(found, np.int64))
        self._ids.remove(found)

    def text(self, key: Any) -> str:
        """The text with this id, of an index that keeps its texts. Raises InputError."""
        row = self._ids.place(key)
        if self._texts is None or row is None:
            why = "which the index does not have" if row is None else "but the index was made without keep_texts=True"
            raise InputError(f"the id is {short(key)}, {why}")
        return str(self._texts[row])

    # --- search ---

    def search(
        self, queries: Any, top_k: int = 10, *, batch_tokens: int | None = None, threads: int | None = None, progress: bool = False
    ) -> list[list[tuple[Any, float]]]:
        """Per query the top_k (id, score), best first. A score is that of Model.rank(): larger is more alike.

        queries  texts, which get the model's prompt for queries; or vectors (Q, dim) or (dim,)

        Raises CheckpointError where so many vectors of an opened file are NaN or infinite that fewer than top_k have a score.
        """
        wanted = check_int("top_k", top_k, 1)
        positive("threads", threads)
        vectors = _as_vectors(queries, self.dim, "queries")
        cuts: list[TruncationWarning] = []
        if vectors is None:
            asked = self._embedded(as_singles(queries, "queries"), 0, Options(batch_tokens, threads, progress), cuts)
        else:
            asked = self._checked(vectors, 0)
        if cuts:
            warn_of(cuts)
        ops = self._ops(threads)
        found: list[list[tuple[Any, float]]] = []
        count = min(wanted, len(self))
        step = queries_at_once(count * RESCORED[self.precision], ops.threads)
        for first in range(0, len(asked), step):
            with np.errstate(over="ignore", invalid="ignore"):  # a broken file may have any numbers
                nearest = self._nearest(asked[first : first + step], count, ops)
            for rows, scores in nearest:
                if len(rows) < count:  # add() takes no such vectors
                    raise CheckpointError(
                        f"only {len(rows)} of {len(self)} vectors have scores that are numbers, so the file of the index is broken: "
                        "index the texts again"
                    )
                found.append([(self._ids[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)])
        return found

    def _nearest(self, queries: np.ndarray, count: int, ops: Reference) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query (rows, scores) of the `count` best."""
        if not count:
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        if self.similarity == "manhattan" and self.precision != "binary":  # no product gives this distance
            return [self._exactly(query, count) for query in queries]
        field, asked, query_scale = next(iter(self._rows.fields)), queries, None
        if self.precision == "int8":
            asked, query_scale = as_codes(queries)
        elif self.precision == "binary":
            asked = as_bits(queries)
        scanned = "scale" if self.precision == "int8" else None
        parts = [
            Stored(part.first, part.arrays[field], part.arrays[scanned] if scanned else None, part.arrays.get("bias"), part.gone)
            for part in self._rows.blocks(self._rows.count)
        ]
        keep, margin = count * RESCORED[self.precision], self._margin(queries)
        nearest = ops.nearest(parts, asked, keep=keep, margin=margin, query_scale=query_scale)
        step = max(1, GATHERED // keep)
        found = []
        for first in range(0, len(queries), step):
            some = [np.empty(0, np.int64) if rows is None else np.sort(rows) for rows in nearest[first : first + step]]
            vectors, end = self._rows.vectors(np.concatenate(some) if len(some) > 1 else some[0]), 0
            for i, rows in enumerate(some, first):
                end += len(rows)
                scores = embed.scores(queries[i], vectors[end - len(rows) : end], self.similarity)
                order = np.argsort(-scores, kind="stable")[:count]
                found.append(self._exactly(queries[i], count) if nearest[i] is None else (rows[order], scores[order]))
        return found

    def _margin(self, queries: np.ndarray) -> np.ndarray:
        """How far apart, in the scan, two rows can be that score alike, for each query: sums in float32 depend on their order.

        A sum of n products is wrong by at most n u |x| |y| / (1 - n u) in any order (Higham, Accuracy and Stability of Numerical
        Algorithms, section 3.1). It matters twice for each of two rows. The products of int8 and bits are exact.
        """
        if self.precision != "float32":
            return np.zeros(len(queries), np.float32)
        rounding = (self.dim + 4) * UNIT_ROUNDOFF
        if self.similarity == "cosine":  # of length 1, but for what normalized() rounds
            return np.full(len(queries), 4 * rounding / (1 - rounding) * (1 + rounding) * self._rows.longest, np.float32)
        length = np.linalg.norm(queries.astype(np.float64), axis=1)
        reach = length * self._rows.longest if self.similarity != "euclidean" else (length + self._rows.longest) ** 2
        margin: np.ndarray = (4 * rounding / (1 - rounding) * reach).astype(np.float32)
        return margin

    def _exactly(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of the best, where each row is scored as in rank()."""
        best = Best(1, count, np.zeros(1, np.float32))
        for part in self._rows.blocks(BLOCK):
            out = embed.scores(query, floats(part.arrays), self.similarity)[None]
            if part.gone is not None:
                out[:, part.gone] = -np.inf
            best.add(out, part.first)
        [rows] = best.rows()
        assert rows is not None  # within a margin of 0 are no more than are asked for
        return rows, embed.scores(query, self._rows.vectors(rows), self.similarity)

    def _ops(self, threads: int | None) -> Reference:
        """The backend that scans: the model's, if its arrays are on the host."""
        if self.model is not None:
            ops = self.model._runner.replicas[0].ops
            if not ops.asynchronous:
                return ops.using(threads)
        return host_backend(threads)

    # --- vectors ---

    def _embedded(self, texts: list[str], kind: int, options: Options, cuts: list[TruncationWarning]) -> np.ndarray:
        """The vectors of texts, with the model's prompt of PROMPTS[kind]."""
        if self.model is None:
            raise InputError(
                f"the index was opened without its model, {self._named.name}: open it with Index.open(path, model), or give vectors"
            )
        embedder = self.model._embedder()
        unit = True if self.similarity == "cosine" else None
        wanted = embedder.wanted(texts, unit, self._cut, None, PROMPTS[kind])
        vectors = embedder.embed(texts, wanted, options._replace(progress=False), cuts)
        return self._finite(vectors, "the embedding of texts", 0)[0]

    def _checked(self, vectors: np.ndarray, first: int) -> np.ndarray:
        """Vectors of the caller as they are stored: float32, finite and, for the cosine, of length 1."""
        found, squares = self._finite(vectors, "vectors", first)
        return embed.normalized(found, squares) if self.similarity == "cosine" else found

    @staticmethod
    def _finite(vectors: np.ndarray, name: str, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, dim) as float32, and the squares of their lengths (B, 1)."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.ascontiguousarray(vectors, np.float32)
            squares = embed.squares(found)
        finite = np.isfinite(squares)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise InputError(f"{name}[{first + row}] has NaN, infinity or a number that is too large, expected a vector of finite length")
        return found, squares

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index into a file that ends with .npz, or as index.npz into a folder, which is made if there is none.

        The file takes the place of an older one only when it is complete. numpy.load reads it, too; docs/search.md says what is in it.
        """
        from . import index_file

        kind = self._named, self.precision, self.similarity, self.dim, self._cut
        meta = index_file.Meta(*kind, len(self), self._next, self._rows.longest, self._texts is not None)
        index_file.write(path, meta, self._rows, self._ids, self._texts)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None) -> Index:
        """The Index that save() wrote. Vectors stay in the mapped file: processes share them, and only what a search reads is in memory.

        model  the model that made it; None: a model inside the package is loaded by the name in the file, and an index of another model
               takes vectors alone

        Raises CheckpointError for a file that is broken, and for one whose vectors are not of this model.
        """
        from . import index_file

        meta, arrays, where = index_file.read(path)
        model = index_file.model_of(meta, where) if model is None else model
        found = cls.__new__(cls)
        if model is not None:
            index_file.check_model(meta, model, _head(model), where)
        found.model, found._named, found.precision, found.similarity = model, meta.named, meta.precision, meta.similarity
        found.dim, found._cut, found._next = meta.dim, meta.cut, meta.following
        found._rows = Rows(meta.precision, meta.similarity, meta.dim)
        found._rows.hold({name: arrays[name] for name in found._rows.fields}, meta.longest)
        named = [name for name in ("ids", "texts") if f"{name}_ends" in arrays]
        texts = {name: Strings(arrays[f"{name}_text"], arrays[f"{name}_ends"], where) for name in named}
        found._ids = Ids(texts.get("ids", arrays.get("ids", ())))
        found._texts = Ids(texts["texts"]) if "texts" in texts else None
        return found


def _head(model: Any) -> Any:
    head = getattr(getattr(getattr(model, "config", None), "tasks", None), "embed", None)
    if head is None:
        name = getattr(model, "_name", None)
        raise TaskError(f"an index needs a model with an embed head, but {name or short(model)} has none")
    return head


def _as_vectors(values: Any, dim: int, name: str) -> np.ndarray | None:
    """`values` as (B, dim) float, if it is an array of floats; None for texts."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return None
    vectors = np.atleast_2d(values)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ShapeError(f"{name} is {values.shape}, expected (B, {dim}), the numbers of the vectors of the index")
    return vectors
