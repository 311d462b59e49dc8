"""Benchmarks of whole models on the CPU, and of real texts on any device.

Every engine gets the same weights and the same number of threads. Its answers are compared before it is timed. Hidden states are
compared with the NumPy reference along the engine's own routes; means of texts with those of each text alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError
from .engines import EmbedTexts, Encode, Engine
from .oracle import Oracle
from .report import Row, ratios
from .timing import INPUTS, interleaved, latencies

SIZES = ((1, 16), (1, 128), (8, 128), (32, 128), (8, 512))  # texts x tokens
TEXTS_TOLERANCE = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "int8": 0.3}  # relative, of a batch to each text alone
RIVAL_BATCH = 32  # texts in a padded batch of a rival
QUERY_TOKENS, QUERIES = 10, 32  # tokens of a short text, about; how many of them take turns
PAUSES = {
    "busy": (0.0, 400),
    "5ms": (0.005, 200),
    "1s": (1.0, 20),
}  # {column: (pause before a query in s, queries per `seconds`)}
PAUSE_SECONDS = 0.25  # seconds between turns: Intel's OpenMP, which CTranslate2 brings, spins for 0.2 s after a call

Loaded = Mapping[str, tuple[Engine, Encode]]  # the key is the engine's name


def bench_sizes(
    engines: Loaded, oracle: Oracle, vocabulary: int, *, sizes: Sequence[tuple[int, int]], threads: int, seconds: float
) -> Iterator[list[Row]]:
    """Per size (texts, tokens), a list with a row per engine.

    A rival whose answers are wrong is left out. Raises BackendError if fastinfer's are wrong.
    """
    for texts, tokens in sizes:
        rng = np.random.default_rng(texts * tokens)
        inputs = [rng.integers(0, vocabulary, (texts, tokens)) for _ in range(INPUTS)]
        errors: dict[str, tuple[float, float]] = {}
        for name, (engine, encode) in engines.items():
            try:
                errors[name] = oracle.errors(engine, encode, inputs[0])
            except BackendError as error:
                if engine.own:
                    raise
                print(f"left out: {error}", file=sys.stderr)
        spreads = interleaved({name: engines[name][1] for name in errors}, inputs, seconds=seconds, least=5, pause=PAUSE_SECONDS)
        us = {name: s.median / texts / tokens for name, s in spreads.items()}
        rows = []
        for name in errors:
            engine = engines[name][0]
            rows.append(
                {
                    "op": "model",
                    "engine": engine.name,
                    "model": engine.model,
                    "dtype": engine.dtype,
                    "texts": texts,
                    "tokens": tokens,
                    "threads": threads,
                    "us_per_token": us[name],
                    "p10": spreads[name].low / texts / tokens,
                    "p90": spreads[name].high / texts / tokens,
                    "texts_per_s": 1e6 / us[name] / tokens,
                    "max_error": errors[name][0],
                    "mean_error": errors[name][1],
                    **ratios(name, {n: engines[n][0] for n in errors}, us),
                }
            )
        yield rows


# --- real texts ------------------------------------------------------------------------------------


def embed_padded(encode: Encode, tokenizer: Any, *, ordered: bool) -> EmbedTexts:
    """run(texts) -> the mean over each text's tokens (B, D), in padded batches of RIVAL_BATCH. ordered: sort texts by length first."""

    def run(texts: list[str]) -> np.ndarray:
        rows = [e.ids for e in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i])) if ordered else range(len(rows))
        out: list[Any] = [None] * len(rows)
        for begin in range(0, len(rows), RIVAL_BATCH):
            which = order[begin : begin + RIVAL_BATCH]
            mask = np.arange(max(len(rows[i]) for i in which)) < np.array([len(rows[i]) for i in which])[:, None]
            ids = np.zeros(mask.shape, np.int64)
            ids[mask] = np.concatenate([rows[i] for i in which])
            hidden = np.asarray(encode(ids, mask.astype(np.int64)), np.float32)
            means = np.einsum("bsd,bs->bd", hidden, mask.astype(np.float32)) / mask.sum(1, keepdims=True)
            for i, mean in zip(which, means, strict=True):
                out[i] = mean
        return np.stack(out)

    return run


def ways_of(engine: Engine, encode: Encode, tokenizer: Any) -> dict[str, EmbedTexts]:
    """{order of the texts: run(texts)}: "own" if the engine batches texts itself, else "arrival" and "sorted" with padded batches."""
    if engine.embed is not None:
        return {"own": engine.embed(encode, tokenizer)}
    return {way: embed_padded(encode, tokenizer, ordered=way == "sorted") for way in ("arrival", "sorted")}


def check_texts(name: str, run: EmbedTexts, dtype: str, encode: Encode, texts: list[str], tokenizer: Any) -> None:
    """Compare the means of a batch with those of each text alone. Raises BackendError if they differ too much."""
    alone = np.stack([np.asarray(encode(np.array([e.ids]))[0], np.float32).mean(0) for e in tokenizer.encode_batch(texts)])
    error = float(np.linalg.norm(run(texts) - alone) / np.linalg.norm(alone))
    if not error < TEXTS_TOLERANCE[dtype]:
        raise BackendError(f"{name}: its means of texts differ by {error:.1%} from those of each text alone; nothing is timed")


def read_tokenizer(path: Path, limit: int) -> Any:
    """The tokenizer of a file, without padding. limit: most tokens of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer


def bench_queries(engines: Loaded, texts: list[str], tokenizer: Any, *, seconds: float) -> list[Row]:
    """A row per engine, for the way from one short text to its mean: without a pause before it, and after one.

    The texts are those of the given ones whose tokens are nearest to QUERY_TOKENS.
    """
    lengths = [len(e.ids) for e in tokenizer.encode_batch(texts)]
    short = sorted(range(len(texts)), key=lambda i: (abs(lengths[i] - QUERY_TOKENS), i))[:QUERIES]
    runs = {name: next(iter(ways_of(engine, encode, tokenizer).values())) for name, (engine, encode) in engines.items()}
    queries = [[texts[i]] for i in short]
    found = {key: latencies(runs, queries, pause=pause, calls=max(2, round(calls * seconds))) for key, (pause, calls) in PAUSES.items()}
    return [
        {
            "op": "queries", "engine": engine.name, "model": engine.model, "dtype": engine.dtype,
            "tokens": sum(lengths[i] for i in short) / len(short),
            **{f"{key}_{p}": found[key][name][j] for key in PAUSES for j, p in enumerate(("p50", "p99"))},
        }
        for name, (engine, _) in engines.items()
    ]  # fmt: skip


def bench_texts(engines: Loaded, texts: list[str], tokenizer: Any, *, seconds: float) -> list[Row]:
    """A row per engine and order of texts, for the way from texts to means."""
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    runs: dict[str, Callable[[Any], Any]] = {}
    kinds: dict[str, tuple[Engine, str]] = {}
    for name, (engine, encode) in engines.items():
        for way, run in ways_of(engine, encode, tokenizer).items():
            runs[f"{name} {way}"], kinds[f"{name} {way}"] = run, (engine, way)
    for name, run in runs.items():
        engine = kinds[name][0]
        check_texts(name, run, engine.dtype, engines[str(engine)][1], texts[:RIVAL_BATCH], tokenizer)
    spreads = interleaved(runs, [texts], seconds=seconds, least=3, pause=PAUSE_SECONDS)
    return [
        {
            "op": "texts", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, "order": way, "texts": len(texts),
            "tokens": tokens, "us_per_token": spreads[name].median / tokens, "p10": spreads[name].low / tokens,
            "p90": spreads[name].high / tokens, "texts_per_s": 1e6 * len(texts) / spreads[name].median,
        }
        for name, (engine, way) in kinds.items()
    ]  # fmt: skip
