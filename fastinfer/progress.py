"""A progress bar on standard error, for long inputs."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters of a full bar
INTERVAL = 0.1  # seconds between redraws


class Progress:
    """A bar for `with Progress(...) as bar: ... bar.advance(n)`. It draws nothing unless enabled, and erases itself at the end.

    total  number of items; None if unknown: then count and rate are shown without a bar
    """

    def __init__(self, total: int | None, *, enabled: bool, unit: str = "texts") -> None:
        self._total, self._enabled, self._unit = total, enabled, unit
        self._done, self._drawn = 0, 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if not self._enabled or now - self._drawn < INTERVAL:
            return
        self._drawn = now
        rate = self._done / max(now - self._start, 1e-9)
        line = f"{self._done} {self._unit}  {rate:.0f}/s"
        if self._total:
            bar = "#" * min(WIDTH, WIDTH * self._done // self._total)
            left = max(0, self._total - self._done) / max(rate, 1e-9)
            line = f"[{bar:<{WIDTH}}] {self._done}/{self._total} {self._unit}  {rate:.0f}/s  {left:.0f} s left"
        print(f"\r{line}", end="\x1b[K", file=sys.stderr, flush=True)
