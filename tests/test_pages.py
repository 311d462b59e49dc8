"""Memory for prepared weights: pieces do not overlap, begin on cache lines, and go back to the system."""

import gc
import threading

import numpy as np
import pytest

from fastinfer.backends.pages import CHUNK, SMALL, Pages


def test_pieces_are_apart_and_aligned():
    pages, rng = Pages(), np.random.default_rng()
    sizes = [1, 63, 64, SMALL - 1, SMALL, SMALL + 1, CHUNK, CHUNK + 1, *(int(n) for n in rng.integers(1, CHUNK // 3, 20))]
    taken = [pages.take(size) for size in sizes]
    for i, piece in enumerate(taken):
        piece[...] = i
    for i, (piece, size) in enumerate(zip(taken, sizes, strict=True)):
        assert piece.shape == (size,)
        assert piece.ctypes.data % 64 == 0
        assert (piece == i).all()


def test_threads_get_pieces_of_their_own():
    pages, taken = Pages(), []
    threads = [threading.Thread(target=lambda: taken.extend(pages.take(SMALL) for _ in range(50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = np.sort([piece.ctypes.data for piece in taken])
    assert len(starts) == 400
    assert np.diff(starts).min() >= SMALL


def test_memory_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    pages = Pages()
    before = resident()
    piece = pages.take(4 * CHUNK)
    piece[...] = 1
    assert resident() - before >= 3 * CHUNK
    del piece
    gc.collect()
    assert resident() - before < CHUNK


def test_large_pieces_lie_in_huge_pages():
    def huge() -> int:
        with open("/proc/self/smaps_rollup") as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages"))

    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            if "[never]" in file.read():
                pytest.skip("this system gives no huge pages")
    except OSError:
        pytest.skip("this system has no huge pages that a process can ask for")
    before = huge()
    piece = Pages().take(4 * CHUNK)
    piece[...] = 1
    assert huge() - before >= 2 * CHUNK  # the system may be short of them


def test_too_much_memory():
    with pytest.raises(MemoryError, match="no memory for"):
        Pages().take(1 << 60)
