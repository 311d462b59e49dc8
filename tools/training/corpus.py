"""Text for training: paragraphs of files, cut into sentences and clauses, as packed ids."""

from __future__ import annotations

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tqdm import tqdm

from fastinfer.errors import InputError
from fastinfer.evaluation.articles import articles, held_out
from fastinfer.files import replacing

SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))\s+(?=["'“‘(]*[A-Z0-9])""")
CLAUSE_END = re.compile(r"(?<=[,;:—])\s+")
SHORTEST = 3  # tokens: pieces with fewer are left out
AT_A_TIME = 20_000  # paragraphs given to the tokenizer at once


def for_validation(paragraph: str) -> bool:
    """Whether this paragraph serves validation and not training: one in 200, chosen by a checksum of its text."""
    return zlib.crc32(paragraph.encode()) % 200 == 0


def paragraphs(paths: Iterable[str | os.PathLike], *, validation: bool = False) -> Iterator[str]:
    """The paragraphs to train on, or to validate with. Those of held-out articles serve neither."""
    for title, found in articles(paths):
        if title is None or not held_out(title):
            yield from (p for p in found if for_validation(p) == validation)


# --- cutting ---------------------------------------------------------------------------------------


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph. One ends at a full stop, an exclamation or a question mark before a space and a capital or a digit."""
    return SENTENCE_END.split(paragraph)


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence, which end at its commas, semicolons, colons and dashes."""
    return CLAUSE_END.split(sentence)


# --- ids -------------------------------------------------------------------------------------------


def read_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, set to neither pad nor cut. Raises InputError for a file that is not one."""
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(Path(path).read_bytes())
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is no tokenizer that the tokenizers library can read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class Corpus:
    """Paragraphs as ids, end to end and without special tokens, and the places where their parts begin.

    ids         (T,) uint16, or int32 for large vocabularies
    clauses     (clauses + 1,) int64: clause i is ids[clauses[i] : clauses[i + 1]]
    sentences   (sentences + 1,) int64: sentence i is clauses sentences[i] to sentences[i + 1] - 1
    paragraphs  (paragraphs + 1,) int64, likewise of sentences
    """

    ids: np.ndarray
    clauses: np.ndarray
    sentences: np.ndarray
    paragraphs: np.ndarray

    def pieces(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """(begin, end) in ids of the texts that an embedder learns from: sentences, clauses, pairs of neighbouring sentences, passages.

        A sentence with several clauses gives every second one of them. A paragraph gives the pairs that do not overlap, and passages of
        three or more sentences, each with as many as fit into `longest` tokens. A piece has at least SHORTEST tokens, and at most
        `longest`: the rest of a longer one is cut off.
        """
        starts = self.clauses[self.sentences]  # of sentences, in ids
        alone = np.zeros(len(self.clauses) - 1, bool)
        alone[self.sentences[:-1][np.diff(self.sentences) == 1]] = True
        some = np.flatnonzero(~alone)[::2]
        begins, ends = [starts[:-1], self.clauses[some]], [starts[1:], self.clauses[some + 1]]
        pairs, passages = [], []
        for first, last in itertools.pairwise(self.paragraphs.tolist()):
            pairs += range(first, last - 1, 2)
            while last - first > 2:
                stop = min(last, int(np.searchsorted(starts, starts[first] + longest, "right")) - 1)
                if stop - first > 2:
                    passages.append((first, stop))
                first = max(stop, first + 1)
        pairs, passages = np.array(pairs, np.int64), np.array(passages, np.int64).reshape(-1, 2)
        begin = np.concatenate([*begins, starts[pairs], starts[passages[:, 0]]])
        end = np.concatenate([*ends, starts[pairs + 2], starts[passages[:, 1]]])
        keep = end - begin >= SHORTEST
        return begin[keep], np.minimum(end, begin + longest)[keep]

    def rows(self, length: int, frame: tuple[int, int]) -> np.ndarray:
        """All ids as full rows (n, length): [CLS], length - 2 ids in the order of the text, [SEP]. Ids that fill no row are dropped.

        frame  the ids of [CLS] and [SEP]

        Raises InputError for a corpus that fills no row.
        """
        count = len(self.ids) // (length - 2)
        if not count:
            least = f"expected at least {length - 2}, enough for one row of {length}"
            raise InputError(f"the text has {len(self.ids)} tokens, {least}: add text")
        made = np.empty((count, length), self.ids.dtype)
        made[:, 0], made[:, -1] = frame
        made[:, 1:-1] = self.ids[: count * (length - 2)].reshape(count, -1)
        return made


def tokenize(paragraphs: Iterable[str], tokenizer: tokenizers.Tokenizer, *, progress: bool = False) -> Corpus:
    """A Corpus of the paragraphs, which may be a stream. The tokenizer uses all processors."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    ids, clause_tokens, sentence_clauses, paragraph_sentences = [np.empty(0, dtype)], [], [], []
    stream, bar = iter(paragraphs), tqdm(desc="tokenising", unit=" tokens", unit_scale=True, disable=not progress)
    while some := list(itertools.islice(stream, AT_A_TIME)):
        parts: list[str] = []
        for paragraph in some:
            found = [clauses(sentence) for sentence in sentences(paragraph)]
            paragraph_sentences.append(len(found))
            sentence_clauses += map(len, found)
            parts += itertools.chain.from_iterable(found)
        encoded = [e.ids for e in tokenizer.encode_batch_fast(parts, add_special_tokens=False)]
        clause_tokens += map(len, encoded)
        ids.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype, sum(map(len, encoded))))
        bar.update(len(ids[-1]))
    bar.close()
    return Corpus(np.concatenate(ids), *map(_starts, (clause_tokens, sentence_clauses, paragraph_sentences)))


def read(
    paths: Sequence[str | os.PathLike], tokenizer: tokenizers.Tokenizer, cache: Path | None = None, *, progress: bool = False
) -> tuple[Corpus, Corpus]:
    """The files' paragraphs as (to train on, to validate with).

    cache  a .npz file that keeps them for the next call with the same file names, sizes and tokenizer; without `paths`, its content is
           taken whatever it was made of

    Raises InputError as articles.lines does, and where no text is left to train on.
    """
    files = [[Path(p).name, Path(p).stat().st_size] for p in paths]
    key = json.dumps([files, zlib.crc32(tokenizer.to_str().encode())])
    if cache is not None and cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key or not paths:
                parts = ([stored[f"{name}{i}"] for name in ("ids", "clauses", "sentences", "paragraphs")] for i in range(2))
                return tuple(Corpus(ids, *map(_starts, sizes)) for ids, *sizes in parts)
    if not paths:
        raise InputError("there is no text to train on: name files, or a cache that holds some")
    corpora = tuple(tokenize(paragraphs(paths, validation=v), tokenizer, progress=progress) for v in (False, True))
    for corpus, what in zip(corpora, ("none is left to train on", "none of them, where one in 200 is taken, validates"), strict=True):
        if not len(corpus.ids):
            count = sum(len(c.paragraphs) - 1 for c in corpora)
            raise InputError(
                f"{', '.join(map(str, paths))}: {count} paragraphs are not held out, and {what}: add text, to 1,000 paragraphs or more"
            )
    if cache is not None:
        arrays = {}
        for i, corpus in enumerate(corpora):
            arrays[f"ids{i}"] = corpus.ids
            for name in ("clauses", "sentences", "paragraphs"):
                arrays[f"{name}{i}"] = np.diff(getattr(corpus, name)).astype(np.uint32)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as file:
            np.savez(file, key=key, **arrays)
    return corpora


def _starts(sizes: Sequence[int]) -> np.ndarray:
    """The places (n + 1,) int64 where n parts of these sizes begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
