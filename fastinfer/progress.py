"""A progress bar on standard error, for long inputs."""

from __future__ import annotations

import sys
import time

WIDTH = 30
INTERVAL = 0.1  # seconds between redraws


class Progress:
    """`with Progress(total) as bar: ... bar.advance(n)`. Draws nothing unless enabled; erases itself at the end."""

    def __init__(self, total: int, *, enabled: bool, unit: str = "texts") -> None:
        self._total, self._enabled, self._unit = total, enabled and total > 0, unit
        self._done, self._drawn = 0, 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled and self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if not self._enabled or now - self._drawn < INTERVAL:
            return
        self._drawn = now
        rate = self._done / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate
        bar = "#" * (WIDTH * self._done // self._total)
        line = f"\r[{bar:<{WIDTH}}] {self._done}/{self._total} {self._unit}  {rate:.0f}/s  {left:.0f} s left"
        print(line, end="\x1b[K", file=sys.stderr, flush=True)
