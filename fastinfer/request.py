"""Request: the texts of one caller of a Batcher, while they wait and while their answers come."""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .run import Runner
from .tokenizer import TruncationWarning

__all__ = ["Outcome", "Request", "Row", "failed", "packed"]


class Row(NamedTuple):
    """A text as a model reads it: its number in its request, ids and token types (tokens,) int32; None: all types are 0."""

    number: int
    ids: np.ndarray
    types: np.ndarray | None


class Outcome(NamedTuple):
    """What a worker thread found for a request: answers to `texts` texts from number `first` on, in so many seconds; or an error."""

    request: Request
    first: int = 0
    texts: int = 0
    answers: Any = None
    seconds: float = 0.0
    error: BaseException | None = None


class Request:
    """The texts of one caller, and what becomes of them. Worker threads, one at a time, take texts; the caller's event loop adds answers.

    count   texts that it counts for
    call    (a PackedBatch, threads=) -> an answer for each text; or (threads=) -> the result, if `texts` is None
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
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.ended = False  # nobody waits for it any more
        self.taken = 0  # texts that are in batches
        self.cuts: list[TruncationWarning] = []
        self.waited: float | None = None
        self.computed = 0.0
        self._added = time.perf_counter()
        self._answers: dict[int, Any] = {}  # the key is the number of the first text
        self._left = count
        self._rows: collections.deque[Row] = collections.deque()
        self._numbers = itertools.count()
        self._parts: Iterator[PackedBatch] | None = None

    @property
    def waits(self) -> bool:
        """Whether some of its texts are in no batch yet."""
        return not self.ended and self.taken < self.count

    def first(self, runner: Runner) -> Row:
        """The first text that take() has not given yet. Raises InputError for texts that have no tokens."""
        if self._parts is None:
            texts = self.texts or []
            self._parts = iter([texts]) if isinstance(texts, PackedBatch) else runner.tokenizer("text").packed(texts, self.cuts)
        while not self._rows:
            part = next(self._parts)
            types = itertools.repeat(None) if part.token_types is None else part.split(part.token_types)
            self._rows.extend(map(Row, self._numbers, part.split(part.ids), types))
        return self._rows[0]

    def take(self) -> Row:
        """The text that first() named."""
        self.taken += 1
        return self._rows.popleft()

    def begin(self, now: float) -> None:
        """Stop waiting, unless it did before."""
        self.waited = now - self._added if self.waited is None else self.waited

    def add(self, outcome: Outcome) -> None:
        """Take answers, or an error; with the last answers, the future gets the result."""
        self.computed += outcome.seconds
        if self.future.done():
            return
        if outcome.error is not None:
            self.future.set_exception(outcome.error)
            return
        self._answers[outcome.first] = outcome.answers
        self._left -= outcome.texts
        if not self._left:
            try:
                self.future.set_result(self.finish([self._answers[first] for first in sorted(self._answers)]))
            except Exception as error:
                self.future.set_exception(error)


def failed(request: Request, error: BaseException) -> Outcome:
    """The Outcome of a request that fails. Its other texts are not computed."""
    request.ended = True
    return Outcome(request, error=error)


def packed(rows: list[Row]) -> PackedBatch:
    """The batch of some texts."""
    lengths = np.array([len(row.ids) for row in rows])
    types = None
    if any(row.types is not None for row in rows):
        types = np.concatenate([np.zeros_like(row.ids) if row.types is None else row.types for row in rows])
    return PackedBatch.from_flat(np.concatenate([row.ids for row in rows]), lengths, types)
