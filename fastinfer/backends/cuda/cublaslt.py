"""Matrix products by cuBLASLt. It is called through ctypes, because CuPy's own products cannot be captured into a graph.

The library is the one that CuPy brings or finds. The constants are from cublasLt.h; they are the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from ...errors import BackendError

COMPUTE_32F, R_32F = 68, 0
TYPES = {"float32": R_32F, "float16": 2, "bfloat16": 14}
TRANSA, EPILOGUE, BIAS_POINTER = 3, 7, 8
EPILOGUE_DEFAULT, EPILOGUE_BIAS = 1, 4
MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 1, (5, 6, 7, 8)
BATCH_COUNT, BATCH_STRIDE = 5, 6
WORKSPACE = 32 << 20  # bytes: NVIDIA recommends this size for Hopper
RESULT = 96  # bytes of a cublasLtMatmulHeuristicResult_t, which begins with the algorithm
CANDIDATES = 8  # algorithms to ask for

pointer, size_t = ctypes.c_void_p, ctypes.c_size_t


@functools.cache
def library() -> Any:
    """The loaded cuBLASLt. Raises BackendError if it cannot be found."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        loaded = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception as error:  # each way of finding a library raises its own error
        raise BackendError(f"cuBLASLt cannot be loaded: {error}\n  pip install 'fastinfer[cuda]' brings it.") from error
    loaded.cublasLtGetStatusString.restype = ctypes.c_char_p
    return loaded


@functools.cache
def handle(device: int) -> ctypes.c_void_p:
    """A cuBLASLt handle of the current device, whose number is `device`; threads share it."""
    made = pointer()
    _call("cublasLtCreate", ctypes.byref(made))
    return made


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the library. Raises BackendError with the library's message."""
    status = getattr(library(), name)(*arguments)
    if status:
        raise BackendError(f"{name} failed: {library().cublasLtGetStatusString(status).decode()}")


class Product:
    """out (rows, outputs) = x (rows, inputs) @ weight (outputs, inputs).T + bias (+ residual): one shape, many calls.

    dtype     of x, weight, bias, residual and out: "float32" (no TF32), "float16" or "bfloat16"; sums are float32
    bias      whether calls have a bias
    residual  whether calls have a residual; it may be `out` itself

    Arrays are CuPy's in C order; inputs and outputs are multiples of 8. Only one thread at a time may use a Product.
    """

    alignment = 256  # bytes: addresses of arrays are multiples of it

    def __init__(self, device: int, dtype: str, rows: int, outputs: int, inputs: int, bias: bool, residual: bool) -> None:
        kind = TYPES[dtype]
        self._describe(device, bias, 1, residual)
        # cuBLAS stores matrices by columns, so its output is out.T = weight @ x.T.
        self.weight, self.x, self.out = (self._layout(kind, *shape) for shape in ((inputs, outputs), (inputs, rows), (outputs, rows)))
        self.algorithm = self.candidates()[0]

    def _describe(self, device: int, bias: bool, factor: float, residual: bool) -> None:
        """Make the description of the product, whose sums are multiplied by `factor`."""
        self.device = device
        self.description = pointer()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.description), COMPUTE_32F, R_32F)
        self._set(TRANSA, ctypes.c_int32(1))
        self._set(EPILOGUE, ctypes.c_int32(EPILOGUE_BIAS if bias else EPILOGUE_DEFAULT))
        self.factor, self.beta = ctypes.c_float(factor), ctypes.c_float(1 if residual else 0)

    def _set(self, attribute: int, value: Any) -> None:
        """Set an attribute of the product's description."""
        _call("cublasLtMatmulDescSetAttribute", self.description, attribute, ctypes.byref(value), size_t(ctypes.sizeof(value)))

    @staticmethod
    def _layout(kind: int, rows: int, columns: int, stride: int | None = None, count: int = 1, apart: int = 0) -> ctypes.c_void_p:
        """The description of a matrix stored by columns, or of `count` such matrices.

        stride  values from a column to the next; None: `rows`
        apart   values from a matrix to the next
        """
        layout = pointer()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(stride or rows)
        _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), kind, *sizes)
        for attribute, value in ((BATCH_COUNT, ctypes.c_int32(count)), (BATCH_STRIDE, ctypes.c_int64(apart))):
            if count > 1:
                _call("cublasLtMatrixLayoutSetAttribute", layout, attribute, ctypes.byref(value), size_t(ctypes.sizeof(value)))
        return layout

    def candidates(self) -> list[bytes]:
        """The algorithms that cuBLASLt's heuristic suggests for this product, the best guess first."""
        preference, count = pointer(), ctypes.c_int()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        limit = ctypes.c_uint64(WORKSPACE)
        _call("cublasLtMatmulPreferenceSetAttribute", preference, MAX_WORKSPACE_BYTES, ctypes.byref(limit), size_t(8))
        alignment = ctypes.c_uint32(self.alignment)
        for attribute in MIN_ALIGNMENTS:
            _call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.byref(alignment), size_t(4))
        found = ctypes.create_string_buffer(RESULT * CANDIDATES)
        operands = self.description, self.weight, self.x, self.out, self.out
        _call("cublasLtMatmulAlgoGetHeuristic", handle(self.device), *operands, preference, CANDIDATES, found, ctypes.byref(count))
        library().cublasLtMatmulPreferenceDestroy(preference)
        if not count.value:
            raise BackendError("cuBLASLt has no algorithm for a product of this shape on this GPU")
        return [found.raw[i * RESULT : (i + 1) * RESULT] for i in range(count.value)]

    def __call__(self, x: Any, weight: Any, bias: Any, residual: Any, out: Any, workspace: Any, stream: int) -> None:
        """Launch the product on `stream`. workspace: WORKSPACE bytes that no other stream uses."""
        if bias is not None:
            self._set(BIAS_POINTER, ctypes.c_uint64(bias.data.ptr))
        source = out if residual is None else residual
        _call(
            "cublasLtMatmul",
            handle(self.device),
            self.description,
            ctypes.byref(self.factor),
            pointer(weight.data.ptr),
            self.weight,
            pointer(x.data.ptr),
            self.x,
            ctypes.byref(self.beta),
            pointer(source.data.ptr),
            self.out,
            pointer(out.data.ptr),
            self.out,
            self.algorithm,
            pointer(workspace.data.ptr),
            size_t(WORKSPACE),
            pointer(stream),
        )

    def __del__(self) -> None:
        library().cublasLtMatmulDescDestroy(self.description)
        for layout in (self.weight, self.x, self.out):
            library().cublasLtMatrixLayoutDestroy(layout)


class HeadProduct(Product):
    """out (heads, rows, outputs) = factor * x[h] @ weight[h].T for each head h, for several heads at once.

    x (rows, ...) and weight (outputs, ...) have `size` columns per head, side by side; from a row to the next are `strides` values.
    """

    alignment = 16  # bytes: a head begins anywhere in a row

    def __init__(
        self, device: int, dtype: str, rows: int, outputs: int, heads: int, size: int, strides: tuple[int, int], factor: float
    ) -> None:
        kind = TYPES[dtype]
        self._describe(device, False, factor, False)
        self.x = self._layout(kind, size, rows, strides[0], heads, size)
        self.weight = self._layout(kind, size, outputs, strides[1], heads, size)
        self.out = self._layout(kind, outputs, rows, outputs, heads, rows * outputs)
        self.algorithm = self.candidates()[0]
