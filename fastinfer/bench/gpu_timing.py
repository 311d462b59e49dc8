"""Timing on a GPU: replays of CUDA graphs over arrays on the device, timed by events.

Works take turns on one stream. A graph goes through up to SETS sets of weights and random inputs, one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .timing import Spread

SETS = 8  # sets of weights and inputs
GRAPH_US, LONG_US = 1000.0, 20_000.0  # us: aim of a timed graph; above LONG_US, two sets are enough
LEAST = 7  # replays at least
COPIED_BYTES = 1 << 30  # bytes that copy_rate copies

Call = Callable[[], Any]


class Work(NamedTuple):
    """Calls to time.

    stream   the stream that they run on
    calls    the same work on sets of weights and inputs; each launches it
    capture  capture(launch) gives a function that replays a graph of the kernels that `launch` launches
    result   result() gives the output of calls[0], float32 on the host
    """

    stream: Any
    calls: Sequence[Call]
    capture: Callable[[Call], Call]
    result: Callable[[], np.ndarray]


class Replay(NamedTuple):
    """A graph to time.

    launch  starts the graph on the stream
    calls   the number of calls in the graph
    before  microseconds of the graph that other work takes
    keep    an object that keeps the graph's arrays alive
    """

    stream: Any
    launch: Call
    calls: int
    before: float = 0.0
    keep: Any = None


def own_work(ops: Any, session: Any, calls: Sequence[Call], out: Any) -> Work:
    """The Work of calls to ops inside their session. The first call writes `out`."""

    def capture(launch: Call) -> Call:
        return functools.partial(session.capture(launch).launch, session.stream)

    return Work(session.stream, calls, capture, lambda: np.asarray(ops.bring(out)()))


def elapsed(stream: Any, launch: Call, times: int = 1, *, ahead: bool = False) -> float:
    """Microseconds on the device of `times` launches. ahead: one untimed launch precedes them, so that none waits for the host."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    if ahead:
        launch()
    begin.record(stream)
    for _ in range(times):
        launch()
    end.record(stream)
    end.synchronize()
    return float(1e3 * cupy.cuda.get_elapsed_time(begin, end))


def replay(work: Work, first: Call | None = None) -> Replay:
    """A graph of about GRAPH_US with rounds of all calls. With `first`, one round with `first` before each call, less its time."""
    for call in work.calls:
        call()
    once = elapsed(work.stream, lambda: [call() for call in work.calls])
    calls = work.calls if once < LONG_US else work.calls[:2]
    one = work.capture(lambda: [call() for call in calls])
    one()
    rounds = max(1, min(64 // len(calls), int(GRAPH_US / elapsed(work.stream, one))))
    if first is None:
        several = work.capture(lambda: [call() for _ in range(rounds) for call in calls])
        return Replay(work.stream, several, rounds * len(calls), keep=work)
    firsts = work.capture(lambda: [first() for _ in calls])
    both = work.capture(lambda: [launch() for call in calls for launch in (first, call)])
    before = float(np.median([elapsed(work.stream, firsts, ahead=True) for _ in range(LEAST)]))
    return Replay(work.stream, both, len(calls), before, keep=(work, first))


def interleaved(replays: Mapping[str, Replay], *, seconds: float) -> dict[str, Spread]:
    """Microseconds per call of each graph. The graphs take turns, for about `seconds` each and at least LEAST times."""
    times: dict[str, list[float]] = {name: [] for name in replays}
    spent = dict.fromkeys(replays, 0.0)
    waiting = list(replays)
    while waiting:
        for name in waiting:
            stream, launch, calls, before, _ = replays[name]
            launches = max(1, int(GRAPH_US / elapsed(stream, launch)))
            for _ in range(3):
                us = elapsed(stream, launch, launches, ahead=True)
                times[name].append((us / launches - before) / calls)
                spent[name] += us / 1e6
        waiting = [n for n in waiting if len(times[n]) < LEAST or spent[n] < seconds]
    return {name: Spread.of(t) for name, t in times.items()}


def flusher(number: int) -> Call:
    """A function that launches, on the current stream, a read of three times the L2 cache of GPU `number`."""
    import cupy

    code = r"""
    extern "C" __global__ void read(const uint4* from, long long count, unsigned* out) {
        unsigned sum = 0;
        for (long long i = blockIdx.x * 512ll + threadIdx.x; i < count; i += gridDim.x * 512ll) sum += from[i].x + from[i].w;
        if (sum == 0x9e3779b9) *out = sum;  // else the compiler leaves the loads out
    }"""
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    data = cupy.ones(3 * properties["l2CacheSize"] // 4, np.uint32)
    out, read = cupy.zeros(1, np.uint32), cupy.RawKernel(code, "read")
    return lambda: read((4 * properties["multiProcessorCount"],), (512,), (data, np.int64(data.size // 4), out))


def copy_rate(stream: Any) -> float:
    """Bytes per microsecond of a large copy on the device. Bytes read and bytes written both count."""
    import cupy

    source, to = cupy.ones(COPIED_BYTES // 4, np.float32), cupy.empty(COPIED_BYTES // 4, np.float32)
    runtime = cupy.cuda.runtime

    def copy() -> None:
        runtime.memcpyAsync(to.data.ptr, source.data.ptr, COPIED_BYTES, runtime.memcpyDeviceToDevice, stream.ptr)

    copy()
    return 2 * COPIED_BYTES / float(np.median([elapsed(stream, copy) for _ in range(LEAST)]))
