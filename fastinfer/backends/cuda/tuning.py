"""The choice of cuBLASLt's fastest algorithm for a product, by timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .cublaslt import Product
from .memory import Memory

TRIALS = 5  # calls of a product in the graph that is timed


class Scratch(Protocol):
    """The place where trials run: a stream that can be captured, and memory for cuBLASLt that no other stream uses."""

    stream: Any

    def workspace(self) -> Any: ...

    def capture(self, run: Callable[[], Any]) -> Any: ...


def fastest(product: Product, weight: Any, rows: int, bias: bool, residual: bool, memory: Memory, scratch: Scratch) -> bytes:
    """The algorithm with the least time in the best of three replays of a graph, on scratch memory.

    weight  (outputs, inputs); its rows also serve as x, because zeros would draw less power
    """
    outputs, inputs = weight.shape
    x, out = (memory.allocate("a trial of products", (rows, n), weight.dtype) for n in (inputs, outputs))
    for begin in range(0, rows, outputs):
        x[begin : begin + outputs] = weight[: min(outputs, rows - begin)]
    out.fill(0)
    offset = memory.allocate("a trial of products", (outputs,), weight.dtype) if bias else None
    operands = x, weight, offset, out if residual else None, out, scratch.workspace(), scratch.stream.ptr

    def run() -> None:
        for _ in range(TRIALS):
            product(*operands)

    best = []
    for algorithm in product.candidates():
        product.algorithm = algorithm
        run()
        best.append((min(times(memory.cupy, scratch.capture(run), scratch.stream)[1:]), algorithm))
    return min(best, key=lambda b: b[0])[1]


def times(cupy: Any, graph: Any, stream: Any) -> list[float]:
    """Milliseconds of each of four replays. The first one warms up."""
    found = []
    for _ in range(4):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        found.append(cupy.cuda.get_elapsed_time(begin, end))
    return found
