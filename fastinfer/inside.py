"""Inside: the parts of a Model that do not depend on a task's answers: hidden states, logits and routes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np

from . import heads
from .config import FFF, Config
from .errors import InputError, TaskError, check_int, listed, near, printable, short
from .origin import Origin
from .run import Head, Options, Replica, Runner
from .tokenizer import Tokenizer, TruncationWarning, warn_of
from .values import Batch, Route, Vectors

__all__ = ["Inside"]


class Inside:
    """The base of api.Model, which says what its attributes are."""

    def __init__(
        self,
        config: Config,
        replicas: list[Replica],
        tokenizer: Tokenizer | None,
        name: str,
        nbytes: int,
        lacks: str = "",
        origin: Origin | None = None,
        mark: Callable[[], str] = str,
    ) -> None:
        self.config = config
        self.tasks = config.tasks.names
        self.tokenizer = tokenizer
        self.nbytes = nbytes
        self.device = ", ".join(ops.device for ops, _ in replicas)
        self._name, self._origin, self._mark = name, origin, mark
        self._runner = Runner(config, replicas, tokenizer, name, lacks)

    @functools.cached_property
    def fingerprint(self) -> str:
        return self._mark()

    def __repr__(self) -> str:
        c = self.config
        feedforwards = listed(dict.fromkeys(c.ffn), " | ")
        return printable(
            f"<fastinfer.Model {self._name}: {c.layers} layers, hidden {c.hidden}, feedforward {feedforwards}, "
            f"tasks {', '.join(self.tasks) or 'none'}, {self.nbytes / 1e6:.1f} MB, device {self.device}>"
        )

    # --- copies ---

    def __copy__(self) -> Any:
        """A model that shares the weights and the tokenizer, which no call changes."""
        made = object.__new__(type(self))
        made.__dict__ |= self.__dict__
        return made

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__copy__()

    def _kept(self) -> Any:
        """What a pickle holds. Raises CheckpointError where the files are not those that were loaded any more."""
        if self._origin is None:
            raise InputError(f"{self._name} was not made by fastinfer.load(), so a pickle cannot name the files to load it from")
        if self.config is not self._runner.config:
            raise InputError(f"{self._name} got another config after it was loaded, which a pickle, made to load it again, would lose")
        return self._origin.kept()

    # --- states, logits and routes ---

    @overload
    def hidden_states(
        self, texts_or_batch: Batch, *, layers: tuple[int] = ..., batch_tokens: int | None = ..., threads: int | None = ...
    ) -> list[Vectors]: ...

    @overload
    def hidden_states(
        self, texts_or_batch: Batch, *, layers: Sequence[int], batch_tokens: int | None = ..., threads: int | None = ...
    ) -> list[tuple[Vectors, ...] | Any]: ...

    def hidden_states(
        self, texts_or_batch: Batch, *, layers: Sequence[int] = (-1,), batch_tokens: int | None = None, threads: int | None = None
    ) -> list[Any]:
        """Per text its hidden states (tokens, D) float32, or a tuple of them where several layers are asked for.

        layers  0 = embedding, i = after layer i, -1 = after the final norm
        """
        count = self.config.layers
        if not isinstance(layers, (tuple, list)) or not layers:
            raise InputError(f"layers is {short(layers)}, expected a tuple of integers from 0 to {count}, or -1 for the final norm")
        given = [check_int(f"layers[{n}]", i, -1, count, because=", or -1 for the final norm") for n, i in enumerate(layers)]
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        result: list[Any] = [None] * total
        with self._runner.turn(threads) as (ops, weights, work):
            for which, part in self._runner.parts(windows, Options(batch_tokens)):
                taps: dict[int, Any] = {i: np.empty((len(part.ids), self.config.hidden), np.float32) for i in set(given) - {-1}}
                with work:
                    last = ops.bring(ops.encode(weights, part, work, taps=taps))()
                taps[-1] = last if last.flags.owndata else last.copy()  # a view is of a buffer that the next batch reuses
                # A layer that is asked for twice gives two arrays, so that writing into one does not change the other.
                states = [part.split(taps[i].copy() if i in given[:n] else taps[i]) for n, i in enumerate(given)]
                for row, b in enumerate(which):
                    result[b] = states[0][row] if len(states) == 1 else tuple(s[row] for s in states)
        warn_of(cuts)
        return result

    @overload
    def logits(
        self,
        texts_or_batch: Batch,
        *,
        task: Literal["classify"],
        positions: str = ...,
        batch_tokens: int | None = ...,
        threads: int | None = ...,
    ) -> Vectors: ...

    @overload
    def logits(
        self,
        texts_or_batch: Batch,
        *,
        task: Literal["tag", "answer", "fill_mask"],
        positions: str = ...,
        batch_tokens: int | None = ...,
        threads: int | None = ...,
    ) -> list[Vectors]: ...

    @overload
    def logits(
        self,
        texts_or_batch: Batch,
        *,
        task: str | None = ...,
        positions: str = ...,
        batch_tokens: int | None = ...,
        threads: int | None = ...,
    ) -> Vectors | list[Vectors] | Any: ...

    def logits(
        self,
        texts_or_batch: Batch,
        *,
        task: str | None = None,
        positions: str = "mask",
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> Any:
        """Raw logits: classify (B, K); tag per text (tokens, K); answer per text (tokens, 2); fill_mask per text (masks, V).

        task       name of the head; needed where the model has several
        positions  for fill_mask: "mask" (mask tokens only) or "all" (tokens, V)
        """
        if not isinstance(positions, str) or positions not in ("mask", "all"):
            raise InputError(f"positions is {short(positions)}, expected 'mask' or 'all'" + near(positions, ("mask", "all")))
        named = [t for t in self.tasks if heads.HEADS[t].LOGITS is not None]
        if task is None and len(named) != 1:
            raise TaskError(f"{self._name} has {self._tasks()}: " + ("name one with task=" if named else "no head that gives logits"))
        task = named[0] if task is None else task
        self._head(task)
        options = Options(batch_tokens, threads)
        if heads.HEADS[task].LOGITS == "text":
            return self._text_logits(texts_or_batch, task, options)
        if heads.HEADS[task].LOGITS is None:
            raise TaskError(f"task {task!r} gives no logits; this model has {self._tasks()}")
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        if heads.HEADS[task].LOGITS == "mask":
            mask = self._mask() if positions == "mask" else None
            found = self._runner.per_mask(windows, total, self._forward(task), mask, options)
            rows = [logits for _, logits in sorted(found, key=lambda text: text[0])]
        else:
            rows = self._runner.per_text(windows, total, self._forward(task), options)
        warn_of(cuts)
        return rows

    def routes(self, texts_or_batch: Batch, *, batch_tokens: int | None = None, threads: int | None = None) -> list[list[Route | None]]:
        """Per text, per layer: (nodes, z), the visited nodes (tokens, P, depth + 1) int32, -1 after a stop, and their float32 logits.

        None stands for a dense layer.
        """
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        result: list[Any] = [None] * total
        with self._runner.turn(threads) as (ops, weights, work):
            shapes = [
                (f.trees, layer.ffn.trees.depth + 1) if isinstance(f, FFF) and layer.ffn.trees is not None else None
                for f, layer in zip(self.config.ffn, weights.layers, strict=True)
            ]
            for which, part in self._runner.parts(windows, Options(batch_tokens)):
                tokens = len(part.ids)
                routes = [s and (np.empty((tokens, *s), np.int32), np.empty((tokens, *s), np.float32)) for s in shapes]
                with work:
                    ops.encode(weights, part, work, routes=routes)
                split = [r and [part.split(a) for a in r] for r in routes]
                for row, b in enumerate(which):
                    result[b] = [s and (s[0][row], s[1][row]) for s in split]
        warn_of(cuts)
        return result

    def release(self) -> None:
        """Give back the memory of finished calls (buffers and graphs on a GPU); weights stay. The next call allocates it again."""
        for ops, _ in self._runner.replicas:
            ops.release()

    # --- heads ---

    def _forward(self, task: str) -> Head:
        """The forward function of a head, in the form that Runner.run() takes."""
        head, forward = self._head(task), heads.HEADS[task].forward
        return lambda ops, weights, x, part: forward(ops, x, part, head, weights)

    def _text_logits(self, texts: Any, task: str, options: Options) -> np.ndarray:
        """The logits (B, K) of a head that gives one row per text."""
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts, cuts)
        out = np.empty((total, len(self._head(task).labels)), np.float32)
        for which, _, logits in self._runner.run(windows, total, self._forward(task), options):
            out[which] = logits
        warn_of(cuts)
        return out

    def _mask(self) -> int:
        if self.config.ids.mask is None:
            raise TaskError(f"{self._name} names no mask token (ids.mask in config.json): ask for logits with positions='all'")
        return self.config.ids.mask

    def _head(self, task: str) -> Any:
        if not isinstance(task, str) or task not in self.tasks:
            name = task if isinstance(task, str) else short(task)
            raise TaskError(f"{self._name} has no {name} head; it has {self._tasks()}{near(name, self.tasks)}")
        return getattr(self.config.tasks, task)

    def _tasks(self) -> str:
        return ", ".join(self.tasks) or "no heads (hidden_states works)"
