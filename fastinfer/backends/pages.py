"""Memory for prepared weights, in huge pages where the system gives them.

In pages of 4 KB, random visits to rows of trees miss the TLB (10 to 18% of a call), and weights that are read once a call are prefetched
by the hardware only to the end of each page (a product of 16 tokens then takes up to 1.8 times as long).
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import numpy as np

HUGE_PAGE = 2 << 20  # bytes
SMALL = HUGE_PAGE // 16  # bytes: what is smaller gets pages of its own, so that a small layer does not take a huge one
CHUNK = 8 * HUGE_PAGE  # bytes of address space that pieces are cut from; only the pages that are written take memory
LINE = 64  # bytes of a cache line, on which each piece begins
# By default Python shares the memory with children, and Linux gives huge pages to shared memory only where its administrator says so.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Pages:
    """Pieces of memory that lie one after another. A chunk is given back to the system when the last of its pieces is gone."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """`size` bytes, aligned to a cache line, with any content. Raises MemoryError."""
        if size < SMALL:
            return from_multiple(np.empty(size + LINE, np.uint8), LINE)[:size]
        room = -(-size // LINE) * LINE
        with self._lock:
            if room > CHUNK:
                return _chunk(room)[:size]
            if room > len(self._rest):
                self._rest = _chunk(CHUNK)
            taken, self._rest = self._rest[:size], self._rest[room:]
            return taken


def from_multiple(memory: np.ndarray, boundary: int) -> np.ndarray:
    """The part of `memory`, uint8, from its first multiple of `boundary` on."""
    return memory[-memory.__array_interface__["data"][0] % boundary :]  # memory.ctypes takes five times as long


def _chunk(size: int) -> np.ndarray:
    """At least `size` bytes from the beginning of a page, a huge one where there are such."""
    try:
        memory = mmap.mmap(-1, size + HUGE_PAGE, **PRIVATE)
    except OSError as error:
        raise MemoryError(f"no memory for {size / 1e6:.1f} MB") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that is built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return from_multiple(np.frombuffer(memory, np.uint8), HUGE_PAGE)
