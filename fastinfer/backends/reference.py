"""The NumPy backend. Its ops are the contract for every other backend.

Arrays are float32 in C order. T: tokens, B: texts, D: hidden, H: heads, P: trees, N: nodes per tree. Ops write
into `out` and return nothing. They read all of their input before they write, unless a docstring says that `out`
may not be an input. Public functions check shapes, dtypes and ids before they call ops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import model
from ..activations import ACTIVATIONS
from ..batch import PackedBatch
from ..checkpoint.spec import tensors
from ..checkpoint.tensor import Tensor
from ..config import FFF, Alibi, Buckets, Config, Disentangled
from ..errors import BackendError, InputError, about, check_array, check_int
from ..feedforward import KINDS
from ..positions import distance_table, relative_rows, rotary_table, sinusoids
from ..weights import NODES, PLAIN, Embedding, FeedForward, Form, Layer, Norm, Relative, Scores, Weights, assemble
from ..workspace import Workspace
from .pooling import pooled
from .search import Search
from .trees import Trees, add_trees

FLOAT32 = np.dtype(np.float32)
forward_fff = KINDS["fff"].forward  # looked up once: a layer alone has no other kind, and one token takes 3 us


def check_threads(threads: int | None) -> int | None:
    """`threads` as an int from 1 to 1024, or None for None. Raises BackendError for other values."""
    if threads is None:
        return None
    return check_int("threads", threads, 1, 1024, error=BackendError, because=", or None for the CPUs this process may use")


def check_layer_arrays(x: Any, out: Any, hidden: int, outputs: int | None = None) -> None:
    """Raise ShapeError, DtypeError or InputError unless a layer of `hidden` columns can read x and, if it is not None, write `out`.

    outputs  the columns of `out`; None: as many as those of x
    """
    check_array("x", x, ("T", hidden), because=f"hidden={hidden} comes from w_in")
    if out is None:
        return
    if outputs is None:
        check_array("out", out, x.shape, because="out has the shape of x")
    else:
        check_array("out", out, (len(x), outputs), because=f"it has the rows of x, and {outputs} columns come from w_out")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    if np.may_share_memory(x, out):
        raise InputError("out overlaps x: the walk reads x until it ends, so give another array")


class Reference(Search):
    """Every op in NumPy and float32."""

    name = "numpy"
    most_neurons = 1 << 62  # values of a dense layer's neurons that are computed before their second product
    dtypes: tuple[str, ...] = ("float32",)
    # Tokens per packed batch: enough tokens share each read of a weight, and activations are about as large as an L3 (at D = 768:
    # 32 MB in float32, 22 MB with q, k and v in bfloat16). At 32x128, one batch of 4,096 took 3% (float32) to 15% (int8) longer.
    batch_tokens = 2048
    asynchronous = False  # whether encode and heads return before their work is done
    threads: int | None = None  # of a call; None: their number is not known

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
        """A function that gives an op's result on the host; the copy starts now, the function waits for it. Floats become float32.

        An array that a head made on the host is given as it is.
        """
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
        rows = relative_rows(config.distances, config.positions.max) if isinstance(config.distances, Disentangled) else None
        for name, (_, _, family) in tensors(config).items():
            if name not in stored:  # a scale: it is part of its Tensor
                continue
            with about(name):
                if family == "trees":
                    at = name.removesuffix(".nodes")
                    layer = config.ffn[int(at.split(".")[1])]
                    assert isinstance(layer, FFF)
                    depth = layer.depth if max_depth is None else min(layer.depth, max_depth)
                    if depth < layer.depth and layer.silent:
                        raise InputError(f"max_depth is {depth}, expected {layer.depth} or more: nodes are silent, and only leaves add")
                    b_in, children, b_leaf = (
                        stored[f"{at}.{part}"].data if f"{at}.{part}" in stored else None for part in ("b_in", "children", "b_leaf")
                    )
                    form = Form(layer.activation or "gelu", layer.silent, layer.leaf, layer.blocks, b_leaf)
                    prepared[f"{at}.trees"] = self.trees(stored[name], b_in, children, depth, form)
                elif name.endswith(".relative_keys"):
                    queries = stored[name.replace("_keys", "_queries")]
                    assert rows is not None
                    prepared[name.removesuffix("_keys")] = self.relative(stored[name], queries, rows, config.heads)
                elif family != "table" and not name.endswith((".ffn.b_in", ".ffn.b_leaf", ".relative_queries", "distances.bias")):
                    prepare = self.table if name == "embedding.word" else self.matrix if family == "matrices" else self.vector
                    prepared[name] = prepare(stored[name])
            stored[name].release()  # packed tensors are not read again; mapped ones are read again page by page
        if config.tasks.fill_mask and config.tasks.fill_mask.tied:
            with about("embedding.word, which is the decoder, too"):
                prepared["tasks.fill_mask.decoder.weight"] = self.matrix(stored["embedding.word"])
            stored["embedding.word"].release()
        prepared |= self.tables(config, stored)
        return assemble(config, prepared)

    def tables(self, config: Config, stored: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tables of positions that are computed, not stored, in the form that ops take."""
        made: dict[str, Any] = {}
        positions, size = config.positions.max, config.width_of_head
        if config.positions.kind == "scaled-sinusoidal":
            sines = sinusoids(positions, config.embedding_width or config.hidden)
            sines *= stored["embedding.position_scale"].float32()
            made["embedding.position"] = self.vector(Tensor(sines, "float32"))
        for theta, scale in {(layer.theta, layer.scale) for layer in config.attention}:
            if theta is not None:
                made[f"rotary.{theta}.{scale}"] = self.floats(rotary_table(positions, size, theta, scale))
        if isinstance(config.distances, (Buckets, Alibi)):
            bias = stored["distances.bias"].float32() if "distances.bias" in stored else None
            made["distances"] = self.floats(distance_table(config.distances, positions, config.heads, bias))
        return made

    def floats(self, values: np.ndarray) -> Any:
        """A computed table in the backend's memory, in float32."""
        return values

    def relative(self, keys: Tensor, queries: Tensor, rows: np.ndarray, heads: int) -> Any:
        """The tables of disentangled attention for `attention`: keys, queries (2 * buckets, D), rows (2 R - 1,), as in weights.Relative."""
        return Relative(keys.float32(), queries.float32(), rows)

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

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form = NODES) -> Any:
        """The trees of a layer for `fff`, as an object with `depth`: nodes (P, N, 2, D), b_in (P, N), children (P, I, 2), as in Trees."""
        return Trees(nodes.float32(), b_in, children, depth, form)

    # --- the encoder, and the two blocks of its layers: model.py defines them ---

    def encode(
        self, weights: Weights, batch: PackedBatch, work: Workspace, *, taps: dict[int, Any] | None = None, routes: list[Any] | None = None
    ) -> Any:
        return model.encode(self, weights, batch, work, taps, routes)

    def attention_block(self, x: Any, layer: Layer, cu_seqlens: Any, weights: Weights, work: Workspace, *, keys: Any = None) -> None:
        model.attention_block(self, x, layer, cu_seqlens, weights, work, keys)

    def ffn_block(self, x: Any, layer: Layer, weights: Weights, work: Workspace, *, routes: Any = None) -> None:
        model.ffn_block(self, x, layer, weights, work, routes)

    # --- primitives ---

    def embed(self, batch: PackedBatch, embedding: Embedding, *, out: np.ndarray) -> None:
        """out (T, E) = word[ids] + position[positions] + token_type[token_types], then the norm if there is one."""
        np.take(embedding.word, batch.ids, axis=0, out=out)
        table, places = embedding.placed(batch)
        if table is not None:
            out += table[places]
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
        gate: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        out: np.ndarray,
    ) -> None:
        """out (T, M) = activation(x @ weight.T + bias) * gate + residual.

        x (T, K); weight: a prepared matrix (M, K); bias (M,); activation: None or a key of ACTIVATIONS;
        gate and residual (T, M), of which a call has at most one, and which may be out itself.
        """
        y = x @ weight.T
        if bias is not None:
            y += bias
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        if gate is not None:
            y *= gate
        if residual is not None:
            y += residual
        out[...] = y

    def norm(self, x: np.ndarray, norm: Norm, eps: float, *, out: np.ndarray) -> None:
        """LayerNorm of each row: (x - mean) / sqrt(variance + eps) * weight + bias. x and out (T, D) may be the same.

        Without a bias it is an RMSNorm: x / sqrt(mean(x**2) + eps) * weight. A row whose variance overflows float32
        (deviations of about 1e19) becomes NaN.
        """
        if norm.bias is None:
            np.multiply(rms(x, eps), norm.weight, out=out)
            return
        centred = x - x.mean(-1, keepdims=True)
        centred -= centred.mean(-1, keepdims=True)  # the second pass removes the rounding error of a large mean
        variance = np.mean(centred * centred, -1, keepdims=True)
        centred /= np.where(np.isfinite(variance), np.sqrt(variance + np.float32(eps)), np.float32(np.nan))
        np.multiply(centred, norm.weight, out=out)
        out += norm.bias

    def qkv_dtype(self, head_size: int) -> Any:
        """The dtype of q, k and v between `linear` and `attention`."""
        return np.float32

    def norm_heads(self, qkv: np.ndarray, heads: int, query: np.ndarray, key: np.ndarray, eps: float) -> None:
        """Put q and k of qkv (T, 3 H S) in place through an RMSNorm of each head; query and key (S,) are its weights for q and for k."""
        inner = heads * len(query)
        for begin, weight in ((0, query), (inner, key)):
            part = qkv[:, begin : begin + inner].reshape(len(qkv), heads, len(weight))  # a view, since the columns are contiguous
            np.multiply(rms(part.copy(), eps), weight, out=part)

    def rotate(self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, table: np.ndarray) -> None:
        """Turn q and k in place by their positions: columns i and S/2 + i of a head of S values are a pair, turned by one angle.

        qkv (T, 3 D), as attention() takes it; table (positions, S) as positions.rotary_table makes it: cosines, then sines.
        """
        places = np.arange(len(qkv)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        half = table.shape[1] // 2
        cos, sin = table[places, None, :half], table[places, None, half:]
        pairs = qkv[:, : qkv.shape[1] // 3 * 2].reshape(len(qkv), 2 * heads, 2, half)  # a view, since the columns are contiguous
        first, second = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        pairs[:, :, 0] = first * cos - second * sin
        pairs[:, :, 1] = second * cos + first * sin

    def attention(
        self, qkv: np.ndarray, cu_seqlens: np.ndarray, heads: int, *, scores: Scores = PLAIN, keys: Any = None, out: np.ndarray
    ) -> None:
        """Multi-head self-attention inside each text: softmax(q k^T / sqrt(S) + what `scores` adds) v.

        qkv (T, 3 D): q, then k, then v, each with its heads side by side; cu_seqlens (B + 1,); out (T, D).
        keys (B,) int32: all tokens of a text see only so many at its beginning, at least one; None: they see all. Then no window.
        """
        size = out.shape[1] // heads
        for b, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            q, k, v = qkv[begin:end].reshape(end - begin, 3, heads, size).transpose(1, 2, 0, 3)
            s = q @ k.transpose(0, 2, 1)
            if scores.relative is not None:
                s += relative_scores(q, k, scores.relative)
            s /= np.float32(size**0.5)
            if scores.distances is not None:
                s += by_distance(scores.distances, end - begin)
            place = np.arange(end - begin)
            if scores.causal:
                s[:, place[:, None] < place] = -np.inf
            if scores.window is not None:
                s[:, np.abs(place[:, None] - place) > scores.window] = -np.inf
            if keys is not None:
                s, v = s[:, :, : keys[b]], v[:, : keys[b]]
            s -= s.max(-1, keepdims=True)
            np.exp(s, out=s)
            s /= s.sum(-1, keepdims=True)
            out[begin:end] = (s @ v).transpose(1, 0, 2).reshape(end - begin, -1)

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
        """out (T, D) = the sum over the neurons that each token visits in P trees, plus bias and residual.

        x (T, D); bias (D,); residual (T, D), which may be out itself; out may not be x. If given, these are filled:
        nodes (T, P, depth + 1) int32, the visited nodes, -1 after a stop; z, same shape, their logits, 0 after a stop and at a block.

        At node n: z = x.in[n] + b_in[n]; y += act(z) * out[n], unless nodes are silent; go to 2n + 1 + (z > 0), or where
        children[n, z > 0] says, -1 = stop. z == 0 goes left. This takes 2 T P (depth + 1) D multiply-adds.
        A number n >= I is block b = n - I, where a walk ends: y += act(x @ in.T + b_in) @ out + b_leaf[b] over neurons I + b L + 0..L-1.
        """
        add_trees(x, trees, bias, residual, out, nodes, z)

    def pool(self, x: np.ndarray, cu_seqlens: np.ndarray, kind: str, *, skip: int = 0, out: np.ndarray) -> None:
        """out (B, D), which may be columns of a wider array, = one vector per text from x (T, D).

        kind: "mean", "max" or "lse" (the log of the sum of exp) over the tokens of the text; "cls", its first token; "lasttoken";
        "weightedmean", the mean weighted by place, from 1; "sqrtmean", the sum over the square root of the number of tokens.
        skip: tokens that are left out at the beginning of each text, though never its last token. Places count them.
        """
        out[...] = pooled(x, cu_seqlens, kind, skip)

    def unit(self, x: Any, *, out: Any) -> None:
        """Each row (M,) of x (B, M) scaled to length 1. A row of zeros stays zero. x and out may be the same."""
        np.divide(x, np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12)), out=out)

    def largest(self, x: np.ndarray, cu_seqlens: np.ndarray, *, out: np.ndarray) -> None:
        """out (B, M) float32 = the largest value of each column of x (T, M) in each text; M may be wider than the hidden size."""
        for row, (begin, end) in zip(out, itertools.pairwise(cu_seqlens.tolist()), strict=True):
            np.maximum.reduce(x[begin:end], axis=0, out=row)  # reduceat took 10 to 30 times as long for a vocabulary of 30,522

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


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x**2) + eps) over the last axis. A row whose mean square overflows float32 becomes NaN."""
    square = np.mean(x * x, -1, keepdims=True)
    unit: np.ndarray = x / np.where(np.isfinite(square), np.sqrt(square + np.float32(eps)), np.float32(np.nan))
    return unit


def by_distance(table: np.ndarray, length: int) -> np.ndarray:
    """A view (..., length, length) of a table (..., 2 R - 1) whose entry R - 1 + j - i belongs to row i and column j."""
    middle = table.shape[-1] // 2
    near = table[..., middle - length + 1 : middle + length]
    return np.lib.stride_tricks.sliding_window_view(near, length, -1)[..., ::-1, :]


def relative_scores(q: np.ndarray, k: np.ndarray, relative: Relative) -> np.ndarray:
    """(H, L, L): q_i . keys[d] + k_j . queries[d], d = index[i - j], for q and k (H, L, S). weights.Relative has the formula."""
    heads, length, size = q.shape
    rows = by_distance(relative.rows, length).T  # (i, j): the row of distance i - j
    keys, queries = (table.reshape(-1, heads, size).transpose(1, 2, 0) for table in (relative.keys, relative.queries))
    place = np.arange(length)
    added: np.ndarray = (q @ keys)[:, place[:, None], rows] + (k @ queries)[:, place, rows]
    return added
