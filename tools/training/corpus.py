"""Text for training: files to paragraphs, to sentences and clauses, to packed ids.

A text file is .txt, .txt.gz, .txt.xz (a paragraph a line) or .jsonl (an object with "text" a line), UTF-8. A line `= Title =`
begins an article. Articles that held_out() names are kept out of training, so that evaluation can use them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tqdm import tqdm

from fastinfer.errors import InputError, short
from fastinfer.files import replacing

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
TITLE = re.compile(r"= (.*) =")
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))\s+(?=["'“‘(]*[A-Z0-9])""")
CLAUSE_END = re.compile(r"(?<=[,;:—])\s+")
SHORTEST = 3  # tokens that a piece has at least
AT_A_TIME = 20_000  # texts given to the tokenizer at once


def held_out(title: str) -> bool:
    """Whether the article of this title is kept out of training: one in five, by the title alone."""
    return zlib.crc32(title.encode()) % 5 == 0


def for_validation(paragraph: str) -> bool:
    """Whether this paragraph measures the loss instead of being trained on: one in 200, by its text alone."""
    return zlib.crc32(paragraph.encode()) % 200 == 0


# --- reading ---------------------------------------------------------------------------------------


def lines(path: str | os.PathLike) -> Iterator[str]:
    """The lines of a text file, stripped; of .jsonl, the lines of each "text". Empty ones are left out.

    Raises InputError naming file and line for what is no UTF-8, no such object, or a broken archive; OSError where the file
    cannot be opened.
    """
    path = Path(path)
    plain = path.with_suffix("") if path.suffix in OPENERS else path
    if plain.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path} is no text file that is known here, expected .txt or .jsonl, perhaps with .gz or .xz")
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if plain.suffix == ".jsonl" and line.strip():
                    row = json.loads(line)
                    text = row.get("text") if isinstance(row, dict) else None
                    if not isinstance(text, str):
                        raise InputError(f'{path}, line {number} is {short(row)}, expected an object with a "text"')
                    yield from filter(None, map(str.strip, text.splitlines()))
                elif line.strip():
                    yield line.strip()
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number} is no JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after line {number}: no UTF-8 text: {error}") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}, after line {number}: the archive is broken: {error}") from None


def articles(paths: Iterable[str | os.PathLike]) -> Iterator[tuple[str | None, list[str]]]:
    """(title, paragraphs) of each article; a paragraph outside of any article is one of its own, without a title.

    Raises InputError for a file without any text.
    """
    for path in paths:
        title, paragraphs, empty = None, [], True
        for line in lines(path):
            heading = TITLE.fullmatch(line)
            if heading and paragraphs:
                yield title, paragraphs
            if heading:
                title, paragraphs = heading[1], []
            elif title is None:
                yield None, [line]
                empty = False
            else:
                paragraphs.append(line)
                empty = False
        if paragraphs:
            yield title, paragraphs
        if empty:
            raise InputError(f"{path} holds no text")


def paragraphs(paths: Iterable[str | os.PathLike], *, validation: bool = False) -> Iterator[str]:
    """The paragraphs to train on, or to validate with: those of held-out articles are neither."""
    for title, found in articles(paths):
        if title is None or not held_out(title):
            yield from (p for p in found if for_validation(p) == validation)


# --- cutting ---------------------------------------------------------------------------------------


def sentences(paragraph: str) -> list[str]:
    """A paragraph at the ends of its sentences: a full stop, space, then a capital or a digit."""
    return SENTENCE_END.split(paragraph)


def clauses(sentence: str) -> list[str]:
    """A sentence after its commas, semicolons, colons and dashes."""
    return CLAUSE_END.split(sentence)


# --- ids -------------------------------------------------------------------------------------------


def read_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """A tokenizer.json that neither pads nor cuts. Raises InputError."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is no tokenizer that the tokenizers library can read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class Corpus:
    """Paragraphs as ids, end to end and without special tokens, and where their parts begin.

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
        """What an embedder should know: (begin, end) in ids of sentences, clauses, pairs of neighbouring sentences, and passages.

        Of a sentence with several clauses, every second one; of a paragraph, the pairs that do not overlap, and passages of three
        or more sentences, each as many as fit. None has less than SHORTEST tokens; what has more than `longest` is cut.
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
        """All ids as full rows (n, length): [CLS], length - 2 ids in the order of the text, [SEP]; what is left at the end is dropped.

        frame  the ids of [CLS] and [SEP]
        """
        count = len(self.ids) // (length - 2)
        made = np.empty((count, length), self.ids.dtype)
        made[:, 0], made[:, -1] = frame
        made[:, 1:-1] = self.ids[: count * (length - 2)].reshape(count, -1)
        return made


def tokenize(paragraphs: Iterable[str], tokenizer: tokenizers.Tokenizer, *, progress: bool = False) -> Corpus:
    """A Corpus of the paragraphs, which may be a stream; all processors at work."""
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

    cache  a .npz file to keep them in for the next call with the same file names, sizes and tokenizer; without `paths`, it is all

    Raises InputError as lines() does, and where too little text is left to train on.
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
    if not len(corpora[0].ids):
        raise InputError(f"{', '.join(map(str, paths))}: all paragraphs are held out, so none is left to train on: add text")
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
    """Where each of the parts of these sizes begins, and where the last one ends: int64."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
