"""The NumPy backend: the contract that every other backend keeps, op by op.

Arrays are float32, C order. T tokens, B texts, D hidden, H heads, P trees, N nodes per tree. Ops write
into `out`, return nothing, and read all of their input before they write, except where a docstring says
that `out` may not be an input. The public entrances have checked shapes, dtypes and ids.
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
GATHER_BYTES = 32 << 20  # rows of a tree that fff gathers at a time


def check_threads(threads: int | None) -> int | None:
    """`threads` as an int; None stays. Raises BackendError for anything but a positive integer."""
    if threads is None:
        return None
    return check_int("threads", threads, 1, 1024, error=BackendError, because=", or None for the CPUs this process may use")


def check_layer_arrays(x: Any, out: Any, hidden: int) -> None:
    """Raise ShapeError, DtypeError or InputError unless a layer of `hidden` columns can read x and write `out` (None: it makes one)."""
    check_array("x", x, ("T", hidden), because=f"hidden={hidden} comes from w_in")
    if out is None:
        return
    check_array("out", out, x.shape, because="out has the shape of x")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    if np.may_share_memory(x, out):
        raise InputError("out overlaps x: the walk reads x until it ends, so give another array")


class Trees(NamedTuple):
    """nodes (P, N, 2, D); b_in (P, N) or None; children (P, N, 2) int32 or None; depth: decisions to walk, at most the tree's."""

    nodes: np.ndarray
    b_in: np.ndarray | None
    children: np.ndarray | None
    depth: int


class Reference:
    """Every op in NumPy, float32."""

    name = "numpy"
    dtypes: tuple[str, ...] = ("float32",)
    # Tokens per packed batch: weights are still read for many at a time, and activations (32 MB at D = 768 in float32, 22 with q, k and
    # v in bfloat16) are of the size of an L3. At 32x128 one batch of 4,096 took 3% (float32) to 15% (int8) more.
    batch_tokens = 2048
    asynchronous = False  # whether encode and heads only start work, which leaves the host free

    @property
    def device(self) -> str:
        """What get() takes to give this backend."""
        return self.name

    def using(self, threads: int | None) -> Reference:
        """This backend with another number of threads; NumPy's own threads are not ours to set."""
        check_threads(threads)
        return self

    def fitted(self, hidden: int, heads: int, stored: str) -> Reference:
        """The backend that prepares and runs weights of these sizes: this one, where kernels do not depend on them.

        hidden  columns of the activations
        heads   attention heads; 0: no attention
        stored  the dtype of the dense weights as they are stored

        Raises BackendError for sizes or a dtype that this device does not compute.
        """
        return self

    # --- memory: the arrays that ops take and give ---

    def workspace(self) -> Workspace:
        """The buffers of one call, to be closed when it ends."""
        return Workspace()

    def release(self) -> None:
        """Give back memory that no call is using and that is not weights."""

    def empty(self, *shape: int, dtype: Any = None) -> Any:
        """An uninitialised array for an op to write into. dtype None: that of activations."""
        return np.empty(shape, np.float32 if dtype is None else dtype)

    def bring(self, array: Any) -> Callable[[], np.ndarray]:
        """Start to bring an op's result to the host; what is returned waits for it and gives it, float32 where it is of floats."""
        return lambda: array

    def to_host(self, array: Any) -> Any:
        """An array that a caller gave, on the host; what is no array is left to the checks."""
        return array

    def rows(self, x: Any, which: np.ndarray) -> Any:
        """A copy of the rows with these numbers."""
        return x[which]

    # --- preparing weights, once at load ---

    def prepare(self, config: Config, stored: Mapping[str, Tensor], max_depth: int | None = None) -> Weights:
        """Stored tensors to what the ops take.

        Trees are walked at most `max_depth` decisions deep; a position table is made of sines where the config
        says so; a tied decoder is the word embedding. Errors name the tensor.
        """
        prepared: dict[str, Any] = {}
        for name, (_, _, family) in tensors(config).items():
            if name not in stored:  # a scale: it came with its tensor
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
            stored[name].release()  # what was packed is not read again; what is used where it lies comes back page by page
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
        """A bias, a norm's weight or a small table as the ops want it."""
        return values.float32()

    def matrix(self, weight: Tensor) -> Any:
        """A dense weight (out, in) as `linear` wants it."""
        return weight.float32()

    def outputs(self, weight: Any) -> int:
        """The output size of a prepared matrix."""
        return len(weight)

    def table(self, rows: Tensor) -> Any:
        """The word embedding (V, D) as `embed` wants it."""
        return rows.float32()

    def own(self, rows: Tensor) -> Tensor:
        """A tensor that no file holds, in memory that suits `trees` best."""
        return rows

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int) -> Any:
        """The trees of a layer as `fff` wants them, with a `depth`: nodes (P, N, 2, D), b_in (P, N), children (P, N, 2)."""
        return Trees(nodes.float32(), b_in, children, depth)

    # --- the encoder, and the two blocks of its layers: model.py says what they do ---

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
        """out (T, D) = word[ids] + position[place in its text] + token_type[types], normed where there is a norm."""
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

        x (T, K); weight a prepared matrix (M, K); bias (M,); activation None, "gelu", "tanh" or "relu";
        residual (T, M), may be out itself.
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
        """LayerNorm of each row: (x - mean) / sqrt(variance + eps) * weight + bias. x, out (T, D), may be the same.

        A row whose variance float32 cannot hold (deviations of 1e19) becomes NaN.
        """
        centred = x - x.mean(-1, keepdims=True)
        centred -= centred.mean(-1, keepdims=True)  # where the mean is large, so is its rounding error
        variance = np.mean(centred * centred, -1, keepdims=True)
        centred /= np.where(np.isfinite(variance), np.sqrt(variance + np.float32(eps)), np.float32(np.nan))
        np.multiply(centred, norm.weight, out=out)
        out += norm.bias

    def qkv_dtype(self, head_size: int) -> Any:
        """The dtype in which `linear` hands q, k and v to `attention`."""
        return np.float32

    def attention(self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, *, out: np.ndarray) -> None:
        """Multi-head self-attention inside each text: softmax(q k^T / sqrt(D / H)) v.

        qkv (T, 3 D): q, then k, then v, heads side by side in each; cu_seqlens (B + 1,); out (T, D).
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
        """Send each token down P trees; sum what the visited nodes say; add bias and residual.

        x (T, D); bias (D,); residual (T, D), may be out itself; out (T, D), not x. To be filled when
        given: nodes (T, P, depth + 1) int32, the visited nodes, -1 after a stop; z, same shape, their logits, 0 after a stop.

        At node n: z = x.in[n] + b_in[n]; y += gelu(z) * out[n]; go to 2n + 1 + (z > 0), or where
        children[n, z > 0] says, -1 = stop. z == 0 goes left. 2 T P (depth + 1) D multiply-adds.
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

    def pool(self, x: np.ndarray, cu_seqlens: np.ndarray, kind: str, *, out: np.ndarray) -> None:
        """One vector per text: "mean", "max" or "lse" (log of the sum of exp) over its tokens, or "cls", its first.

        x (T, D), out (B, D).
        """
        first, lengths = cu_seqlens[:-1], (cu_seqlens[1:] - cu_seqlens[:-1])[:, None]
        if kind == "cls":
            out[...] = x[first]
        elif kind == "mean":
            out[...] = np.add.reduceat(x, first, axis=0) / lengths.astype(np.float32)
        else:
            top = np.maximum.reduceat(x, first, axis=0)
            out[...] = top
            if kind == "lse":
                out += np.log(np.add.reduceat(np.exp(x - np.repeat(top, lengths[:, 0], axis=0)), first, axis=0))

    # --- a layer alone: what the public FFF asks for ---

    def call_layer(self, layer: FeedForward, hidden: int, x: Any, out: Any = None) -> Any:
        """feedforward(x) for an array x (T, hidden) float32 that a caller gave, in `out` when given (it may not overlap x).

        layer  the prepared weights of one feedforward, as feedforward.forward takes them

        A device's own arrays may be taken, too; the answer is then one of them. Raises ShapeError, DtypeError, InputError.
        """
        # One token takes a few microseconds: a right x is recognised before a wrong one is explained.
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
        KINDS[layer.kind].forward(self, x, layer, residual=None, out=out, work=work)
        return out

    def layer_routes(self, layer: FeedForward, hidden: int, trees: int, x: Any) -> tuple[Any, Any]:
        """The paths of x (T, hidden) down the `trees` of a layer: node ids (T, trees, depth + 1) int32, and their logits z, float32."""
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
