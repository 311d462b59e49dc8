"""Reader: texts become tokens. Those of requests that arrive together are tokenised by one call; many texts, by another thread."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from ..batch import PackedBatch
from ..cutting import sides_of
from ..tokenizer import Tokenizer, TruncationWarning

__all__ = ["Read", "Reader"]

FEW = 2000  # characters of a request: tokenising so many takes less time than handing them to a thread and back
TOGETHER = 16_000  # characters of requests that are tokenised together: the event loop waits for them, 3 ms

Read = tuple[PackedBatch, TruncationWarning | None]  # tokens, and what was cut


class Reader:
    """Tokenises the texts of one event loop's requests."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._held: list[tuple[list[Any], asyncio.Future[Read]]] = []
        self._characters = 0

    async def read(self, tokenizer: Tokenizer, texts: list[Any], *, alone: bool = False) -> Read:
        """The tokens of texts. alone: not together with other requests, because the tokenizer is not that of others."""
        loop = asyncio.get_running_loop()
        characters = sum(len(side) for text in texts for side in sides_of(text))
        if characters > FEW:
            return await loop.run_in_executor(self._pool, _read, tokenizer, texts)
        if alone:
            return _read(tokenizer, texts)
        if not self._held:
            loop.call_soon(self._read_all, tokenizer)
        future: asyncio.Future[Read] = loop.create_future()
        self._held.append((texts, future))
        self._characters += characters
        if self._characters > TOGETHER:
            self._read_all(tokenizer)
        return await future

    def _read_all(self, tokenizer: Tokenizer) -> None:
        """Tokenise what is held. If a text cannot be used, or is cut, do it request by request, to tell which one."""
        held = [(texts, future) for texts, future in self._held if not future.done()]
        self._held, self._characters = [], 0
        found: Sequence[Read] | None = None
        if len(held) > 1:
            try:
                whole, cut = _read(tokenizer, [text for texts, _ in held for text in texts])
            except Exception:
                pass  # it comes again, from the request that causes it
            else:
                found = None if cut else [(part, None) for part in _divided(whole, [len(texts) for texts, _ in held])]
        for i, (texts, future) in enumerate(held):
            try:
                future.set_result(_read(tokenizer, texts) if found is None else found[i])
            except Exception as error:
                future.set_exception(error)


def _read(tokenizer: Tokenizer, texts: list[Any]) -> Read:
    cuts: list[TruncationWarning] = []
    return PackedBatch.join(list(tokenizer.packed(texts, cuts))), TruncationWarning.total(cuts)


def _divided(whole: PackedBatch, counts: list[int]) -> list[PackedBatch]:
    """A batch in parts of so many texts each."""
    cu, types = whole.cu_seqlens, whole.token_types
    parts = []
    for start, end in itertools.pairwise(np.cumsum([0, *counts]).tolist()):
        rows = slice(cu[start], cu[end])
        parts.append(PackedBatch(whole.ids[rows], cu[start : end + 1] - cu[start], None if types is None else types[rows]))
    return parts
