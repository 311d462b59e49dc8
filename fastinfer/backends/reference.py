"""The NumPy backend. Its ops are the contract for every other backend.

Arrays are float32 in C order. T: tokens, B: texts, D: hidden, H: heads, P: trees, N: nodes per tree. Ops write
into `out` and return nothing. They read all of their input before they write, unless a docstring says that `out`
may not be an input. Public functions check shapes, dtypes and ids before they call ops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import model
from ..activations import ACTIVATIONS, gelu
from ..batch import PackedBatch
from ..checkpoint.spec import tensors
from ..checkpoint.tensor import Tensor
from ..config import FFF, Config
from ..errors import BackendError, InputError, about, check_array, check_int
from ..feedforward import KINDS
from ..weights import Embedding, FeedForward, Layer, Norm, Weights, assemble
from ..workspace import Workspace

FLOAT32 = np.dtype(np.float32)
forward_fff = KINDS["fff"].forward  # looked up once: a layer alone has no other kind, and one token takes 3 us
GATHER_BYTES = 32 << 20  # bytes: rows of a tree that fff gathers at a time


def check_threads(threads: int | None) -> int | None:
    """`threads` as an int from 1 to 1024, or None for None. Raises BackendError for other values."""
    if threads is None:
        return None
    return check_int("threads", threads, 1, 1024, error=BackendError, because=", or None for the CPUs this process may use")


def check_layer_arrays(x: Any, out: Any, hidden: int) -> None:
    """Raise ShapeError, DtypeError or InputError unless a layer of `hidden` columns can read x and, if it is not None, write `out`."""
    check_array("x", x, ("T", hidden), because=f"hidden={hidden} comes from w_in")
    if out is None:
        return
    check_array("out", out, x.shape, because="out has the shape of x")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    if np.may_share_memory(x, out):
        raise InputError("out overlaps x: the walk reads x until it ends, so give another array")


class Trees(NamedTuple):
    """The trees of a layer: nodes (P, N, 2, D); b_in (P, N) or None; children (P, N, 2) int32 or None; depth: decisions of a walk."""

    nodes: np.ndarray
    b_in: np.ndarray | None
    children: np.ndarray | None
    depth: int


class Reference:
    """Every op in NumPy and float32."""

    name = "numpy"
    dtypes: tuple[str, ...] = ("float32",)
    # Tokens per packed batch: enough tokens share each read of a weight, and activations are about as large as an L3 (at D = 768:
    # 32 MB in float32, 22 MB with q, k and v in bfloat16). At 32x128, one batch of 4,096 took 3% (float32) to 15% (int8) longer.
    batch_tokens = 2048
    asynchronous = False  # whether encode and heads return before their work is done

    @property
    def device(self) -> str:
        """The name for which get() gives this backend."""
        return self.name

    def using(self, threads: int | None) -> Reference:
        """This backend with another number of threads. It does not change the threads of NumPy's BLAS."""
        check_threads(threads)
        return self

    def fitted(self, hidden: int, heads: int, stored: str) -> Reference:
        """The backend that prepares and runs weights of these sizes. It is this one, unless kernels depend on the sizes.

        hidden  columns of the activations
        heads   attention heads; 0: no attention
        stored  the stored dtype of the dense weights

        Raises BackendError for sizes or a dtype that this device does not compute.
        """
        return self

    # --- memory: the arrays that ops read and write ---

    def workspace(self) -> Workspace:
        """The buffers of one call. The caller closes them when the call ends."""
        return Workspace()

    def release(self) -> None:
        """Give back all memory except weights and the buffers of running calls."""

    def empty(self, *shape: int, dtype: Any = None) -> Any:
        """An uninitialised array for an op to write into. dtype None: the dtype of activations."""
        return np.empty(shape, np.float32 if dtype is None else dtype)

    def bring(self, array: Any) -> Callable[[], np.ndarray]:
        """A function that gives an op's result on the host; the copy starts now, the function waits for it. Floats become float32."""
        return lambda: array

    def to_host(self, array: Any) -> Any:
        """An array that a caller gave, copied to the host. An object that is not an array is returned, and later checks refuse it."""
        return array

    def rows(self, x: Any, which: np.ndarray) -> Any:
        """A copy of the rows with these numbers."""
        return x[which]

    # --- preparing weights, once at load ---

    def prepare(self, config: Config, stored: Mapping[str, Tensor], max_depth: int | None = None) -> Weights:
        """The Weights that ops take, from stored tensors. Errors name the tensor.

        max_depth  the most decisions of a walk down a tree; None: no limit

        The position table is made of sines if the config says so. A tied decoder is made from the word embedding.
        """
        prepared: dict[str, Any] = {}
        for name, (_, _, family) in tensors(config).items():
            if name not in stored:  # a scale: it is part of its Tensor
                continue
            with about(name):
                if family == "trees":
                    at = name.removesuffix(".nodes")
                    layer = config.ffn[int(at.split(".")[1])]
                    assert isinstance(layer, FFF)
                    depth = layer.depth if max_depth is None else min(layer.depth, max_depth)
                    b_in, children = (stored[f"{at}.{part}"].data if f"{at}.{part}" in stored else None for part in ("b_in", "children"))
                    prepared[f"{at}.trees"] = self.trees(stored[name], b_in, children, depth)
                elif family != "table" and not name.endswith(".ffn.b_in"):
                    prepare = self.table if name == "embedding.word" else self.matrix if family == "matrices" else self.vector
                    prepared[name] = prepare(stored[name])
            stored[name].release()  # packed tensors are not read again; mapped ones are read again page by page
        if config.tasks.fill_mask and config.tasks.fill_mask.tied:
            with about("embedding.word, which is the decoder, too"):
                prepared["tasks.fill_mask.decoder.weight"] = self.matrix(stored["embedding.word"])
            stored["embedding.word"].release()
        if config.positions.kind == "scaled-sinusoidal":
            table = sinusoids(config.positions.max, config.hidden)
            table *= stored["embedding.position_scale"].float32()
            prepared["embedding.position"] = self.vector(Tensor(table, "float32"))
        return assemble(config, prepared)

    def vector(self, values: Tensor) -> Any:
        """A bias, a norm's weight or a small table in the form that ops take."""
        return values.float32()

    def matrix(self, weight: Tensor) -> Any:
        """A dense weight (out, in) in the form that `linear` takes."""
        return weight.float32()

    def outputs(self, weight: Any) -> int:
        """The output size of a prepared matrix."""
        return len(weight)

    def table(self, rows: Tensor) -> Any:
        """The word embedding (V, D) in the form that `embed` takes."""
        return rows.float32()

    def own(self, rows: Tensor) -> Tensor:
        """A tensor that is not mapped from a file, in the memory that suits `trees` best."""
        return rows

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int) -> Any:
        """The trees of a layer for `fff`, as an object with `depth`: nodes (P, N, 2, D), b_in (P, N), children (P, N, 2)."""
        return Trees(nodes.float32(), b_in, children, depth)

    # --- the encoder, and the two blocks of its layers: model.py defines them ---

    def encode(
        self, weights: Weights, batch: PackedBatch, work: Workspace, *, taps: dict[int, Any] | None = None, routes: list[Any] | None = None
    ) -> Any:
        return model.encode(self, weights, batch, work, taps, routes)

    def attention_block(self, x: Any, layer: Layer, cu_seqlens: Any, weights: Weights, work: Workspace) -> None:
        model.attention_block(self, x, layer, cu_seqlens, weights, work)

    def ffn_block(self, x: Any, layer: Layer, weights: Weights, work: Workspace, *, routes: Any = None) -> None:
        model.ffn_block(self, x, layer, weights, work, routes)

    # --- primitives ---

    def embed(self, batch: PackedBatch, embedding: Embedding, *, out: np.ndarray) -> None:
        """out (T, D) = word[ids] + position[positions] + token_type[token_types], then the norm if there is one."""
        np.take(embedding.word, batch.ids, axis=0, out=out)
        out += embedding.position[batch.positions]
        if embedding.token_type is not None:
            out += embedding.token_type[0 if batch.token_types is None else batch.token_types]
        if embedding.norm is not None:
            self.norm(out, embedding.norm, embedding.eps, out=out)

    def linear(
        self,
        x: np.ndarray,
        weight: Any,
        *,
        bias: np.ndarray | None = None,
        activation: str | None = None,
        residual: np.ndarray | None = None,
        out: np.ndarray,
    ) -> None:
        """out (T, M) = activation(x @ weight.T + bias) + residual.

        x (T, K); weight: a prepared matrix (M, K); bias (M,); activation: None, "gelu", "tanh" or "relu";
        residual (T, M), which may be out itself.
        """
        y = x @ weight.T
        if bias is not None:
            y += bias
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        if residual is not None:
            y += residual
        out[...] = y

    def norm(self, x: np.ndarray, norm: Norm, eps: float, *, out: np.ndarray) -> None:
        """LayerNorm of each row: (x - mean) / sqrt(variance + eps) * weight + bias. x and out (T, D) may be the same.

        A row whose variance overflows float32 (deviations of about 1e19) becomes NaN.
        """
        centred = x - x.mean(-1, keepdims=True)
        centred -= centred.mean(-1, keepdims=True)  # the second pass removes the rounding error of a large mean
        variance = np.mean(centred * centred, -1, keepdims=True)
        centred /= np.where(np.isfinite(variance), np.sqrt(variance + np.float32(eps)), np.float32(np.nan))
        np.multiply(centred, norm.weight, out=out)
        out += norm.bias

    def qkv_dtype(self, head_size: int) -> Any:
        """The dtype of q, k and v between `linear` and `attention`."""
        return np.float32

    def attention(self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, *, out: np.ndarray) -> None:
        """Multi-head self-attention inside each text: softmax(q k^T / sqrt(D / H)) v.

        qkv (T, 3 D): q, then k, then v, each with its heads side by side; cu_seqlens (B + 1,); out (T, D).
        """
        size = out.shape[1] // heads
        for begin, end in itertools.pairwise(cu_seqlens.tolist()):
            q, k, v = qkv[begin:end].reshape(end - begin, 3, heads, size).transpose(1, 2, 0, 3)
            scores = q @ k.transpose(0, 2, 1) / np.float32(size**0.5)
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            out[begin:end] = (scores @ v).transpose(1, 0, 2).reshape(end - begin, -1)

    def fff(
        self,
        x: np.ndarray,
        trees: Any,
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        out: np.ndarray,
        nodes: np.ndarray | None = None,
        z: np.ndarray | None = None,
    ) -> None:
        """out (T, D) = the sum over the nodes that each token visits in P trees, plus bias and residual.

        x (T, D); bias (D,); residual (T, D), which may be out itself; out may not be x. If given, these are filled:
        nodes (T, P, depth + 1) int32, the visited nodes, -1 after a stop; z, same shape, their logits, 0 after a stop.

        At node n: z = x.in[n] + b_in[n]; y += gelu(z) * out[n]; go to 2n + 1 + (z > 0), or where
        children[n, z > 0] says, -1 = stop. z == 0 goes left. This takes 2 T P (depth + 1) D multiply-adds.
        """
        w_in, w_out = trees.nodes[:, :, 0], trees.nodes[:, :, 1]
        step = max(1, GATHER_BYTES // (4 * x.shape[1]))
        for begin in range(0, len(x), step):
            part = slice(begin, min(begin + step, len(x)))
            y = np.zeros((part.stop - begin, x.shape[1]), np.float32)
            for p in range(len(w_in)):
                tokens, at = np.arange(len(y)), np.zeros(len(y), np.int32)
                for level in range(trees.depth + 1):
                    logit = np.einsum("td,td->t", x[part][tokens], w_in[p, at])
                    if trees.b_in is not None:
                        logit += trees.b_in[p, at]
                    y[tokens] += gelu(logit)[:, None] * w_out[p, at]
                    for record, value, stopped in ((nodes, at, -1), (z, logit, 0)):
                        if record is not None:
                            record[part, p, level] = stopped
                            record[begin + tokens, p, level] = value
                    right = logit > 0
                    at = (2 * at + 1 + right).astype(np.int32) if trees.children is None else trees.children[p, at, right.astype(np.int8)]
                    tokens, at = tokens[at >= 0], at[at >= 0]
            if bias is not None:
                y += bias
            if residual is not None:
                y += residual[part]
            out[part] = y

    def pool(self, x: np.ndarray, cu_seqlens: np.ndarray, kind: str, *, skip: int = 0, out: np.ndarray) -> None:
        """out (B, D), which may be columns of a wider array, = one vector per text from x (T, D).

        kind: "mean", "max" or "lse" (the log of the sum of exp) over the tokens of the text; "cls", its first token; "lasttoken";
        "weightedmean", the mean weighted by place, from 1; "sqrtmean", the sum over the square root of the number of tokens.
        skip: tokens that are left out at the beginning of each text, though never its last token. Places count them.
        """
        first, behind = cu_seqlens[:-1], cu_seqlens[1:]
        if kind == "lasttoken":
            out[...] = x[behind - 1]
            return
        places = np.arange(len(x), dtype=np.int32) - np.repeat(first, behind - first)
        if skip:
            kept = places >= np.repeat(np.minimum(skip, behind - first - 1), behind - first)
            x, places = x[kept], places[kept]
            lengths = np.maximum(behind - first - skip, 1)
            first = np.cumsum(lengths) - lengths
        else:
            lengths = behind - first
        counts = lengths[:, None].astype(np.float32)
        if kind == "cls":
            out[...] = x[first]
        elif kind == "mean":
            out[...] = np.add.reduceat(x, first, axis=0) / counts
        elif kind == "sqrtmean":
            out[...] = np.add.reduceat(x, first, axis=0) / np.sqrt(counts)
        elif kind == "weightedmean":
            weights = (places + 1).astype(np.float32)[:, None]
            out[...] = np.add.reduceat(x * weights, first, axis=0) / np.add.reduceat(weights, first, axis=0)
        else:
            top = np.maximum.reduceat(x, first, axis=0)
            out[...] = top
            if kind == "lse":
                out += np.log(np.add.reduceat(np.exp(x - np.repeat(top, lengths, axis=0)), first, axis=0))

    def unit(self, x: Any, *, out: Any) -> None:
        """Each row (M,) of x (B, M) scaled to length 1. A row of zeros stays zero. x and out may be the same."""
        np.divide(x, np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12)), out=out)

    # --- a layer alone, for the public FFF ---

    def call_layer(self, layer: FeedForward, hidden: int, x: Any, out: Any = None) -> Any:
        """feedforward(x) (T, hidden) float32 for an array x of the same shape, written into `out` if that is given.

        layer  the prepared weights of one feedforward, as feedforward.forward takes them
        out    may not overlap x

        A GPU backend also takes arrays of its device, and then the result is one, too. Raises ShapeError, DtypeError or InputError.
        """
        # One token takes a few microseconds, so a cheap test accepts correct arrays before the slower checks explain wrong ones.
        if not (type(x) is np.ndarray and x.dtype == FLOAT32 and x.ndim == 2 and x.shape[1] == hidden and x.flags.carray):
            check_layer_arrays(x, None, hidden)
        if out is None:
            out = np.empty(x.shape, FLOAT32)
        elif not (
            type(out) is np.ndarray
            and out.dtype == FLOAT32
            and out.shape == x.shape
            and out.flags.carray
            and not np.may_share_memory(x, out)
        ):
            check_layer_arrays(x, out, hidden)
        work = None if layer.dense_in is None else Workspace()
        forward_fff(self, x, layer, residual=None, out=out, work=work)
        return out

    def layer_routes(self, layer: FeedForward, hidden: int, trees: int, x: Any) -> tuple[Any, Any]:
        """The routes of x (T, hidden) through the `trees` of a layer: node ids (T, trees, depth + 1) int32, and their logits z, float32."""
        check_layer_arrays(x, None, hidden)
        assert layer.trees is not None
        nodes = np.empty((len(x), trees, layer.trees.depth + 1), np.int32)
        z = np.empty(nodes.shape, np.float32)
        self.fff(x, layer.trees, bias=None, residual=None, out=np.empty_like(x), nodes=nodes, z=z)
        return nodes, z


def sinusoids(positions: int, hidden: int) -> np.ndarray:
    """(positions, D) float32: sin(p w_i) in column 2i, cos(p w_i) in 2i + 1, w_i = 10000**(-2i / D) (Vaswani et al., arXiv 1706.03762)."""
    frequencies = 10000.0 ** (-np.arange(0, hidden, 2) / hidden)
    table = np.empty((positions, hidden), np.float32)
    for position, row in enumerate(table):
        np.sin(position * frequencies, out=row[0::2], casting="same_kind")
        np.cos(position * frequencies[: hidden // 2], out=row[1::2], casting="same_kind")
    return table
