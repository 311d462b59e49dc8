"""Embedder: texts to vectors with a model's embed head, its prompts and its similarity."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .batch import PackedBatch
from .config import Embed
from .embedding import PROMPTS
from .errors import InputError, check_flag, check_int, listed, near, short
from .heads import embed
from .run import Options, Runner
from .tokenizer import TruncationWarning, as_text, as_texts, each_text, warn_of
from .values import Missing, check_missing

__all__ = ["Embedder", "Wanted", "prompted"]

STREAM_TEXTS = 1024  # texts: stream() tokenises this many at a time, enough to sort by length, few to hold in memory


class Wanted(NamedTuple):
    """What a caller wants of the vectors, checked. normalize, dim: None for what the head says; prompt: the text of one, or empty."""

    normalize: bool | None
    dim: int | None
    prompt: str


class Embedder:
    """Makes vectors with the embed head of the model that a Runner runs."""

    def __init__(self, head: Embed, runner: Runner) -> None:
        self._head, self._runner = head, runner

    def wanted(self, texts: Any, normalize: Any, dim: Any, prompt: Any, name: Any) -> Wanted:
        """The options of a call of Model.embed for `texts`. Raises InputError for bad ones."""
        if isinstance(texts, PackedBatch):
            if prompt is not None or name is not None:
                raise InputError("got a prompt with a PackedBatch, expected texts: put the ids of the prompt before those of each text")
            prompt = ""
        return Wanted(
            None if normalize is None else check_flag("normalize", normalize),
            None
            if dim is None
            else check_int("dim", dim, 1, self._head.widths(self._runner.config.hidden)[-1], because=", the numbers of a vector"),
            self._prompt(prompt, name),
        )

    def embed(self, texts: Any, wanted: Wanted, options: Options, cuts: list[TruncationWarning]) -> np.ndarray:
        """One vector per text: (B, dim) float32. Truncation warnings are appended to `cuts`, not given."""
        skip = 0
        if wanted.prompt:
            texts = prompted(wanted.prompt, as_texts(texts))
            skip = self._skipped(wanted.prompt)
        total, windows = self._runner.windows(texts, cuts)
        out = np.empty((total, wanted.dim or self._head.numbers(self._runner.config.hidden)), np.float32)

        def forward(ops: Any, weights: Any, x: Any, part: PackedBatch) -> Any:
            return embed.forward(ops, x, part, self._head, weights, skip)

        for which, _, vectors in self._runner.run(windows, total, forward, options):
            out[which] = embed.finished(vectors, self._head, wanted.normalize, wanted.dim)
        return out

    def stream(self, texts: Any, wanted: Wanted, options: Options, na: Missing) -> Iterator[np.ndarray]:
        """Yield the vectors of embed() one by one, holding a bounded number of texts. One warning at the end covers all cut texts.

        na  what becomes of missing texts, as Model.embed() says
        """
        cuts: list[TruncationWarning] = []
        raises = check_missing(na) == "raise"
        if isinstance(texts, PackedBatch):
            yield from self.embed(texts, wanted, options, cuts)
            return
        missing: list[int] = []
        stream = each_text(texts, "texts", None if raises else missing)
        done = 0
        while window := list(itertools.islice(stream, STREAM_TEXTS)):
            vectors = self.embed(window, wanted, options, cuts)
            if na == "skip":
                vectors[[i - done for i in missing]] = np.nan
            missing.clear()
            yield from vectors
            done += len(window)
        warn_of(cuts)

    def scores(self, query: str, documents: list[str], dim: int | None, options: Options) -> np.ndarray:
        """How alike each document is to the query, as the head's similarity says; each with the prompt of its kind."""
        cuts: list[TruncationWarning] = []
        if self.pools_prompts:
            vectors = self.embed(*self.compared(query, documents, dim), options, cuts)
        else:  # texts with prompts of different lengths are pooled apart
            quiet = options._replace(progress=False)
            asked, given = self._sides(query, documents, dim)
            vectors = np.concatenate([self.embed([query], asked, quiet, cuts), self.embed(documents, given, options, cuts)])
        warn_of(cuts)
        return self.similarity(vectors)

    @property
    def pools_prompts(self) -> bool:
        """Whether the tokens of prompts are pooled like others, so that texts with different prompts can be embedded together."""
        return self._head.include_prompt

    def compared(self, query: str, documents: list[str], dim: int | None) -> tuple[list[str], Wanted]:
        """The query and the documents behind it, each with the prompt of its kind, and the options that similarity() needs."""
        asked, given = self._sides(query, documents, dim)
        return [*prompted(asked.prompt, [query]), *prompted(given.prompt, documents)], asked._replace(prompt="")

    def similarity(self, vectors: np.ndarray) -> np.ndarray:
        """How alike each vector is to the first one, which is the query's; the first one is left out."""
        return embed.scores(vectors[0], vectors[1:], self._head.similarity)

    def _sides(self, query: str, documents: list[str], dim: int | None) -> tuple[Wanted, Wanted]:
        """What is wanted of the vectors of a query and of documents."""
        unit = True if self._head.similarity == "cosine" else None
        asked, given = (self.wanted(texts, unit, dim, None, name) for texts, name in zip((query, documents), PROMPTS, strict=True))
        return asked, given

    def _prompt(self, prompt: Any, name: Any) -> str:
        """The text of the prompt that a caller gives or names, or of the default one; empty for none."""
        if prompt is not None:
            if name is not None:
                raise InputError("got prompt and prompt_name, expected one of them")
            if not isinstance(prompt, str):
                raise InputError(f"prompt is {short(prompt)}, expected a str")
            as_text(prompt, "prompt")
            return prompt
        name = self._head.default_prompt if name is None else name
        if name is None:
            return ""
        text = self._head.text_of(name) if isinstance(name, str) else None
        if text is None:
            known = dict.fromkeys((*PROMPTS, *(known.name for known in self._head.prompts)))
            said = listed(map(short, known)) + near(name, known)
            raise InputError(f"prompt_name is {short(name)}, expected the name of a prompt of this model: {said}")
        as_text(text, f"the prompt {short(name)}")
        return text

    def _skipped(self, prompt: str) -> int:
        """The tokens of a prompt at the beginning of each text, if the head does not pool them, else 0."""
        if self._head.include_prompt:
            return 0
        [tokens] = self._runner.tokenizer("prompt").encode([prompt], cuts=[])
        ends = tokens.sequence_ids[-1:] == [None]  # with a special token, which is not a part of the prompt
        return len(tokens.ids) - int(ends)


def prompted(prompt: str, texts: list[Any]) -> list[Any]:
    """The texts with a prompt before each, of a pair before its first text."""
    if not prompt:
        return texts
    return [prompt + text if isinstance(text, str) else (prompt + text[0], text[1]) for text in texts]
