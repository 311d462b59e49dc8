"""The compiled kernels of one model on one GPU. They are loaded at first use and launched by name."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .compiler import cached_kernels
from .device import Limits
from .launch import by_value, launch


class Walk(NamedTuple):
    """Compile-time values of the kernels of trees.

    depth       the decisions of a walk
    stops       whether it may stop earlier (pruned trees)
    activation  of the nodes
    blocks      whether it leads to blocks
    silent      whether its nodes add nothing
    """

    depth: int
    stops: bool
    activation: str = "gelu"
    blocks: bool = False
    silent: bool = False


class Blocks(NamedTuple):
    """The kernels of blocks at the leaves of trees. They have no compile-time values."""


class Changed(NamedTuple):
    """Compile-time values of an attention that does more to scores than scale them: the fields of weights.Scores that it has."""

    window: bool
    causal: bool
    distances: bool
    relative: bool


class Narrow(NamedTuple):
    """Compile-time value of the kernels of rows whose width is not the model's: the columns."""

    columns: int


Variant: TypeAlias = Walk | Blocks | Changed | Narrow | None


class Kernels:
    """A program per walk of trees, for blocks, per other attention and per other width, and one (variant None) with all other kernels.

    act        the macro that selects the dtype of activations
    hidden     columns of the activations
    heads      attention heads; 0: no attention
    int8_rows  whether the rows of trees are int8
    """

    def __init__(self, cupy: Any, number: int, limits: Limits, act: str, hidden: int, heads: int, int8_rows: bool) -> None:
        self._cupy, self._number, self._limits = cupy, number, limits
        self._act, self._hidden, self._heads, self._int8_rows = act, hidden, heads, int8_rows
        self._modules: dict[Variant, Any] = {}
        self._functions: dict[tuple[str, Variant], Any] = {}

    def _options(self, variant: Variant) -> tuple[str, ...]:
        """The compiler options of a program."""
        if isinstance(variant, Narrow):
            return f"-D{self._act}", f"-DHIDDEN={variant.columns}", "-DNARROW"
        if isinstance(variant, Blocks):
            return f"-D{self._act}", f"-DHIDDEN={self._hidden}", "-DLEAVES"
        options = (f"-D{self._act}", f"-DHIDDEN={self._hidden}", *(f"-DHEADS={self._heads}",) * bool(self._heads))
        if isinstance(variant, Walk):
            options += (f"-DDEPTH={variant.depth}", *("-DSTOPS",) * variant.stops, *("-DROW_INT8",) * self._int8_rows)
            options += ("-DBLOCKS",) * variant.blocks + ("-DSILENT",) * variant.silent
            options += (f"-DTREE_KIND=KIND_{variant.activation.upper()}",) * (variant.activation != "gelu")
        elif isinstance(variant, Changed):
            options += ("-DSCORES", *(f"-D{name.upper()}" for name, there in variant._asdict().items() if there))
        return options

    def _module(self, variant: Variant) -> Any:
        """The loaded program of a variant; compiled at first use."""
        if variant not in self._modules:
            with self._cupy.cuda.Device(self._number):
                path = cached_kernels(self._limits.architecture, self._options(variant))
                self._modules[variant] = self._cupy.RawModule(path=str(path))
        return self._modules[variant]

    def load(self, variant: Variant) -> None:
        """Compile and load a program now, so that the first launch does not."""
        self._module(variant)

    def constants(self, variant: Variant, name: str, count: int) -> list[int]:
        """`count` int32 values of the program's global variable `name`, which say how to launch its kernels."""
        with self._cupy.cuda.Device(self._number):
            found: list[int] = self._cupy.ndarray(count, np.int32, self._module(variant).get_global(name)).tolist()
            return found

    def launch(
        self, name: str, blocks: int | tuple[int, int], threads: int, *arguments: Any, shared: int = 0, variant: Variant = None
    ) -> None:
        """Launch a kernel on the current stream.

        blocks     the size of the grid
        threads    threads per block
        arguments  arrays of the GPU or None, numbers, or a struct
        shared     bytes of dynamic shared memory
        variant    the program; kernels of trees need a Walk
        """
        function = self._functions.get((name, variant))
        if function is None:
            function = self._functions[name, variant] = self._module(variant).get_function(name)
            if shared:
                function.max_dynamic_shared_size_bytes = self._limits.shared_memory - function.shared_size_bytes
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        stream = self._cupy.cuda.get_current_stream().ptr
        launch(function.kernel.ptr, grid, threads, shared, stream, map(by_value, arguments), self._limits.starts_early)
