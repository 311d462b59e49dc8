"""Progress of long inputs: a bar on standard error, or a function of the caller."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .errors import InputError, short

__all__ = ["Progress", "Show", "shown"]

# What `progress` may be: whether to show a bar, or a function that is called with (texts that are done, all texts).
Show: TypeAlias = bool | Callable[[int, int], Any]

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


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


class _Told(_Silent):
    """Tells a function of the caller (done, total). What it raises ends the call."""

    def __init__(self, function: Callable[[int, int], Any], total: int) -> None:
        self._function, self._total, self._done = function, total, 0

    def advance(self, count: int) -> None:
        self._done += count
        self._function(self._done, self._total)


class _Tqdm(_Silent):
    """A bar of tqdm, which suits notebooks, too. Short work shows none."""

    def __init__(self, tqdm: Any, total: int) -> None:
        self._bar = tqdm(total=total, unit=" texts", leave=False, delay=INTERVAL)

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        self._bar.update(count)


_SILENT = _Silent()


def shown(progress: Any, total: int) -> _Silent | Progress:
    """What shows the progress of `total` texts, for `with shown(...) as bar: ... bar.advance(n)`. Raises InputError unless it is a Show."""
    if progress is False:
        return _SILENT
    if not isinstance(progress, (bool, np.bool_)):
        if not callable(progress):
            raise InputError(f"progress is {short(progress)}, expected True, False or a function of (done, total)")
        return _Told(progress, total)
    if not progress:
        return _SILENT
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return Progress(total, enabled=True)
    return _Tqdm(tqdm, total)
