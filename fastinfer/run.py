"""Runner: texts in windows, windows in batches, batches on the devices of a model in turn."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import batch
from .backends.reference import Reference
from .batch import PackedBatch
from .config import Config
from .errors import InputError, ShapeError, check_int
from .progress import Show, shown
from .tokenizer import Tokenizer, TruncationWarning, as_texts
from .weights import Weights
from .workspace import Workspace

__all__ = ["Options", "Replica", "Runner", "positive"]

# Texts, or tokens of them, that are packed and sorted by length together, at 4 bytes a token. They make 500 batches, so it does not
# matter that a window's last batch may be small.
WINDOW_TEXTS, WINDOW_TOKENS = 8192, 1 << 20

T = TypeVar("T")
Head = Callable[[Reference, Weights, Any, PackedBatch], Any]


class Replica(NamedTuple):
    """A backend, and the model's weights as it prepared them."""

    ops: Reference
    weights: Weights


class Turn:
    """A device for the time of one call: `with Turn(ops, weights) as (ops, weights, work)`."""

    def __init__(self, ops: Reference, weights: Weights) -> None:
        self._ops, self._weights = ops, weights

    def __enter__(self) -> tuple[Reference, Weights, Workspace]:
        self._work = self._ops.workspace()
        return self._ops, self._weights, self._work

    def __exit__(self, *_: object) -> None:
        self._work.close()


class Options(NamedTuple):
    """A caller's options for one call. Each is checked where it is used.

    batch_tokens  most tokens per packed batch (a longer text is a batch by itself); None: the device's default
    threads       most threads; None: as the model was loaded
    progress      show a progress bar on standard error, or a function that is called with (texts that are done, all texts)
    """

    batch_tokens: int | None = None
    threads: int | None = None
    progress: Show = False


class Runner:
    """Runs a model's encoder and a head over texts or ids. Devices take batches in turn."""

    def __init__(self, config: Config, replicas: list[Replica], tokenizer: Tokenizer | None, name: str, lacks: str = "") -> None:
        self.config, self.replicas, self.name = config, replicas, name
        self._tokenizer, self._lacks = tokenizer, lacks

    # --- batches ---

    def turn(self, threads: int | None, replica: int = 0) -> Turn:
        """(backend, weights, workspace) of a device, for one call."""
        ops, weights = self.replicas[replica]
        return Turn(ops.using(threads), weights)

    def parts(self, windows: Iterable[PackedBatch], options: Options) -> Iterator[tuple[np.ndarray, PackedBatch]]:
        """Yield (indices of texts, their batch) of at most batch_tokens tokens. Texts of similar length in a window go together."""
        limit = positive("batch_tokens", options.batch_tokens) or self.replicas[0].ops.batch_tokens
        done = 0
        for packed in windows:
            for which in batch.cut(packed.lengths, limit):
                yield done + which, packed.select(which) if len(packed) > 1 else packed
            done += len(packed)

    def run(
        self, windows: Iterable[PackedBatch], total: int, head: Head, options: Options
    ) -> Iterator[tuple[np.ndarray, PackedBatch, np.ndarray]]:
        """Yield (indices of texts, their batch, the result of `head(ops, weights, states (T, D), batch)`) per batch.

        windows  the texts, `total` of them; only those of one window are sorted by length together

        Each device gets its next batch before the result of its last batch is awaited.
        """
        with contextlib.ExitStack() as stack, shown(options.progress, total) as bar:
            turns = itertools.cycle([stack.enter_context(self.turn(options.threads, i)) for i in range(len(self.replicas))])
            waiting: deque[tuple[np.ndarray, PackedBatch, Callable[[], np.ndarray]]] = deque()

            def finish() -> tuple[np.ndarray, PackedBatch, np.ndarray]:
                which, part, result = waiting.popleft()
                bar.advance(len(which))
                return which, part, result()

            for which, part in self.parts(windows, options):
                ops, weights, work = next(turns)
                with work:
                    waiting.append((which, part, ops.bring(head(ops, weights, ops.encode(weights, part, work), part))))
                if len(waiting) > len(self.replicas):
                    yield finish()
            while waiting:
                yield finish()

    def per_text(self, windows: Iterable[PackedBatch], total: int, head: Head, options: Options) -> list[np.ndarray]:
        """A head's results for each token: a list of arrays (tokens, ...), one per text."""
        result: list[Any] = [None] * total
        for which, part, found in self.run(windows, total, head, options):
            for b, rows in zip(which, part.split(found), strict=True):
                result[b] = rows
        return result

    def per_mask(
        self, windows: Iterable[PackedBatch], total: int, head: Head, mask: int | None, options: Options
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of a text, a head's results for its mask tokens), batch by batch; other tokens are not decoded.

        mask  id of the mask token; None: every token is decoded
        """

        def wanted(part: PackedBatch) -> np.ndarray:
            return np.ones(len(part.ids), bool) if mask is None else np.equal(part.ids, mask)

        def decoded(ops: Reference, weights: Weights, x: Any, part: PackedBatch) -> Any:
            return head(ops, weights, ops.rows(x, np.flatnonzero(wanted(part))), part)

        for which, part, found in self.run(windows, total, decoded, options._replace(progress=False)):
            ends = np.cumsum([w.sum() for w in part.split(wanted(part))])
            yield from zip(which.tolist(), np.split(found, ends[:-1]), strict=True)

    # --- windows of texts ---

    def windows(self, texts: Any, cuts: list[TruncationWarning]) -> tuple[int, Iterable[PackedBatch]]:
        """(number of texts, their packed and checked windows). An asynchronous device computes one window while the next is made.

        cuts  a list that truncation warnings are appended to
        """
        if isinstance(texts, PackedBatch):
            self.check(texts)
            return len(texts), [texts]
        texts = as_texts(texts)
        windows = self.joined(self.tokenizer("text").packed(texts, cuts))
        return len(texts), _ahead(windows) if self.replicas[0].ops.asynchronous and len(texts) > WINDOW_TEXTS else windows

    def joined(self, parts: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        """Yield checked windows of the texts of several batches, in their order."""
        held: list[PackedBatch] = []
        for part in parts:
            held.append(part)
            if sum(map(len, held)) >= WINDOW_TEXTS or sum(len(part.ids) for part in held) >= WINDOW_TOKENS:
                yield self.check(PackedBatch.join(held))
                held.clear()
        if held:
            yield self.check(PackedBatch.join(held))

    def by_portions(
        self, texts: list[T], answer: Callable[[list[T], int], list[Any]], options: Options, *, parts_of: Sequence[int] | None = None
    ) -> list[Any]:
        """The answers to all texts, computed a portion at a time, for tasks that need the encodings.

        answer    takes (texts of a portion, index of the first) and returns their answers
        parts_of  the texts are parts of the caller's texts with these numbers, none of which `answer` cuts; None: they are these themselves
        """
        answers: list[Any] = []
        numbers = range(len(texts)) if parts_of is None else parts_of
        total, done = numbers[-1] + 1 if numbers else 0, 0
        with shown(options.progress, total) as bar:
            for portion in self.tokenizer("text").portions(texts, whole=parts_of is not None):
                answers += answer(portion, len(answers))
                before, done = done, numbers[len(answers)] if len(answers) < len(texts) else total
                bar.advance(done - before)
        return answers

    def packed(self, encodings: list[Any]) -> PackedBatch:
        """Encodings as a checked batch."""
        return self.check(self.tokenizer("text").batch(encodings))

    def tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer. Raises InputError if the model has none; `what` names the user of it."""
        if self._tokenizer is None:
            raise InputError(
                f"{what} needs a tokenizer, but {self.name} has no tokenizer that fastinfer can use: "
                f"{self._lacks or 'pass ids'} (fastinfer.PackedBatch.from_ids)"
            )
        return self._tokenizer

    def check(self, packed: PackedBatch) -> PackedBatch:
        """The batch itself. Raises InputError or ShapeError for ids, token types or lengths that do not fit this model."""
        c = self.config
        cu = packed.cu_seqlens
        packed.check_lengths()
        for name, values, size in (("ids", packed.ids, c.vocabulary), ("token_types", packed.token_types, max(c.token_types, 1))):
            if values is None or not len(values):
                continue
            if values.shape != packed.ids.shape or values.dtype.kind not in "iu":
                raise ShapeError(f"{name} is {values.dtype} {values.shape}, expected integers of shape {packed.ids.shape}")
            if values.view(np.uint32).max() >= size if values.dtype == np.int32 else values.min() < 0 or values.max() >= size:
                t = int(np.argmax((values < 0) | (values >= size)))
                b = int(np.searchsorted(cu, t, side="right")) - 1
                raise InputError(f"{name} of text {b}, token {t - cu[b]} is {values[t]}, expected 0 to {size - 1}")
        longest = int(packed.lengths.max(initial=0))
        if longest > c.positions.max:
            raise InputError(
                f"text {int(packed.lengths.argmax())} has {longest} tokens, expected at most {c.positions.max}, the model's positions"
            )
        return packed


def _ahead(windows: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
    """The same windows, each made by another thread while the one before is computed."""
    from concurrent.futures import ThreadPoolExecutor  # imports logging, which few processes need

    pool = ThreadPoolExecutor(1)
    try:
        following = pool.submit(next, windows, None)
        while (packed := following.result()) is not None:
            following = pool.submit(next, windows, None)
            yield packed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def positive(name: str, value: int | None) -> int | None:
    """`value` as an int of at least 1, or None if it is None. Raises InputError."""
    return None if value is None else check_int(name, value, 1)
