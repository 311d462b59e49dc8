"""The compiled kernels of one model on one GPU. They are loaded at first use and launched by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .compiler import cached_kernels
from .device import Limits
from .launch import by_value, launch


class Walk(NamedTuple):
    """Compile-time values of the kernels of trees: the decisions of a walk, and whether it may stop earlier (pruned trees)."""

    depth: int
    stops: bool


class Kernels:
    """A program per walk of trees, and one (walk None) with all other kernels.

    options    compiler options for every program
    int8_rows  whether the rows of trees are int8
    """

    def __init__(self, cupy: Any, number: int, limits: Limits, options: tuple[str, ...], int8_rows: bool) -> None:
        self._cupy, self._number, self._limits, self._options, self._int8_rows = cupy, number, limits, options, int8_rows
        self._modules: dict[Walk | None, Any] = {}
        self._functions: dict[tuple[str, Walk | None], Any] = {}

    def _module(self, walk: Walk | None) -> Any:
        """The loaded program for a walk; compiled at first use."""
        if walk not in self._modules:
            trees: tuple[str, ...] = ()
            if walk is not None:
                trees = (f"-DDEPTH={walk.depth}", *("-DSTOPS",) * walk.stops, *("-DROW_INT8",) * self._int8_rows)
            with self._cupy.cuda.Device(self._number):
                path = cached_kernels(self._limits.architecture, self._options + trees)
                self._modules[walk] = self._cupy.RawModule(path=str(path))
        return self._modules[walk]

    def constants(self, walk: Walk | None, name: str, count: int) -> list[int]:
        """`count` int32 values of the program's global variable `name`, which say how to launch its kernels."""
        with self._cupy.cuda.Device(self._number):
            found: list[int] = self._cupy.ndarray(count, np.int32, self._module(walk).get_global(name)).tolist()
            return found

    def launch(
        self, name: str, blocks: int | tuple[int, int], threads: int, *arguments: Any, shared: int = 0, walk: Walk | None = None
    ) -> None:
        """Launch a kernel on the current stream.

        blocks     the size of the grid
        threads    threads per block
        arguments  arrays of the GPU or None, numbers, or a struct
        shared     bytes of dynamic shared memory
        walk       the walk, for a kernel of trees; None: for other kernels
        """
        function = self._functions.get((name, walk))
        if function is None:
            function = self._functions[name, walk] = self._module(walk).get_function(name)
            if shared:
                function.max_dynamic_shared_size_bytes = self._limits.shared_memory - function.shared_size_bytes
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        stream = self._cupy.cuda.get_current_stream().ptr
        launch(function.kernel.ptr, grid, threads, shared, stream, map(by_value, arguments), self._limits.starts_early)
