"""TokenEmbedder: texts to a vector per token, and documents scored by late interaction, with a model's embed_tokens head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .batch import PackedBatch
from .heads import embed_tokens
from .heads.embed import normalized
from .retrieval import EmbedTokens
from .run import Options, Runner
from .tokenizer import TruncationWarning, as_singles, warn_of

__all__ = ["TokenEmbedder"]


class TokenEmbedder:
    """Makes vectors of tokens with the embed_tokens head of the model that a Runner runs."""

    def __init__(self, head: EmbedTokens, runner: Runner) -> None:
        self._head, self._runner = head, runner

    def embed(self, texts: Any, query: bool, options: Options) -> list[np.ndarray]:
        """Per text its vectors (tokens, M) float32."""
        cuts: list[TruncationWarning] = []
        texts = texts if isinstance(texts, PackedBatch) else as_singles(texts)
        found: list[Any] = [None] * len(texts)
        for b, vectors in self._each(texts, query, options, cuts):
            found[b] = vectors
        warn_of(cuts)
        return found

    def scores(self, query: str, documents: list[str], options: Options) -> np.ndarray:
        """The score of each document; larger is better. The vectors of one batch of documents exist at a time."""
        cuts: list[TruncationWarning] = []
        [(_, asked)] = self._each([query], True, options._replace(progress=False), cuts)
        scores = np.empty(len(documents), np.float32)
        for b, vectors in self._each(documents, False, options, cuts):
            scores[b] = embed_tokens.maxsim(asked, vectors, self._head)
        warn_of(cuts)
        return scores

    def _each(self, texts: Any, query: bool, options: Options, cuts: list[TruncationWarning]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of a text, its vectors), batch by batch. A PackedBatch is taken as it is, without marker and expansion."""

        def forward(ops: Any, weights: Any, x: Any, part: PackedBatch) -> Any:
            return embed_tokens.forward(ops, x, part, self._head, weights)

        windows = [self._runner.check(texts)] if isinstance(texts, PackedBatch) else self._windows(texts, query, cuts)
        for which, part, rows in self._runner.run(windows, len(texts), forward, options):
            vectors = normalized(rows) if self._head.normalize else rows
            keep = embed_tokens.kept(part.ids, self._head, query)
            for b, mine, kept in zip(which.tolist(), part.split(vectors), part.split(keep), strict=True):
                yield b, mine[kept]

    def _windows(self, texts: list[str], query: bool, cuts: list[TruncationWarning]) -> Iterator[PackedBatch]:
        side = self._head.query if query else self._head.document
        limit = (side.tokens or self._runner.config.max_tokens) - (side.marker is not None)
        batches = self._runner.tokenizer("embed_tokens").packed((side.prompt + text for text in texts), cuts, limit=limit)
        return self._runner.joined(embed_tokens.prepared(batch, self._head, query) for batch in batches)
