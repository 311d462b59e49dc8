"""Batcher: requests that come one by one, such as those of a server, computed together in packed batches.

async with fastinfer.aio.Batcher(model) as batcher:
    vectors = await batcher.embed("a text")
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from . import heads
from .api import Model
from .batch import PackedBatch
from .config import Classify, Tasks
from .embedder import prompted
from .errors import BackendError, BusyError, InputError, check_int, short
from .request import Outcome, Request, Row, failed, packed
from .run import positive
from .tokenizer import as_text, as_texts, present, present_singles, warn_of
from .values import Missing, Vectors

__all__ = ["Batcher", "Observer"]

MOST_WAITING = 8192  # texts: about a minute of work for the model inside on two CPUs
ALONE = ("answer", "classify", "embed", "embed_sparse", "embed_tokens", "fill_mask", "hidden_states", "logits", "rank", "routes", "tag")


class Observer:
    """What a Batcher tells about its work. A subclass replaces the methods that it wants."""

    def batch(self, texts: int, tokens: int) -> None:
        """A batch begins. A worker thread calls this."""

    def request(self, waited: float, computed: float) -> None:
        """A request was answered: seconds before its first batch began, and of its batches. Called in the task of the caller."""


class Batcher:
    """Computes the requests of many callers in worker threads, as many texts at once as fit into a packed batch.

    model         a fastinfer.Model; its kernels run without the GIL, so the event loop goes on meanwhile
    batch_tokens  most tokens of a packed batch; None: the device's default. A smaller batch answers short requests sooner
    most_waiting  most texts that may wait or be computed; a request beyond them raises BusyError at once
    observer      an Observer, which is told of each batch and each request, for metrics

    A batch begins as soon as a worker thread is free, with the texts that wait then: no request waits for others to come. Each request
    with texts in it has one text in turn, so a long request does not keep short ones waiting. On a CPU two batches are computed at once,
    each with half of the model's threads, if there are texts for both: while the threads of one wait for a thread whose CPU the event
    loop has, the other one goes on. An answer has the same bits as that of the model's own method there, because it does not depend on
    the texts beside it; `na` says the same of missing texts. A request that is cancelled frees its place; its texts that are not yet in
    a batch are not computed. An error reaches the caller whose texts caused it, and no other.

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
        threads = replicas[0].ops.threads if len(replicas) == 1 else None  # None: the device has no threads to divide
        self._threads = (threads, threads // 2) if threads and threads > 1 else (None,)  # of a batch alone, and of each of two
        self._lock = threading.Lock()  # for the attributes below
        self._open: set[Request] = set()  # whose futures are not done
        self._queue: list[Request] = []  # with texts that are in no batch, oldest first
        self._waiting = self._workers = self._computing = 0
        self._closed = False
        self._taking = threading.Lock()  # of the worker thread that takes texts
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(len(self._threads), thread_name_prefix="fastinfer-batcher")

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
        self.model._head("classify")
        top_k = positive("top_k", top_k)
        if labels is not None or options:
            answers = await self.call("classify", texts, labels=labels, top_k=top_k, **options)
        else:
            answers = await self._together("classify", texts, {"top_k": top_k}, _chained)
        return heads.classify.without(answers, missing)

    async def logits(self, texts: Any) -> np.ndarray:
        """The logits (B, K) of the classify head, as Model.logits(task="classify") gives them."""
        self.model._head("classify")
        logits: np.ndarray = await self._together("logits", _listed(texts), {"task": "classify"}, np.concatenate)
        return logits

    async def hidden_states(self, texts: Any) -> list[np.ndarray]:
        """Per text the states of its tokens (tokens, D) after the last layer, as Model.hidden_states gives them."""
        states: list[np.ndarray] = await self._together("hidden_states", _listed(texts), {}, _chained)
        return states

    async def embed_sparse(self, texts: Any) -> Any:
        """A scipy.sparse.csr_array (B, V) of weights of the vocabulary, as Model.embed_sparse gives it."""
        self.model._sparse_embedder()
        return await self._together("embed_sparse", _listed(texts), {}, _stacked)

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
        bound = getattr(self.model, method)
        return await self._answered(Request(max(count, 1), lambda threads: bound(*args, **{"threads": threads} | options), finish=_only))

    async def _together(
        self, method: str, texts: list[Any] | PackedBatch, options: dict[str, Any], finish: Callable[[list[Any]], Any]
    ) -> Any:
        """The result of a method whose answer to a text depends on that text alone, and whose options were checked."""
        if isinstance(texts, PackedBatch):
            self.model._runner.check(texts)
        if not len(texts) or (isinstance(texts, PackedBatch) and texts.keys is not None):
            return await self.call(method, texts, **options)
        call = functools.partial(getattr(self.model, method), **options, batch_tokens=self.batch_tokens)
        return await self._answered(Request(len(texts), call, texts, (method, *options.values()), finish))

    async def _answered(self, request: Request) -> Any:
        self._add(request)
        result = await request.future
        self._observer.request(request.waited or 0.0, request.computed)
        warn_of(request.cuts)
        return result

    def _add(self, request: Request) -> None:
        """Let a request wait for its turn. Raises BusyError, or BackendError in a fork, which has no worker threads."""
        if os.getpid() != self._process:
            raise BackendError("this Batcher was made before a fork, which its worker threads did not follow: make one in each process")
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
            self._queue.append(request)
            self._start_worker()
        request.future.add_done_callback(lambda _: self._remove(request))

    def _remove(self, request: Request) -> None:
        request.ended = True
        with self._lock:
            if request in self._open:
                self._open.remove(request)
                self._waiting -= request.count

    def _start_worker(self) -> None:
        """Let another worker thread work, unless all do. The caller has the lock."""
        if self._workers < len(self._threads):
            self._workers += 1
            self._pool.submit(self._work)

    # --- the worker threads ---

    def _work(self) -> None:
        """Compute one batch after another until no text waits."""
        while (batch := self._next()) is not None:
            taken, threads = batch
            outcomes = self._computed(taken, threads) if taken else []
            with self._lock:
                self._computing -= 1
            self._deliver(outcomes)

    def _next(self) -> tuple[dict[Request, list[Row]], int | None] | None:
        """(the texts of the next batch, or a request without texts; its threads); None if no text waits, which ends this worker.

        If several requests wait while no batch is computed, half of their texts are left to the other worker.
        """
        with self._taking:
            with self._lock:
                self._queue = [request for request in self._queue if request.waits]
                if not self._queue:
                    self._workers -= 1
                    return None
                alike = [request for request in self._queue if request.key == self._queue[0].key]
                waiting = sum(request.count - request.taken for request in alike)
                most = (waiting + 1) // 2 if len(alike) > 1 and len(self._threads) > 1 and not self._computing else waiting
                self._computing += 1
            if alike[0].texts is None:
                alike[0].taken = alike[0].count
                taken: dict[Request, list[Row]] = {alike[0]: []}
            else:
                taken = self._filled(alike, most)
            now = time.perf_counter()
            for request in taken:
                request.begin(now)
            with self._lock:
                left = any(request.waits for request in self._queue)
                if left and not self._closed:
                    self._start_worker()
                return taken, self._threads[0 if self._computing == 1 and not left else -1]

    def _filled(self, requests: list[Request], most: int) -> dict[Request, list[Row]]:
        """At most so many texts: one of each request in turn, until a text does not fit. The first text always does."""
        taken: dict[Request, list[Row]] = {}
        room = self._room
        while requests := [request for request in requests if request.waits]:
            for request in requests:
                try:
                    row = request.first(self.model._runner)
                except BaseException as error:
                    taken.pop(request, None)
                    self._deliver([failed(request, error)])
                    continue
                if taken and (len(row.ids) > room or not most):
                    return taken
                taken.setdefault(request, []).append(request.take())
                room -= len(row.ids)
                most -= 1
        return taken

    def _computed(self, taken: dict[Request, list[Row]], threads: int | None) -> list[Outcome]:
        """What each request gets for its texts. If the batch fails, each is computed by itself, so that an error finds its cause."""
        began, first = time.perf_counter(), next(iter(taken))
        try:
            if first.texts is None:
                return [Outcome(first, 0, first.count, first.call(threads=threads), time.perf_counter() - began)]
            batch = packed([row for rows in taken.values() for row in rows])
            self._observer.batch(len(batch), len(batch.ids))
            answers = first.call(batch, threads=threads)
        except BaseException as error:
            if len(taken) == 1:
                return [failed(first, error)]
            return [outcome for request, rows in taken.items() for outcome in self._computed({request: rows}, threads)]
        seconds, start, found = time.perf_counter() - began, 0, []
        for request, rows in taken.items():
            end = start + len(rows)
            found.append(Outcome(request, rows[0].number, len(rows), answers[start:end], seconds))
            start = end
        return found

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Give requests their outcomes in their event loops, each of which is woken once."""
        for loop in {outcome.request.loop for outcome in outcomes}:
            those = [outcome for outcome in outcomes if outcome.request.loop is loop]
            try:
                loop.call_soon_threadsafe(_add_all, those)
            except RuntimeError:  # it was closed, so nobody waits
                for outcome in those:
                    self._remove(outcome.request)

    # --- the end ---

    async def close(self, *, cancel: bool = False) -> None:
        """Take no further requests, and return when the worker threads have ended.

        cancel  requests whose texts are not all computed raise BusyError; False: they are computed first

        A fork has no worker threads to wait for.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            left = list(self._open) if cancel else []
        self._deliver([failed(request, BusyError("the Batcher was closed before this request was computed")) for request in left])
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close(cancel=error is not None)


def _given(texts: Any, na: Missing) -> tuple[list[Any] | PackedBatch, list[int]]:
    """(texts with an empty one for each missing one, the missing ones whose answers are to be empty)."""
    texts, missing = present(texts, na)
    return _listed(texts), missing


def _listed(texts: Any) -> list[Any] | PackedBatch:
    return texts if isinstance(texts, PackedBatch) else as_texts(texts)


def _cross_encoder(tasks: Tasks) -> Classify | None:
    """The head of a model that ranks by scores of pairs; None for others."""
    head = None if tasks.embed or tasks.embed_tokens or tasks.embed_sparse else tasks.classify
    return head if head is not None and len(head.labels) == 1 else None


def _chained(parts: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _only(parts: list[Any]) -> Any:
    [part] = parts
    return part


def _add_all(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        outcome.request.add(outcome)


def _stacked(parts: list[Any]) -> Any:
    from scipy.sparse import vstack

    return vstack(parts, format="csr")
