"""Hours of mixed calls: every answer keeps its bits, and memory stays flat.

    python tests/stress/soak.py --minutes 60

Threads ask several models, in several dtypes and with random numbers of threads, for embeddings, classes, tags, filled masks, answers,
rankings and routes of random selections of texts. Each answer is compared with the first one that was given for that text, bit for
bit. It prints a line a minute, and ends with status 1 where an answer changed, or where resident memory drifted by more than 2%:
medians of the first and the last quarter after the warm-up are compared, since single values hold the buffers of calls under way.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the builders of random models

import builders
import conftest

import fastinfer
from fastinfer import checkpoint
from fastinfer.config import FFF, Dense
from fastinfer.tokenizer import TruncationWarning

WARM_UP = 0.15  # of the time
DRIFT = 0.02  # of resident memory after the warm-up
SHAPES = {"4x1": (FFF(4, 1), FFF(16, 1)), "1x9": (FFF(1, 9), FFF(2, 5, dense=24, bias_out=True)), "dense": (Dense(300), Dense(75))}


def resident() -> float:
    """Megabytes of this process in memory."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) / 1e3


def some_texts(count: int) -> list[str]:
    """Texts of 1 to 300 words, most of them short, with words that no vocabulary has."""
    rng = random.Random(1)
    words = [w for w in conftest.WORDS if w.isalpha()] * 4 + ["zürich", "東京", "☃", "don't", "(un)friendly", "\n", "\t", "12,5", "..."]
    return [" ".join(rng.choices(words, k=int(rng.paretovariate(0.7)) % 300 + 1)) for _ in range(count)]


def frozen(value: Any) -> Any:
    """Something that compares equal where all bits are."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


class Question:
    """One thing that is asked of one model: `ask(model, texts, threads)` gives a list with an answer per text."""

    def __init__(self, name: str, model: fastinfer.Model, ask: Callable[[Any, list[str], int], Any], texts: list[str]) -> None:
        self.name, self.model, self.ask, self.texts = name, model, ask, texts
        self.first: dict[int, Any] = {}

    def check(self, rng: random.Random) -> list[str]:
        """Ask for a random selection of texts; what differs from their first answers."""
        which = rng.sample(range(len(self.texts)), rng.choice((1, 1, 2, 5, 20, 60)))
        answers = self.ask(self.model, [self.texts[i] for i in which], rng.choice((1, 2, 2, 3)))
        return [f"{self.name}: text {i}" for i, a in zip(which, map(frozen, answers), strict=True) if self.first.setdefault(i, a) != a]


def questions(folder: Path) -> list[Question]:
    """All that is asked. Small models have every head, the model inside embeds."""
    texts = some_texts(400)
    asks: dict[str, Callable[[Any, list[str], int], Any]] = {
        "embed": lambda m, t, n: m.embed(t, threads=n),
        "classify": lambda m, t, n: m.classify(t, threads=n),
        "tag": lambda m, t, n: m.tag(t, threads=n),
        "fill_mask": lambda m, t, n: m.fill_mask([f"[MASK] {x}" for x in t], threads=n),
        "answer": lambda m, t, n: m.answer(["who lived in london ?"] * len(t), [f"ada {x}" for x in t], threads=n),
        "rank": lambda m, t, n: [s for _, s in sorted(m.rank("ada", t, threads=n))],
        "routes": lambda m, t, n: m.routes(t, threads=n),
    }
    found = []
    for shape, ffn in SHAPES.items():
        config = conftest.make_config(ffn=ffn, layers=len(ffn))
        where = folder / shape
        checkpoint.save(where, config, builders.weights(config))
        conftest.make_tokenizer().save(str(where / "tokenizer.json"))
        for dtype in ("float32", "bfloat16", "int8"):
            model = fastinfer.load(where, device="cpu", dtype=dtype)
            found += [Question(f"{shape} {dtype} {name}", model, ask, texts) for name, ask in asks.items()]
    for dtype in (None, "float32", "int8"):
        model = fastinfer.load(device="cpu", dtype=dtype)
        found += [Question(f"inside {dtype} {name}", model, asks[name], texts) for name in ("embed", "rank", "routes")]
    return found


def soak(minutes: float, threads: int) -> tuple[int, list[str], list[float]]:
    """(calls, answers that changed, megabytes resident every few seconds)."""
    wrong: list[str] = []
    calls = [0] * threads
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        asked = questions(Path(folder))
        for question in asked:  # the first answers, by one thread
            question.first = dict(enumerate(map(frozen, question.ask(question.model, question.texts, 1))))
        begin = told = time.monotonic()
        end = begin + 60 * minutes

        def work(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end and len(wrong) < 100:
                wrong.extend(rng.choice(asked).check(rng))
                calls[number] += 1

        asking = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
        for thread in asking:
            thread.start()
        while any(thread.is_alive() for thread in asking):
            time.sleep(min(5, minutes))
            memory.append(resident())
            if (now := time.monotonic()) - told >= 60:
                told = now
                print(f"{(now - begin) / 60:6.1f} min  {sum(calls):>9,} calls  {len(wrong)} wrong  {memory[-1]:.1f} MB", flush=True)
    return sum(calls), wrong, memory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long to ask (default: 60)")
    parser.add_argument("--threads", type=int, default=3, help="threads that ask at the same time (default: 3)")
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        calls, wrong, memory = soak(args.minutes, args.threads)
    warm = memory[int(WARM_UP * len(memory)) :]
    quarter = max(1, len(warm) // 4)
    begin, end = float(np.median(warm[:quarter])), float(np.median(warm[-quarter:]))
    print(f"{calls:,} calls in {args.minutes:g} minutes, {len(wrong)} answers that changed")
    print(f"resident after the warm-up: {min(warm):.1f} to {max(warm):.1f} MB; median {begin:.1f} at first, {end:.1f} MB at last")
    for line in wrong[:20]:
        print(f"    {line}")
    return int(bool(wrong) or end > begin * (1 + DRIFT))


if __name__ == "__main__":
    sys.exit(main())
