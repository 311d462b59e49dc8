"""Served: a model by its name. Texts become tokens here, beside the batches that are computed, and go to its Batcher."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from .. import heads
from ..aio import Batcher
from ..api import Model
from ..batch import PackedBatch
from ..cutting import sides_of
from ..embedder import prompted
from ..errors import InputError, check_int, short
from ..tokenizer import Tokenizer, as_texts
from . import metrics
from .endpoint import CALL
from .errors import Refusal, over
from .reading import Reader
from .settings import Settings

__all__ = ["Served"]

RECENT = 50  # texts of the page that are kept

T = TypeVar("T")


class Batches(metrics.Batches):
    """Tells the metrics of batches, and the Call of each request how long it took."""

    def request(self, waited: float, computed: float) -> None:
        call = CALL.get()
        call.waited += waited
        call.computed += computed


class Served:
    """A model with its Batcher, and the limits of what a request may ask of it."""

    def __init__(self, name: str, model: Model, settings: Settings, pool: ThreadPoolExecutor) -> None:
        self.name, self.model, self.dtype = name, model, settings.dtype
        self._pool, self._reader = pool, Reader(pool)
        self._limits = limits = settings.limits
        model._name = model._runner.name = name  # errors name it so: a client is not told where its folder is
        self.batcher = Batcher(model, batch_tokens=settings.batch_tokens, most_waiting=limits.max_waiting, observer=Batches())
        self.recent: collections.deque[Any] = collections.deque(maxlen=RECENT)  # of the page
        self._frame = _frame(model.tokenizer) if model.tokenizer is not None else ([], [])

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises InputError if it has none."""
        return self.model._runner.tokenizer("text")

    # --- texts and ids ---

    def read(self, inputs: Any, name: str = "inputs") -> Any:
        """A list of texts, or a PackedBatch of ids, from what a request has in `name`. Raises a Refusal, or InputError."""
        call = CALL.get()
        call.method = "batch"
        if isinstance(inputs, str) or (inputs and set(map(type, inputs)) == {int}):
            call.method = "single"
            inputs = [inputs]
        self.counted(len(inputs), name)
        kinds = set(map(type, inputs))
        if kinds == {list}:
            return self._ids(inputs, name)
        if kinds != {str}:
            raise Refusal(422, "Validation", f"{name} mixes texts and ids, expected all texts, the ids of one text, or lists of ids")
        texts = as_texts(inputs, name)
        call.characters = sum(map(len, texts))
        return texts

    def counted(self, texts: int, name: str) -> None:
        """Count the texts of a request. Raises a Refusal for none and for too many."""
        if not texts:
            raise Refusal(400, "Empty", f"{name} is empty, expected at least one text")
        if texts > self._limits.max_texts:
            raise over(f"{name} has", f"{texts} texts", "max_texts", self._limits.max_texts)
        CALL.get().texts = texts

    def _ids(self, rows: list[list[int]], name: str) -> PackedBatch:
        """Ids as the model reads them. Those of another tokenizer, which lack this one's special tokens, would give wrong answers."""
        self._few_enough(sum(map(len, rows)), name)
        before, after = self._frame
        for i, row in enumerate(rows):
            if row[: len(before)] != before or (after and row[-len(after) :] != after):
                raise InputError(
                    f"{name}[{i}] is {short(row)}, expected ids of this model's tokenizer, special ones included: "
                    f"{_said(before, after)}. /tokenize gives them; a client that makes ids with another tokenizer must send texts"
                )
        return self._fits(self.model._runner.check(PackedBatch.from_ids(rows)), name)

    def _fits(self, packed: PackedBatch, name: str) -> PackedBatch:
        """Count the tokens of a request. Raises a Refusal for too many."""
        self._few_enough(len(packed.ids), name)
        CALL.get().tokens = len(packed.ids)
        for tokens in packed.lengths.tolist():
            metrics.LENGTH.observe(tokens)
        return packed

    async def packed(self, texts: Any, name: str = "inputs", truncate: bool | None = None, direction: str | None = None) -> PackedBatch:
        """Texts as tokens; what are tokens already is given back. Raises a Refusal for too many tokens."""
        if isinstance(texts, PackedBatch):
            return texts
        tokenizer, call, began = self.tokenizer, CALL.get(), time.perf_counter()
        if direction is not None:
            tokenizer = tokenizer.cutting(direction.lower() == "left")
        found, cut = await self._reader.read(tokenizer, texts, alone=direction is not None)
        call.tokenized += time.perf_counter() - began
        if cut is not None:
            if truncate is False:
                raise Refusal(
                    422,
                    "Validation",
                    f"{cut.cut} of {name} have more than {cut.limit} tokens, which is what {self.name} reads, the first is "
                    f"{name}[{cut.first}]: shorten them, or leave out truncate, so that they are cut",
                )
            call.cut = cut.cut
        return self._fits(found, name)

    def prompted(self, texts: Any, prompt_name: str | None) -> Any:
        """Texts with a prompt of the model before each; None: without one."""
        return texts if prompt_name is None else prompted(self.model._embedder().wanted(texts, None, None, None, prompt_name).prompt, texts)

    async def tokens(self, texts: list[str], special: bool) -> list[list[dict[str, Any]]]:
        """The tokens of each text, not cut. special: with those that the tokenizer adds."""
        raw = self.tokenizer.raw

        def make() -> list[list[dict[str, Any]]]:
            return [_tokens(raw.encode(text, add_special_tokens=special), text) for text in texts]

        return await self._ahead(make)

    def words(self, text: str) -> list[str]:
        """The text of each token that the model reads, of a special one its name."""
        [encoding] = self.tokenizer.encode([text], cuts=[])
        return [
            self.tokenizer.raw.id_to_token(id_) if side is None else text[start:end]
            for id_, (start, end), side in zip(encoding.ids, encoding.offsets, encoding.sequence_ids, strict=True)
        ]

    def decoded(self, rows: list[list[int]], skip_special: bool) -> list[str]:
        """The text of each list of ids. Raises InputError for ids that the model does not have."""
        size = self.model.config.vocabulary
        for i, row in enumerate(rows):
            if not isinstance(row, list):
                raise InputError(f"ids[{i}] is {short(row)}, expected lists of ids, or the ids of one text alone")
            bad = next((id_ for id_ in row if not 0 <= id_ < size), None)
            if bad is not None:
                raise InputError(f"ids[{i}] holds {bad}, expected 0 to {size - 1}")
        raw = self.tokenizer.raw
        return [raw.decode(row, skip_special_tokens=skip_special) for row in rows]

    async def _ahead(self, make: Callable[[], T]) -> T:
        """What `make` gives, made by another thread, so that the event loop goes on."""
        began = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(self._pool, make)
        CALL.get().tokenized += time.perf_counter() - began
        return found

    # --- answers ---

    async def embed(
        self,
        inputs: Any,
        name: str = "inputs",
        *,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        truncate: bool | None = None,
        direction: str | None = None,
    ) -> np.ndarray:
        """One vector per text, as Model.embed gives them."""
        embedder = self.model._embedder()
        if dim is not None:
            head, hidden = self.model._head("embed"), self.model.config.hidden
            check_int("dimensions", dim, 1, head.widths(hidden)[-1], because=", the numbers of a vector")
        texts = self.read(inputs, name)
        wanted = embedder.wanted(texts, normalize, dim, None, prompt_name)
        packed = await self.packed(prompted(wanted.prompt, texts) if wanted.prompt else texts, name, truncate, direction)
        with self.queued():
            if wanted.prompt and not embedder.pools_prompts:
                return await self.batcher.embed(texts, prompt=wanted.prompt, normalize=normalize, dim=dim)
            return await self.batcher.embed(packed, normalize=normalize, dim=dim)

    async def logits(self, texts: list[Any], name: str, truncate: bool | None, direction: str | None) -> np.ndarray:
        """The logits (B, K) of the classify head. Raises TaskError."""
        self.model._head("classify")
        packed = await self.packed(texts, name, truncate, direction)
        with self.queued():
            return await self.batcher.logits(packed)

    async def scores(self, query: str, texts: list[str], raw: bool, truncate: bool | None, direction: str | None) -> np.ndarray:
        """How well each text fits the query: of a cross-encoder a probability or, if `raw`, a logit; else as Model.rank has it."""
        tasks = self.model.config.tasks
        if self.ranks and not (tasks.embed or tasks.embed_tokens or tasks.embed_sparse):
            logits = (await self.logits([(query, text) for text in texts], "texts", truncate, direction))[:, 0]
            return logits if raw else heads.common.sigmoid(logits)
        embedder = self.model._embedder() if tasks.embed is not None else None
        if embedder is not None and embedder.pools_prompts:
            both, wanted = embedder.compared(query, texts, None)
            packed = await self.packed(both, "texts", truncate, direction)
            with self.queued():
                return embedder.similarity(await self.batcher.embed(packed, normalize=wanted.normalize, dim=wanted.dim))
        scores = np.empty(len(texts), np.float32)
        for i, score in await self.alone("rank", query, texts):
            scores[i] = score
        return scores

    async def alone(self, method: str, *args: Any, **options: Any) -> Any:
        """The result of a method of the model that is not packed with other requests."""
        with self.queued():
            return await self.batcher.call(method, *args, **options)

    async def whole(self, texts: list[Any]) -> None:
        """Count all tokens of texts that are read whole, in windows. Raises a Refusal for too many."""
        tokenizer, call = self.tokenizer, CALL.get()

        def count() -> int:
            return sum(len(tokens.ids) for part in tokenizer.portions(texts, whole=True) for tokens in tokenizer.wholes(part))

        call.characters = sum(len(side) for text in texts for side in sides_of(text))
        call.tokens = await self._ahead(count)
        self._few_enough(call.tokens, "inputs")

    def _few_enough(self, tokens: int, name: str) -> None:
        if tokens > self._limits.max_tokens:
            raise over(f"{name} has", f"{tokens} tokens", "max_tokens", self._limits.max_tokens)

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Count the texts of this request among those that wait or are computed, as long as the block runs."""
        texts = CALL.get().texts
        metrics.waiting(texts)
        try:
            yield
        finally:
            metrics.waiting(-texts)

    @property
    def ranks(self) -> bool:
        """Whether the model is a cross-encoder."""
        head = self.model.config.tasks.classify
        return head is not None and len(head.labels) == 1

    def needs(self, task: str) -> None:
        """Raise TaskError unless the model has the head of a task."""
        self.model._head(task)


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and behind each text."""
    [encoding] = tokenizer.encode(["a"], cuts=[])
    special = [side is None for side in encoding.sequence_ids]
    before = list(itertools.takewhile(bool, special))
    after = list(itertools.takewhile(bool, reversed(special)))
    return encoding.ids[: len(before)], encoding.ids[len(special) - len(after) :]


def _tokens(encoding: Any, text: str) -> list[dict[str, Any]]:
    """The tokens of an encoding, as /tokenize gives them."""
    rows = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.sequence_ids, strict=True)
    return [
        {
            "id": id_,
            "text": token if side is None else text[start:end],
            "special": side is None,
            "start": None if side is None else start,
            "stop": None if side is None else end,
        }
        for id_, token, (start, end), side in rows
    ]


def _said(before: list[int], after: list[int]) -> str:
    """How ids of a text begin and end, in words."""
    parts = [f"{verb} {', '.join(map(str, ids))}" for verb, ids in (("begin with", before), ("end with", after)) if ids]
    return "they " + " and ".join(parts)
