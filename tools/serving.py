"""How many texts a second a service answers, and how long callers wait, with one call a request and with a Batcher:

    python tools/serving.py --clients 32 --seconds 10

Each client sends one text after another to one event loop, as the handlers of a web server do. `to_thread` computes each request by
itself in asyncio's pool of threads; `Batcher` packs the requests that wait. Both take turns, and answers are compared before times are.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

import fastinfer
from fastinfer.aio import Batcher

WORDS = ["a", "the", "of", "in", "rice", "cat", "boil", "bank", "rate", "river", "train", "slowly", "raised", "question", "letter"]

Embed = Callable[[str], Awaitable[np.ndarray]]


def texts_of(file: Path | None, count: int = 2000) -> list[str]:
    """The lines of a file, or random sentences of 4 to 60 words."""
    if file is not None:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    return [" ".join(random.choices(WORDS, k=random.choice([4, 8, 8, 16, 16, 30, 60]))) for _ in range(count)]


async def serve(embed: Embed, texts: list[str], clients: int, seconds: float) -> tuple[float, np.ndarray]:
    """(texts per second, seconds that each took) while `clients` ask for `seconds`."""
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def ask() -> None:
        while (began := time.perf_counter()) < end:
            await embed(random.choice(texts))
            waits.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return len(waits) / (time.perf_counter() - began), np.array(waits)


async def compare(model: fastinfer.Model, texts: list[str], clients: int, seconds: float, turns: int, batch_tokens: list[int]) -> None:
    """Print a line for each way and turn."""

    async def alone(text: str) -> np.ndarray:
        return await asyncio.to_thread(model.embed, text)

    batchers = {f"Batcher({tokens})": Batcher(model, batch_tokens=tokens) for tokens in batch_tokens}
    ways: dict[str, Embed] = {"to_thread": alone} | {name: batcher.embed for name, batcher in batchers.items()}
    few = random.sample(texts, min(len(texts), 64))
    want = model.embed(few)
    for name, embed in ways.items():
        got = np.concatenate(await asyncio.gather(*map(embed, few)))
        if not np.array_equal(got, want):
            raise SystemExit(f"{name} gives other answers than model.embed")
    print(f"{'way':<16} {'texts/s':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for _ in range(turns):
        for name, embed in ways.items():
            rate, waits = await serve(embed, texts, clients, seconds)
            p50, p99 = np.percentile(waits, [50, 99]) * 1000
            print(f"{name:<16} {rate:>8.0f} {p50:>8.1f} {p99:>8.1f}", flush=True)
    for batcher in batchers.values():
        await batcher.close()


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="a folder or a name (default: the model inside)")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a text a line (default: random sentences)")
    parser.add_argument("--clients", type=int, default=32, help="that ask at the same time")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[512, 2048], metavar="N")
    args = parser.parse_args()
    model = fastinfer.load(args.model)
    texts = texts_of(args.texts)
    print(f"{model.device}, {args.clients} clients, texts of {np.mean([len(text) for text in texts]):.0f} characters on average")
    asyncio.run(compare(model, texts, args.clients, args.seconds, args.turns, args.batch_tokens))


if __name__ == "__main__":
    main()
