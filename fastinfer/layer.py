"""FFF and fff: a fast feedforward layer on arrays, without a model around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import backends
from .activations import ACTIVATIONS
from .backends.reference import check_layer_arrays
from .checkpoint.tensor import Tensor
from .config import FFF as Shape
from .config import MAX_DEPTH, MAX_WIDTH
from .errors import DtypeError, InputError, ShapeError, check_array, check_flag, check_int, near, short
from .weights import FeedForward, Form, Linear

if TYPE_CHECKING:
    from .backends.reference import Reference

__all__ = ["FFF", "fff"]


class Arrays(NamedTuple):
    """The arrays of an FFF: nodes (P, N, 2, M), b_in, b_leaf, b_out, and dense as FFF takes it, but with w_out (M, W).

    M is the larger of the numbers of inputs and outputs: columns that a side lacks are zeros. hidden, outputs: without them.
    """

    hidden: int
    outputs: int
    nodes: Tensor
    b_in: np.ndarray | None
    b_leaf: np.ndarray | None
    b_out: np.ndarray | None
    dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None


class FFF:
    """A fast feedforward layer, prepared once and called many times: conditional matrix multiplication.

    w_in    (P, N, D) float32  row n decides at node n. N = 2**(depth + 1) - 1, heap order (children 2n+1, 2n+2)
    b_in    (P, N)    float32 or None
    w_out   (P, N, D) float32  node n adds row n times act(z)
    depth   decisions per tree, 0 to 15; depth + 1 nodes are visited
    leaf    L: each leaf is a block of L neurons, all of which are computed for the tokens that reach it. N = 2**depth - 1 + L 2**depth:
            nodes that decide, then block after block. 1: leaves are nodes like the others
    silent  True: nodes that decide add nothing, and their rows of w_out are not read. Then leaf 1 is a block of one neuron
    b_leaf  (P, 2**depth, D) float32, an output bias of each leaf, or None
    outputs columns of w_out, b_leaf, b_out and the answer; None: D, those of w_in
    b_out   (D,)      float32 or None
    dense   (w_in, b_in, w_out) of W neurons that are always on: (W, D), (W,) or None, (W, D); or None
    activation  of all neurons: "gelu" (the exact one, erf), "gelu_tanh", "relu", "silu" or "tanh"
    dtype   dtype of the weights and of computing: "float32", "bfloat16", "int8" (a scale per row), or "float16", which without a GPU is
            float32; sums are float32. Blocks and `dense` round x, too, as matrix products do
    device  "cpu", "cpu:ISA", "numpy", "cuda" or "cuda:N"

    At node n: z = x.w_in[n] + b_in[n]; y += act(z) * w_out[n]; go to 2n + 1 + (z > 0). z == 0 goes
    left; leaves add too. Arrays must be C-contiguous; they are copied.

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
        leaf: int = 1,
        silent: bool = False,
        b_leaf: np.ndarray | None = None,
        outputs: int | None = None,
        b_out: np.ndarray | None = None,
        dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None,
        activation: str = "gelu",
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        depth = check_int("depth", depth, 0, MAX_DEPTH)
        leaf = check_int("leaf", leaf, 1, MAX_WIDTH)
        silent = check_flag("silent", silent)
        check_activation(activation)
        shape = Shape(1, depth, leaf=leaf, silent=silent, bias_leaf=b_leaf is not None)
        ops = backends.get(device, dtype=dtype)
        w_in, b_in, w_out, b_leaf, b_out = (ops.to_host(a) for a in (w_in, b_in, w_out, b_leaf, b_out))
        why = f"a tree of depth={depth} has N = 2**(depth+1)-1 = {shape.count} nodes"
        if shape.has_blocks:
            why = f"a tree of depth={depth} and leaf={leaf} has N = 2**depth-1 + leaf*2**depth = {shape.count} neurons"
        check_array("w_in", w_in, ("trees", shape.count, "hidden"), because=why)
        trees, _, hidden = w_in.shape
        if trees == 0 or hidden == 0:
            check_array("w_in", w_in, (max(trees, 1), shape.count, max(hidden, 1)), because="a layer has at least one tree and one column")
        if outputs is None:
            check_array("w_out", w_out, w_in.shape, because="w_out has the shape of w_in, unless outputs= says how many columns it has")
        outputs = hidden if outputs is None else check_int("outputs", outputs, 1, MAX_WIDTH)
        check_array("w_out", w_out, (trees, shape.count, outputs), because=f"outputs={outputs}, and the other sizes are those of w_in")
        if b_in is not None:
            check_array("b_in", b_in, (trees, shape.count), because=why)
        from_w_out = f"w_out is {w_out.shape}"
        if b_leaf is not None:
            check_array("b_leaf", b_leaf, (trees, shape.blocks, outputs), because=f"there are 2**depth leaves, and {from_w_out}")
        if b_out is not None:
            check_array("b_out", b_out, (outputs,), because=from_w_out)

        always = None if dense is None else always_on(dense, ops, hidden, outputs)
        nodes = np.zeros((trees, shape.count, 2, max(hidden, outputs)), np.float32)
        nodes[:, :, 0, :hidden] = w_in
        nodes[:, :, 1, :outputs] = w_out
        arrays = Arrays(
            hidden,
            outputs,
            Tensor(nodes, "float32"),
            None if b_in is None else b_in.copy(),
            None if b_leaf is None else widened(b_leaf, nodes.shape[3]),
            None if b_out is None else widened(b_out, nodes.shape[3]),
            always,
        )
        self._prepare(arrays, depth, Form(activation, silent, leaf, shape.blocks, arrays.b_leaf), dtype, device, ops)

    @classmethod
    def from_fastfeedforward(
        cls, state: Mapping[str, Any], *, activation: str = "relu", dtype: str = "float32", device: str = "cpu"
    ) -> FFF:
        """A layer of the package fastfeedforward 0.2.1, from the state_dict of its FFF: arrays, or tensors on the CPU.

        state       node_weights (2**depth - 1, D), node_biases (2**depth - 1, 1), and per leaf w1s (2**depth, D, L), b1s (2**depth, L),
                    w2s (2**depth, L, outputs) and b2s (2**depth, outputs). Other entries are not read
        activation  of its leaves, which the state does not say: "relu" is that package's own default

        It computes what the package's training pass computes with hard decisions: z > 0 goes right, and b2s are added. The package's
        evaluation pass leaves b2s out, and sends z == 0 right.

        Raises InputError where an entry is missing, and ShapeError or DtypeError naming the one at fault.
        """
        names = ("node_weights", "node_biases", "w1s", "b1s", "w2s", "b2s")
        missing = [name for name in names if name not in state]
        if missing:
            raise InputError(f"state lacks {', '.join(missing)}, expected the state_dict of fastfeedforward's FFF: {', '.join(names)}")
        nodes, biases, w1, b1, w2, b2 = (check_state(name, state[name], shape) for name, shape in zip(names, STATE, strict=True))
        leaves, hidden, leaf = w1.shape
        outputs, depth = w2.shape[2], leaves.bit_length() - 1
        if leaves != 1 << depth or depth > MAX_DEPTH:
            raise ShapeError(f"w1s is {w1.shape}, expected 2**depth leaves, depth from 0 to {MAX_DEPTH}")
        for name, array, wanted in (
            ("node_weights", nodes, (leaves - 1, hidden)),
            ("node_biases", biases, (leaves - 1, 1)),
            ("b1s", b1, (leaves, leaf)),
            ("w2s", w2, (leaves, leaf, outputs)),
            ("b2s", b2, (leaves, outputs)),
        ):
            check_array(name, array, wanted, because=f"w1s is {w1.shape}: (leaves, inputs, leaf)")
        w_in = np.concatenate([nodes, w1.transpose(0, 2, 1).reshape(-1, hidden)])
        w_out = np.concatenate([np.zeros((leaves - 1, outputs), np.float32), w2.reshape(-1, outputs)])
        b_in = np.concatenate([biases[:, 0], b1.reshape(-1)])
        how: dict[str, Any] = {"activation": activation, "dtype": dtype, "device": device}
        return cls(w_in[None], b_in[None], w_out[None], depth=depth, leaf=leaf, silent=True, b_leaf=b2[None], outputs=outputs, **how)

    def _prepare(self, arrays: Arrays, depth: int, form: Form, dtype: str, device: str, ops: Reference) -> None:
        """Make the layer of arrays of its own."""
        trees, _, _, width = arrays.nodes.data.shape
        self.trees, self.depth, self.hidden, self.outputs = trees, depth, arrays.hidden, arrays.outputs
        self.leaf, self.silent = form.leaf, form.silent
        self.dtype = dtype if dtype in ops.dtypes else "float32"  # float16 needs a GPU
        self._ops = ops = ops.fitted(width, 0, self.dtype)
        self.device = ops.device
        arrays = arrays._replace(nodes=ops.own(arrays.nodes))
        made = ops.trees(arrays.nodes, arrays.b_in, None, depth, form)
        bias = None if arrays.b_out is None else ops.vector(Tensor(arrays.b_out, "float32"))
        dense_in = dense_out = None
        if arrays.dense is not None:
            d_in, d_bias, d_out = arrays.dense
            dense_in = Linear(ops.matrix(Tensor(d_in, "float32")), None if d_bias is None else ops.vector(Tensor(d_bias, "float32")))
            dense_out = Linear(ops.matrix(Tensor(d_out, "float32")))
        self._layer = FeedForward("fff", None, made, dense_in, dense_out, bias, form.activation, {})
        self._state = arrays, depth, form, dtype, device

    def __getstate__(self) -> tuple[Arrays, int, Form, str, str]:
        return self._state

    def __setstate__(self, state: tuple[Arrays, int, Form, str, str]) -> None:
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
        """The layer's output for x (T, D) float32: (T, outputs) float32, in `out` when given (it may not overlap x).

        On a GPU x may also be a GPU array of float32 or the layer's dtype: of CuPy, or with __cuda_array_interface__ or __dlpack__.
        The answer is then a CuPy array of x's dtype, on the caller's current stream.
        """
        ops = self._ops if threads is None else self._ops.using(threads)
        if self.hidden != self.outputs:
            check_layer_arrays(x, out, self.hidden, self.outputs)
            answer: np.ndarray = ops.call_layer(self._layer, max(self.hidden, self.outputs), self._widened(x))[:, : self.outputs]
            if out is None:
                return np.ascontiguousarray(answer)
            out[...] = answer
            return out
        answer = ops.call_layer(self._layer, self.hidden, x, out)
        return answer

    def routes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The paths of x (T, D): node ids (T, P, depth + 1) int32 and their logits z, same shape, float32.

        The number of a block, where a path ends, is that of the nodes plus its own; its z is 0.
        """
        if self.hidden != self.outputs:
            check_layer_arrays(x, None, self.hidden)
            x = self._widened(x)
        nodes, z = self._ops.layer_routes(self._layer, max(self.hidden, self.outputs), self.trees, x)
        return nodes, z

    def _widened(self, x: np.ndarray) -> np.ndarray:
        """x (T, D) with zeros behind its columns where there are more outputs."""
        return widened(x, max(self.hidden, self.outputs))

    def __repr__(self) -> str:
        shape = Shape(self.trees, self.depth, leaf=self.leaf, silent=self.silent)
        outputs = "" if self.hidden == self.outputs else f", outputs={self.outputs}"
        return f"FFF({shape}, hidden={self.hidden}{outputs}, {self.dtype}, {self.device})"


# The shapes of the entries of fastfeedforward's state; a name stands for any size.
STATE: tuple[tuple[int | str, ...], ...] = (
    *(("nodes", "inputs"), ("nodes", 1), ("leaves", "inputs", "leaf"), ("leaves", "leaf"), ("leaves", "leaf", "outputs")),
    ("leaves", "outputs"),
)


def check_state(name: str, value: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """An entry of a state as a float32 array. Raises DtypeError or ShapeError naming it."""
    try:
        array = np.ascontiguousarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"{name} is a {type(value).__name__}, expected an array of float32: {error}") from None
    return check_array(name, array, shape)


def check_activation(activation: Any) -> None:
    """Raise InputError unless `activation` is the name of one."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"activation is {short(activation)}, expected one of {', '.join(ACTIVATIONS)}{near(activation, ACTIVATIONS)}")


def always_on(dense: Any, ops: Reference, hidden: int, outputs: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The `dense` of Arrays from that of FFF. Raises DtypeError or ShapeError naming the array at fault."""
    if not isinstance(dense, tuple) or len(dense) != 3:
        raise DtypeError("dense is expected to be a tuple (w_in, b_in, w_out), shaped (W, D), (W,) or None, (W, D)")
    w_in, bias, w_out = (ops.to_host(a) for a in dense)
    check_array("dense w_in", w_in, ("W", hidden), because=f"hidden={hidden} comes from w_in")
    if not len(w_in):
        raise ShapeError(f"dense w_in is {w_in.shape}, expected at least one neuron that is always on, or dense=None")
    check_array("dense w_out", w_out, (len(w_in), outputs), because=f"it has the neurons of the dense w_in, and outputs={outputs}")
    if bias is not None:
        bias = check_array("dense b_in", bias, (len(w_in),)).copy()
    return widened(w_in, max(hidden, outputs)), bias, widened(w_out, max(hidden, outputs)).T.copy()


def widened(rows: np.ndarray, columns: int) -> np.ndarray:
    """A copy of rows (..., M) with zeros behind them, up to so many columns."""
    made = np.zeros((*rows.shape[:-1], columns), np.float32)
    made[..., : rows.shape[-1]] = rows
    return made


def fff(
    x: np.ndarray,
    w_in: np.ndarray,
    b_in: np.ndarray | None,
    w_out: np.ndarray,
    *,
    depth: int,
    leaf: int = 1,
    silent: bool = False,
    b_leaf: np.ndarray | None = None,
    outputs: int | None = None,
    b_out: np.ndarray | None = None,
    dense: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None,
    activation: str = "gelu",
    dtype: str = "float32",
    device: str = "cpu",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """FFF(...)(x) in one call. It copies the trees each time: for repeated calls, prepare an FFF."""
    tree: dict[str, Any] = {"depth": depth, "leaf": leaf, "silent": silent, "b_leaf": b_leaf, "outputs": outputs}
    layer = FFF(w_in, b_in, w_out, **tree, b_out=b_out, dense=dense, activation=activation, dtype=dtype, device=device)
    return layer(x, out=out, threads=threads)
