"""Batcher: requests that come one by one, such as those of a server, computed together in packed batches.

async with fastinfer.aio.Batcher(model) as batcher:
    vectors = await batcher.embed("a text")
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from . import heads
from .api import Model
from .batch import PackedBatch
from .config import Classify, Tasks
from .embedder import prompted
from .errors import BackendError, BusyError, InputError, check_int, short
from .run import positive
from .tokenizer import Tokenizer, TruncationWarning, as_text, as_texts, present, present_singles, warn_of
from .values import Missing, Vectors

__all__ = ["Batcher", "Observer"]

MOST_WAITING = 8192  # texts: about a minute of work for the model inside on two CPUs
ALONE = ("answer", "classify", "embed", "embed_sparse", "embed_tokens", "fill_mask", "hidden_states", "logits", "rank", "routes", "tag")


class Row(NamedTuple):
    """A text as a model reads it: ids and token types (tokens,) int32; None: all types are 0."""

    ids: np.ndarray
    types: np.ndarray | None


class Observer:
    """What a Batcher tells about its work. A subclass replaces the methods that it wants."""

    def batch(self, texts: int, tokens: int) -> None:
        """A batch begins. The worker thread calls this."""

    def request(self, waited: float, computed: float) -> None:
        """A request was answered: seconds before its first batch began, and of its batches. Called in the task of the caller."""


class Request:
    """The texts of one caller, and what becomes of them. The worker thread alone calls its methods.

    count   texts that it counts for
    call    a PackedBatch -> an answer for each text; or nothing -> the result, if `texts` is None
    texts   a list of texts, or a PackedBatch; None: `call` has them
    key     texts of requests with equal keys may be computed by one call
    finish  the answers to parts of the texts, in their order -> the result
    """

    def __init__(
        self,
        count: int,
        call: Callable[..., Any],
        texts: list[Any] | PackedBatch | None = None,
        key: Hashable = None,
        finish: Callable[[list[Any]], Any] = list,
    ) -> None:
        self.count, self.call, self.texts, self.key, self.finish = count, call, texts, key, finish
        self.future: Future[Any] = Future()
        self.cuts: list[TruncationWarning] = []
        self.waited: float | None = None
        self.computed = 0.0
        self._added = time.perf_counter()
        self._answers: list[Any] = []
        self._left = count
        self._rows: collections.deque[Row] = collections.deque()
        self._parts: Iterator[PackedBatch] | None = None

    def first(self, tokenizer: Tokenizer) -> Row | None:
        """The first text that take() has not given yet; None if it gave all. Raises InputError for texts that have no tokens."""
        if self._parts is None:
            self._parts = iter([self.texts]) if isinstance(self.texts, PackedBatch) else tokenizer.packed(self.texts or [], self.cuts)
        while not self._rows:
            part = next(self._parts, None)
            if part is None:
                return None
            types = itertools.repeat(None) if part.token_types is None else part.split(part.token_types)
            self._rows.extend(map(Row, part.split(part.ids), types))
        return self._rows[0]

    def take(self) -> Row:
        """The text that first() named."""
        return self._rows.popleft()

    def begin(self) -> float:
        """The time, at which this request stops waiting unless it did before."""
        now = time.perf_counter()
        self.waited = now - self._added if self.waited is None else self.waited
        return now

    def add(self, answers: Any) -> None:
        """Take the answers to the next texts; with the last ones, the future gets the result."""
        self._answers.append(answers)
        self._left -= len(answers)
        if not self._left:
            self.settle(functools.partial(self.finish, self._answers))

    def settle(self, result: Callable[[], Any]) -> None:
        """Give the future what `result` returns or raises."""
        began = self.begin()
        try:
            value = result()
        except BaseException as error:
            self.fail(error)
        else:
            self.computed += time.perf_counter() - began
            with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
                self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Give the future an error, unless it is done or was cancelled."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Batcher:
    """Computes the requests of many callers in one worker thread, as many texts at once as fit into a packed batch.

    model         a fastinfer.Model; its kernels run without the GIL, so the event loop goes on meanwhile
    batch_tokens  most tokens of a packed batch; None: the device's default. A smaller batch answers short requests sooner
    most_waiting  most texts that may wait or be computed; a request beyond them raises BusyError at once
    observer      an Observer, which is told of each batch and each request, for metrics

    A batch begins as soon as the one before ends, with the texts that wait then: no request waits for others to come. Each request
    with texts in it has one text in turn, so a long request does not keep short ones waiting. On a CPU an answer has the same bits as
    that of the model's own method, because it does not depend on the texts beside it; `na` says the same of missing texts. A request that
    is cancelled frees its place; its texts that are not yet in a batch are not computed. An error reaches the caller whose texts caused it,
    and no other.

    A Batcher may be used from several event loops. `async with` closes it at the end of the block.
    """

    def __init__(
        self, model: Model, *, batch_tokens: int | None = None, most_waiting: int = MOST_WAITING, observer: Observer | None = None
    ) -> None:
        if not isinstance(model, Model):
            raise InputError(f"model is {short(model)}, expected a fastinfer.Model, such as fastinfer.load() gives")
        replicas = model._runner.replicas
        self.model = model
        self.batch_tokens = positive("batch_tokens", batch_tokens) or replicas[0].ops.batch_tokens
        self.most_waiting = check_int("most_waiting", most_waiting, 1)
        if observer is not None and not isinstance(observer, Observer):
            raise InputError(f"observer is {short(observer)}, expected a fastinfer.aio.Observer")
        self._observer = observer or Observer()
        self._room = self.batch_tokens * len(replicas)  # a batch for each device
        self._lock = threading.Lock()
        self._open: set[Request] = set()  # whose futures are not done
        self._arrived: list[Request] = []  # which the worker has not seen
        self._requests: list[Request] = []  # of the worker thread, oldest first
        self._waiting = 0
        self._working = self._closed = False
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastinfer-batcher")

    @property
    def waiting(self) -> int:
        """Texts that wait or are being computed."""
        return self._waiting

    # --- requests ---

    async def embed(
        self,
        texts: Any,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        na: Missing = "raise",
    ) -> Vectors:
        """One vector per text, (B, dim) float32, as Model.embed gives them."""
        embedder = self.model._embedder()
        texts, missing = _given(texts, na)
        wanted = embedder.wanted(texts, normalize, dim, prompt, prompt_name)
        options = {"normalize": wanted.normalize, "dim": wanted.dim}
        vectors: Vectors
        if wanted.prompt and not embedder.pools_prompts:
            vectors = await self.call("embed", texts, prompt=wanted.prompt, **options)
        else:
            vectors = await self._together("embed", prompted(wanted.prompt, texts), options, np.concatenate)
        if missing:
            vectors[missing] = np.nan
        return vectors

    async def classify(
        self, texts: Any, *, labels: Sequence[str] | None = None, top_k: int | None = None, na: Missing = "raise", **options: Any
    ) -> list[Any]:
        """Per text a list of (label, score), or a float, as Model.classify gives them. Requests with `labels` are computed one by one."""
        texts, missing = _given(texts, na)
        answers: list[Any]
        if labels is not None or options:
            answers = await self.call("classify", texts, labels=labels, top_k=top_k, **options)
        else:
            answers = await self._together("classify", texts, {"top_k": top_k}, _chained)
        return heads.classify.without(answers, missing)

    async def logits(self, texts: Any) -> np.ndarray:
        """The logits (B, K) of the classify head, as Model.logits(task="classify") gives them."""
        texts = texts if isinstance(texts, PackedBatch) else as_texts(texts)
        logits: np.ndarray = await self._together("logits", texts, {"task": "classify"}, np.concatenate)
        return logits

    async def rank(
        self, query: str, documents: Any, *, top_k: int | None = None, dim: int | None = None, na: Missing = "raise"
    ) -> list[tuple[int, float]]:
        """(index of the document, score), best first, as Model.rank gives them.

        Embedders and cross-encoders take the texts of several requests together; other models compute one request after another.
        """
        if not isinstance(as_text(query, "query"), str):
            raise InputError("query is a pair, expected a str")
        top_k = positive("top_k", top_k)
        documents, missing = present_singles(documents, na, "documents")
        tasks = self.model.config.tasks
        embedder = self.model._embedder() if tasks.embed else None
        if embedder is not None and embedder.pools_prompts:
            texts, wanted = embedder.compared(query, documents, dim)
            options = {"normalize": wanted.normalize, "dim": wanted.dim}
            scores = await self._together("embed", texts, options, lambda parts: embedder.similarity(np.concatenate(parts)))
        elif dim is None and (cross_encoder := _cross_encoder(tasks)) is not None:
            pairs = [(query, document) for document in documents]
            scores = heads.classify.relevance(await self.logits(pairs), cross_encoder)
        else:
            ranked: list[tuple[int, float]] = await self.call("rank", query, documents, dim=dim)
            gone = set(missing)
            return [(index, score) for index, score in ranked if index not in gone][:top_k]
        return heads.common.ranked(scores, top_k, missing)

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """The result of another method of the model, such as call("tag", texts), computed by itself in its turn.

        It counts for as many texts as its longest list has. A TruncationWarning names no line of the caller.
        """
        if method not in ALONE:
            raise InputError(f"method is {short(method)}, expected one of {', '.join(map(repr, ALONE))}")
        count = max((len(value) for value in args if isinstance(value, (list, tuple, PackedBatch))), default=1)
        return await self._answered(Request(max(count, 1), functools.partial(getattr(self.model, method), *args, **options)))

    async def _together(
        self, method: str, texts: list[Any] | PackedBatch, options: dict[str, Any], finish: Callable[[list[Any]], Any]
    ) -> Any:
        """The result of a method whose answer to a text depends on that text alone."""
        call = functools.partial(getattr(self.model, method), **options, batch_tokens=self.batch_tokens)
        call([])  # raises the errors of the options
        if isinstance(texts, PackedBatch):
            self.model._runner.check(texts)
        if not len(texts) or (isinstance(texts, PackedBatch) and texts.keys is not None):
            return await self.call(method, texts, **options)
        return await self._answered(Request(len(texts), call, texts, (method, *options.values()), finish))

    async def _answered(self, request: Request) -> Any:
        self._add(request)
        result = await asyncio.wrap_future(request.future)
        self._observer.request(request.waited or 0.0, request.computed)
        warn_of(request.cuts)
        return result

    def _add(self, request: Request) -> None:
        """Let a request wait for its turn. Raises BusyError, or BackendError in a fork, which has no worker thread."""
        if os.getpid() != self._process:
            raise BackendError("this Batcher was made before a fork, which its worker thread did not follow: make one in each process")
        with self._lock:
            if self._closed:
                raise BusyError("this Batcher is closed, expected no further request: make another one")
            if self._waiting + request.count > self.most_waiting:
                raise BusyError(
                    f"got {request.count} texts while {self._waiting} wait, expected at most {self.most_waiting} together (most_waiting): "
                    "ask again later, or with fewer texts"
                )
            self._waiting += request.count
            self._open.add(request)
            self._arrived.append(request)
            if not self._working:
                self._working = True
                self._pool.submit(self._work)
        request.future.add_done_callback(lambda _: self._remove(request))

    def _remove(self, request: Request) -> None:
        with self._lock:
            self._open.discard(request)
            self._waiting -= request.count

    # --- the worker thread ---

    def _work(self) -> None:
        """Compute one batch after another until no request is left."""
        while self._any_left():
            oldest = self._requests[0]
            if oldest.texts is None:
                oldest.settle(oldest.call)
            elif taken := self._filled([request for request in self._requests if request.key == oldest.key]):
                self._compute(taken)

    def _any_left(self) -> bool:
        with self._lock:
            self._requests = [request for request in self._requests + self._arrived if not request.future.done()]
            self._arrived = []
            self._working = bool(self._requests)
            return self._working

    def _filled(self, requests: list[Request]) -> dict[Request, list[Row]]:
        """The texts of the next batch: one of each request in turn, until a text does not fit. The first text always does."""
        tokenizer = self.model._runner.tokenizer("text")
        taken: dict[Request, list[Row]] = {}
        room = self._room
        while requests:
            left = []
            for request in requests:
                try:
                    row = request.first(tokenizer)
                except BaseException as error:
                    taken.pop(request, None)
                    request.fail(error)
                    continue
                if row is None:
                    continue
                if taken and len(row.ids) > room:
                    return taken
                taken.setdefault(request, []).append(request.take())
                room -= len(row.ids)
                left.append(request)
            requests = left
        return taken

    def _compute(self, taken: dict[Request, list[Row]]) -> None:
        """Give each request the answers to its texts. If that fails, compute each by itself, so that an error finds its cause."""
        began = min([request.begin() for request in taken])
        try:
            packed = _pack([row for rows in taken.values() for row in rows])
            self._observer.batch(len(packed), len(packed.ids))
            answers = next(iter(taken)).call(packed)
        except BaseException as error:
            if len(taken) == 1:
                next(iter(taken)).fail(error)
            else:
                for request, rows in taken.items():
                    self._compute({request: rows})
            return
        seconds = time.perf_counter() - began
        start = 0
        for request, rows in taken.items():
            request.computed += seconds
            request.add(answers[start : start + len(rows)])
            start += len(rows)

    # --- the end ---

    async def close(self, *, cancel: bool = False) -> None:
        """Take no further requests, and return when the worker thread has ended.

        cancel  requests whose texts are not all computed raise BusyError; False: they are computed first

        A fork has no worker thread to wait for.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            left = list(self._open) if cancel else []
        for request in left:
            request.fail(BusyError("the Batcher was closed before this request was computed"))
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close(cancel=error is not None)


def _given(texts: Any, na: Missing) -> tuple[list[Any] | PackedBatch, list[int]]:
    """(texts with an empty one for each missing one, the missing ones whose answers are to be empty)."""
    texts, missing = present(texts, na)
    return texts if isinstance(texts, PackedBatch) else as_texts(texts), missing


def _pack(rows: list[Row]) -> PackedBatch:
    lengths = np.array([len(row.ids) for row in rows])
    types = None
    if any(row.types is not None for row in rows):
        types = np.concatenate([np.zeros_like(row.ids) if row.types is None else row.types for row in rows])
    return PackedBatch.from_flat(np.concatenate([row.ids for row in rows]), lengths, types)


def _cross_encoder(tasks: Tasks) -> Classify | None:
    """The head of a model that ranks by scores of pairs; None for others."""
    head = None if tasks.embed or tasks.embed_tokens or tasks.embed_sparse else tasks.classify
    return head if head is not None and len(head.labels) == 1 else None


def _chained(parts: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))
