"""FFF and fff: a fast feedforward layer on arrays, without a model around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import backends
from .checkpoint.tensor import Tensor
from .config import MAX_DEPTH, tree_nodes
from .errors import DtypeError, InputError, ShapeError, check_array, check_int, short
from .weights import FeedForward, Linear

if TYPE_CHECKING:
    from .backends.reference import Reference

__all__ = ["FFF", "fff"]


class Arrays(NamedTuple):
    """The arrays of an FFF: nodes (P, N, 2, D), b_in, b_out, and dense as FFF takes it, but with w_out (D, W)."""

    nodes: Tensor
    b_in: np.ndarray | None
    b_out: np.ndarray | None
    dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None


class FFF:
    """A fast feedforward layer, prepared once and called many times: conditional matrix multiplication.

    w_in    (P, N, D) float32  row n decides at node n. N = 2**(depth + 1) - 1, heap order (children 2n+1, 2n+2)
    b_in    (P, N)    float32 or None
    w_out   (P, N, D) float32  node n adds row n times gelu(z)
    depth   decisions per tree, 0 to 15; depth + 1 nodes are visited
    b_out   (D,)      float32 or None
    dense   (w_in, b_in, w_out) of W neurons that are always on: (W, D), (W,) or None, (W, D); or None
    dtype   dtype of the weights and of computing: "float32", "bfloat16", "int8" (a scale per row), or "float16", which without a GPU is
            float32; sums are float32
    device  "cpu", "cpu:ISA", "numpy", "cuda" or "cuda:N"

    At node n: z = x.w_in[n] + b_in[n]; y += gelu(z) * w_out[n]; go to 2n + 1 + (z > 0). z == 0 goes
    left; leaves add too. GELU is the exact one (erf). Arrays must be C-contiguous; they are copied.

    Raises ShapeError or DtypeError naming the array at fault, or BackendError for a device or dtype that
    cannot run here.
    """

    def __init__(
        self,
        w_in: np.ndarray,
        b_in: np.ndarray | None,
        w_out: np.ndarray,
        *,
        depth: int,
        b_out: np.ndarray | None = None,
        dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None,
        activation: str = "gelu",
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        depth = check_int("depth", depth, 0, MAX_DEPTH)
        if not isinstance(activation, str) or activation != "gelu":
            raise InputError(f"activation is {short(activation)}, expected 'gelu' (the exact one)")
        count = tree_nodes(depth)
        ops = backends.get(device, dtype=dtype)
        w_in, b_in, w_out, b_out = (ops.to_host(a) for a in (w_in, b_in, w_out, b_out))
        why = f"a tree of depth={depth} has N = 2**(depth+1)-1 = {count} nodes"
        check_array("w_in", w_in, ("trees", count, "hidden"), because=why)
        trees, _, hidden = w_in.shape
        if trees == 0 or hidden == 0:
            check_array("w_in", w_in, (max(trees, 1), count, max(hidden, 1)), because="a layer has at least one tree and one column")
        check_array("w_out", w_out, w_in.shape, because="w_out has the shape of w_in")
        if b_in is not None:
            check_array("b_in", b_in, (trees, count), because=why)
        if b_out is not None:
            check_array("b_out", b_out, (hidden,), because=f"hidden={hidden} comes from w_in")

        always = None
        if dense is not None:
            if not isinstance(dense, tuple) or len(dense) != 3:
                raise DtypeError("dense is expected to be a tuple (w_in, b_in, w_out), shaped (W, D), (W,) or None, (W, D)")
            d_in, d_bias, d_out = (ops.to_host(a) for a in dense)
            check_array("dense w_in", d_in, ("W", hidden), because=f"hidden={hidden} comes from w_in")
            if not len(d_in):
                raise ShapeError(f"dense w_in is {d_in.shape}, expected at least one neuron that is always on, or dense=None")
            check_array("dense w_out", d_out, d_in.shape, because="it has the shape of the dense w_in")
            if d_bias is not None:
                d_bias = check_array("dense b_in", d_bias, (len(d_in),)).copy()
            always = d_in.copy(), d_bias, d_out.T.copy()
        nodes = Tensor(np.stack([w_in, w_out], axis=2), "float32")
        copies = [None if a is None else a.copy() for a in (b_in, b_out)]
        self._prepare(Arrays(nodes, copies[0], copies[1], always), depth, activation, dtype, device, ops)

    def _prepare(self, arrays: Arrays, depth: int, activation: str, dtype: str, device: str, ops: Reference) -> None:
        """Make the layer of arrays of its own."""
        trees, _, _, hidden = arrays.nodes.data.shape
        self.trees, self.depth, self.hidden = trees, depth, hidden
        self.dtype = dtype if dtype in ops.dtypes else "float32"  # float16 needs a GPU
        self._ops = ops = ops.fitted(hidden, 0, self.dtype)
        self.device = ops.device
        arrays = arrays._replace(nodes=ops.own(arrays.nodes))
        made = ops.trees(arrays.nodes, arrays.b_in, None, depth)
        bias = None if arrays.b_out is None else ops.vector(Tensor(arrays.b_out, "float32"))
        dense_in = dense_out = None
        if arrays.dense is not None:
            d_in, d_bias, d_out = arrays.dense
            dense_in = Linear(ops.matrix(Tensor(d_in, "float32")), None if d_bias is None else ops.vector(Tensor(d_bias, "float32")))
            dense_out = Linear(ops.matrix(Tensor(d_out, "float32")))
        self._layer = FeedForward("fff", None, made, dense_in, dense_out, bias, activation, {})
        self._state = arrays, depth, activation, dtype, device

    def __getstate__(self) -> tuple[Arrays, int, str, str, str]:
        return self._state

    def __setstate__(self, state: tuple[Arrays, int, str, str, str]) -> None:
        *_, dtype, device = state
        self._prepare(*state, backends.get(device, dtype=dtype))

    def __copy__(self) -> FFF:
        """A layer that shares the arrays, which no call changes."""
        made = object.__new__(type(self))
        made.__dict__ |= self.__dict__
        return made

    def __deepcopy__(self, memo: Any) -> FFF:
        return self.__copy__()

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
        """The layer's output for x (T, D) float32: (T, D) float32, in `out` when given (it may not overlap x).

        On a GPU x may also be a GPU array of float32 or the layer's dtype: of CuPy, or with __cuda_array_interface__ or __dlpack__.
        The answer is then a CuPy array of x's dtype, on the caller's current stream.
        """
        ops = self._ops if threads is None else self._ops.using(threads)
        answer: np.ndarray = ops.call_layer(self._layer, self.hidden, x, out)
        return answer

    def routes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The paths of x (T, D): node ids (T, P, depth + 1) int32 and their logits z, same shape, float32."""
        nodes, z = self._ops.layer_routes(self._layer, self.hidden, self.trees, x)
        return nodes, z

    def __repr__(self) -> str:
        return f"FFF({self.trees}x{self.depth}, hidden={self.hidden}, {self.dtype}, {self.device})"


def fff(
    x: np.ndarray,
    w_in: np.ndarray,
    b_in: np.ndarray | None,
    w_out: np.ndarray,
    *,
    depth: int,
    b_out: np.ndarray | None = None,
    dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None,
    activation: str = "gelu",
    dtype: str = "float32",
    device: str = "cpu",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """FFF(...)(x) in one call. It copies the trees each time: for repeated calls, prepare an FFF."""
    layer = FFF(w_in, b_in, w_out, depth=depth, b_out=b_out, dense=dense, activation=activation, dtype=dtype, device=device)
    return layer(x, out=out, threads=threads)
