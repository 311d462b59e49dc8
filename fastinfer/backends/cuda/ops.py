"""The ops of backends/reference.py on a GPU, by the kernels of src/cuda and by cuBLASLt.

Activations and dense weights have one dtype, the model's compute dtype. Rows of trees have that dtype or int8.
A forward pass is a CUDA graph, captured once per batch size. Its work on the host is one copy in and one launch.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import feedforward
from ...batch import PackedBatch
from ...checkpoint.tensor import Tensor
from ...config import Config
from ...weights import PLAIN, Embedding, FeedForward, Layer, Norm, Relative, Scores, Weights
from ..reference import Reference
from .arrays import Arrays, is_of_host
from .attention import Attention
from .device import check_config, check_places, check_sizes, limits
from .kernels import Kernels, Narrow
from .memory import Memory
from .plan import bucket, few_rows
from .session import Placed, Session, Sessions
from .shared import ACTIVATIONS, MACROS, POOLINGS, PRODUCT_WARPS, WARPS
from .trees import TreeOps
from .weights import Matrix, Packing


class CUDA(Reference):
    """One GPU, and the dtype that the caller asked for. fitted() gives the backend that has ops."""

    name = "cuda"
    dtypes = ("float32", "float16", "bfloat16", "int8")
    batch_tokens = 16384  # tokens: each read of weights serves many, and the GPU takes longer than the host
    asynchronous = True

    def __init__(self, number: int = 0, dtype: str | None = None) -> None:
        import cupy

        self.cupy, self.number, self.dtype = cupy, number, dtype

    @property
    def device(self) -> str:
        return f"cuda:{self.number}"

    def to_host(self, array: Any) -> Any:
        return self.cupy.asnumpy(array) if hasattr(array, "__cuda_array_interface__") else array

    def fitted(self, hidden: int, heads: int, stored: str) -> CUDA:
        return FittedCUDA(self.number, self.dtype, hidden, heads, stored)


class FittedCUDA(TreeOps, CUDA):
    """One GPU, with kernels compiled for a hidden size, a number of heads and a compute dtype.

    act      the dtype of activations and dense weights
    storage  NumPy's dtype of the bits of act
    """

    def __init__(self, number: int, dtype: str | None, hidden: int, heads: int, stored: str) -> None:
        super().__init__(number, dtype)
        wanted = dtype or stored
        self.act = "float16" if wanted == "int8" else wanted
        self.int8_rows = wanted == "int8"
        self.limits = limits(self.cupy, number)
        check_sizes(hidden, heads, self.act, self.limits, self.device)
        self.memory = Memory(self.cupy, number, self.batch_tokens)
        self.packing = Packing(self.memory, self.act, self.int8_rows, hidden)
        self.sessions = Sessions(self.memory, self.act)
        self.storage = self.sessions.storage
        self.arrays = Arrays(self.memory, self.act, self.packing.width)
        self.kernels = Kernels(self.cupy, number, self.limits, MACROS[self.act], self.packing.width, heads, self.int8_rows)
        self._has_few_rows = self.act != "float32" and self.limits.capability >= 80
        if heads:
            self._attention = Attention(self.kernels, self.memory, self.sessions, heads)

    # --- memory ---

    def workspace(self) -> Session:
        return self.sessions.take()

    def release(self) -> None:
        self.sessions.clear()
        self.memory.free()

    def empty(self, *shape: int, dtype: Any = None) -> Any:
        return self.memory.allocate("a result", shape, self.storage if dtype is None else dtype)

    def bring(self, array: Any) -> Callable[[], np.ndarray]:
        if type(array) is np.ndarray:
            return lambda: array
        return self.memory.bring(self._as_float32(self.cupy.ascontiguousarray(array)))

    def _as_float32(self, array: Any) -> Any:
        """A contiguous array as float32 if it has the compute dtype; the array itself if not."""
        if array.dtype == self.storage and array.dtype != np.float32 and array.size:
            bits, array = array, self.empty(*array.shape, dtype=np.float32)
            self.kernels.launch("to_float32", min(4096, -(-array.size // 2048)), 256, bits, array, ctypes.c_int64(array.size))
        return array

    def rows(self, x: Any, which: np.ndarray) -> Any:
        return x[self.memory.send("indices", which)]

    # --- preparing weights ---

    def prepare(self, config: Config, stored: Any, max_depth: int | None = None) -> Weights:
        check_config(config)
        with self.cupy.cuda.Device(self.number) as device:
            weights = super().prepare(config, stored, max_depth)
            for layer in weights.layers:
                self._attention.load(layer.attention.scores)
            device.synchronize()  # the streams of sessions do not wait for copies on this stream
        return weights

    def vector(self, values: Tensor) -> Any:
        return self.packing.vector(values.float32())

    def table(self, rows: Tensor) -> Any:
        return self.packing.vector(rows.float32())

    def matrix(self, weight: Tensor) -> Matrix:
        return self.packing.matrix(weight.float32())

    def floats(self, values: np.ndarray) -> Any:
        return self.memory.send("a table of positions", values)

    def relative(self, keys: Tensor, queries: Tensor, rows: np.ndarray, heads: int) -> Relative:
        return self.packing.relative(keys.float32(), queries.float32(), rows)

    def outputs(self, weight: Matrix) -> int:
        return weight.outputs

    # --- primitives ---

    def embed(self, batch: PackedBatch | Placed, embedding: Embedding, *, out: Any) -> None:
        keys = batch.keys
        if isinstance(batch, PackedBatch):
            check_places(batch.ids, embedding.skip)
            batch = self.sessions.current().place(batch, len(batch.ids), batch.token_types is not None)
        norm = embedding.norm
        self.kernels.launch(
            "embed",
            -(-len(out) // WARPS),
            WARPS * 32,
            batch.input,
            batch.with_types,
            embedding.word,
            embedding.position,
            embedding.token_type,
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
            float(embedding.eps),
            batch.cu_seqlens,
            out,
            len(out),
            variant=self._of_width(out),
        )
        if keys is not None:
            starts = self.sessions.current().starts[0]
            ends = np.repeat(starts[:-1] + keys, np.diff(starts))
            batch.cu_seqlens[: len(ends), 1] = self.memory.send("ends of keys", ends)

    def _of_width(self, rows: Any) -> Narrow | None:
        """The program whose kernels take such rows."""
        return None if rows.shape[1] == self.packing.width else Narrow(rows.shape[1])

    def linear(
        self,
        x: Any,
        weight: Matrix,
        *,
        bias: Any = None,
        activation: str | None = None,
        gate: Any = None,
        residual: Any = None,
        out: Any,
    ) -> None:
        outputs, inputs = weight.data.shape
        if x.dtype != self.storage:  # pooled vectors are float32
            x = self.arrays.as_act(x)
        x = self.arrays.widened(x, inputs)
        few = None
        if self._has_few_rows and out.shape[1] == outputs:
            few = few_rows(len(x), outputs, inputs, self.limits.processors, self.limits.shared_memory)
        if few is None:
            self._linear_by_cublas(x, weight, bias, activation, gate, residual, out)
            return
        name, blocks, shared = few
        beside, sizes = residual if gate is None else gate, (len(x), outputs, inputs, ACTIVATIONS.index(activation))
        arguments = x, weight.data, bias, beside, int(gate is not None), out, *sizes
        self.kernels.launch(name, blocks, PRODUCT_WARPS * 32, *arguments, shared=shared)

    def _linear_by_cublas(self, x: Any, weight: Matrix, bias: Any, activation: str | None, gate: Any, residual: Any, out: Any) -> None:
        """linear() by cuBLASLt. The kernel `activate` then applies what the product cannot: activation, a gate and a late residual."""
        session, outputs = self.sessions.current(), len(weight.data)
        whole = out.shape[1] == outputs
        before = residual if activation is None and whole else None  # the residual that the product itself adds
        beside = gate if gate is not None else residual if before is None else None
        y = out
        if whole and beside is not None:  # the session's memory, because a graph may hold its address
            y = session.take("product", len(x), outputs)
        elif not whole:
            y = self.empty(len(x), outputs)
        product = session.product(len(x), weight, bias is not None, before is not None)
        product(x, weight.data, bias, before, y, session.workspace(), session.stream.ptr)
        to = out if whole else y
        if activation is not None or beside is not None:
            beside = None if beside is None else self.arrays.widened(beside, outputs)
            arguments = y, beside, int(gate is not None), ACTIVATIONS.index(activation), to, ctypes.c_int64(y.size)
            self.kernels.launch("activate", min(4096, -(-y.size // 2048)), 256, *arguments)
        if not whole:
            out[...] = y[:, : out.shape[1]]

    def norm(self, x: Any, norm: Norm, eps: float, *, out: Any) -> None:
        arguments = x, norm.weight, norm.bias, float(eps), out, len(x)
        self.kernels.launch("layer_norm", -(-len(x) // WARPS), WARPS * 32, *arguments, variant=self._of_width(x))

    def qkv_dtype(self, head_size: int) -> Any:
        return self.storage

    def rotate(self, qkv: Any, cu_seqlens: Any, heads: int, table: Any) -> None:
        """As the reference, with the cu_seqlens of attention()."""
        self._attention.rotate(qkv, cu_seqlens, table)

    def attention(self, qkv: Any, cu_seqlens: Any, heads: int, *, scores: Scores = PLAIN, keys: Any = None, out: Any) -> None:
        """As the reference. cu_seqlens may also be the (T, 2) array that `embed` fills with the keys of each token, its text's bounds."""
        self._attention.attend(qkv, cu_seqlens, scores, keys, out)

    def pool(self, x: Any, cu_seqlens: np.ndarray, kind: str, *, skip: int = 0, out: Any) -> None:
        """As the reference; out is float32."""
        placed = self.sessions.current().starts
        if placed is not None and placed[0] is cu_seqlens:
            _, array, begin = placed
            starts = array[begin : begin + len(cu_seqlens)]
        else:
            starts = self.memory.send("bounds of texts", cu_seqlens)
        self.kernels.launch("pool", len(out), 128, x, starts, POOLINGS.index(kind), skip, out, out.strides[0] // out.itemsize)

    def unit(self, x: Any, *, out: Any) -> None:
        x = x if x.dtype == self.storage else self.arrays.as_act(x)  # pooled vectors are float32
        self.kernels.launch("unit", len(x), 32, x, x.shape[1], out)

    def largest(self, x: Any, cu_seqlens: np.ndarray, *, out: Any) -> None:
        x = self._as_float32(self.cupy.ascontiguousarray(x))
        for b, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            self.cupy.max(x[begin:end], axis=0, out=out[b])

    # --- the forward pass ---

    def encode(
        self, weights: Weights, batch: PackedBatch, work: Any, *, taps: dict[int, Any] | None = None, routes: list[Any] | None = None
    ) -> Any:
        """The forward pass of model.py as one graph, or op by op if taps or routes are given, or if the batch has keys."""
        with_types = weights.embedding.token_type is not None and batch.token_types is not None
        check_places(batch.ids, weights.embedding.skip)
        size = bucket(len(batch.ids))
        placed: Any = work.place(batch, size, with_types)
        if taps or routes or batch.keys is not None:
            placed = placed._replace(keys=batch.keys)
            x = self._encode_watched(weights, placed, work, len(batch.ids), taps, routes)
        else:
            run = functools.partial(super().encode, weights, placed, work)
            if (size, with_types) not in work.graphs:
                x = run()
                work.graphs[size, with_types] = work.capture(run), x
            graph, x = work.graphs[size, with_types]
            graph.launch(work.stream)
        return x[: len(batch.ids)]

    def _encode_watched(
        self, weights: Weights, placed: Any, work: Any, tokens: int, taps: dict[int, Any] | None, routes: list[Any] | None
    ) -> Any:
        """The forward pass op by op, on the sizes of its graph. Taps and routes are filled on the GPU and copied to the caller's arrays."""
        size = len(placed.ids)
        taps_here = {i: self.empty(size, weights.hidden) for i in taps or ()}
        routes_here = [r and tuple(self.empty(size, *a.shape[1:], dtype=a.dtype) for a in r) for r in routes or ()]
        x = super().encode(weights, placed, work, taps=taps_here, routes=routes_here)
        for i, tap in (taps or {}).items():
            tap[...] = self.bring(taps_here[i][:tokens])()
        for theirs, ours in zip(routes or (), routes_here, strict=True):
            for to, array in zip(theirs or (), ours or (), strict=True):
                to[...] = self.bring(array[:tokens])()
        return x

    def attention_block(self, x: Any, layer: Layer, cu_seqlens: Any, weights: Weights, work: Any, *, keys: Any = None) -> None:
        """As in model.py, but without the norm after it: the kernel of ffn_block computes that norm."""
        attention = layer.attention
        h = work.take("h", *x.shape)
        qkv = work.take("qkv", len(x), 3 * x.shape[1])
        before = attention.norm if weights.pre_norm else None
        if before is not None:
            self.norm(x, before, weights.eps, out=h)
        self.linear(x if before is None else h, attention.qkv.weight, bias=attention.qkv.bias, out=qkv)
        if attention.rotary is not None:
            self.rotate(qkv, cu_seqlens, weights.heads, attention.rotary)
        self.attention(qkv, cu_seqlens, weights.heads, scores=attention.scores, keys=keys, out=h)
        self.linear(h, attention.out.weight, bias=attention.out.bias, residual=x, out=x)

    def ffn_block(self, x: Any, layer: Layer, weights: Weights, work: Any, *, routes: Any = None) -> None:
        """x = x + ffn(norm(x)) for norms before, x = norm(h + ffn(h)) with h = norm(x) for norms after. Trees alone are one kernel."""
        ffn = layer.ffn
        norm, out_norm = (ffn.norm, None) if weights.pre_norm else (layer.attention.norm, ffn.norm)
        assert norm is not None
        nodes, z = routes or (None, None)
        around: dict[str, Any] = {"bias": ffn.b_out, "nodes": nodes, "z": z, "out_norm": out_norm, "eps": weights.eps}
        if ffn.dense_in is None or ffn.dense_out is None:
            assert ffn.trees is not None
            residual = x if weights.pre_norm else None
            self.fff_between_norms(x, ffn.trees, residual=residual, add_input=residual is None, out=x, norm=norm, **around)
            return
        h = work.take("h", *x.shape)
        self.norm(x, norm, weights.eps, out=h)
        last, up = ffn.b_out if ffn.trees is None else None, ffn.others.get("dense_up.weight")
        for part in self.parts(len(x), ffn.dense_in.weight):
            middle = work.take("middle", part.stop - part.start, len(ffn.dense_in.weight.data))
            if up is not None:
                self.linear(h[part], up, bias=ffn.others.get("dense_up.bias"), out=middle)
            gate = None if up is None else middle
            self.linear(h[part], ffn.dense_in.weight, bias=ffn.dense_in.bias, activation=ffn.activation, gate=gate, out=middle)
            residual = x if weights.pre_norm else h
            self.linear(middle, ffn.dense_out.weight, bias=last, residual=residual[part], out=x[part])
        if ffn.trees is not None:
            self.fff_between_norms(h, ffn.trees, residual=x, out=x, **around)
        elif out_norm is not None:
            self.norm(x, out_norm, weights.eps, out=x)

    # --- a layer alone ---

    def call_layer(self, layer: FeedForward, hidden: int, x: Any, out: Any = None) -> Any:
        """As the reference, on the caller's current stream.

        x may be on the host, or on the GPU: a CuPy array or one that CuPy can share (__cuda_array_interface__, __dlpack__).
        The result is on the same side.
        """
        at_host = is_of_host(x)
        with self.cupy.cuda.Device(self.number), self.sessions.current():
            given, inner = self.arrays.taken(x, out, hidden)
            y = self.empty(*inner.shape)
            if len(inner):
                feedforward.forward(self, inner, layer, residual=None, out=y, work=self.sessions.current())
            y = y[:, :hidden]
            y = self.bring(y)() if at_host else self.arrays.as_floats(y, given.dtype)
            if out is None:
                return y
            out[...] = y
            return out

    def layer_routes(self, layer: FeedForward, hidden: int, trees: int, x: Any) -> tuple[Any, Any]:
        assert layer.trees is not None
        at_host = is_of_host(x)
        with self.cupy.cuda.Device(self.number), self.sessions.current():
            _, inner = self.arrays.taken(x, None, hidden)
            y = self.empty(*inner.shape)
            shape = len(inner), trees, layer.trees.depth + 1
            nodes, z = self.empty(*shape, dtype=np.int32), self.empty(*shape, dtype=np.float32)
            self.fff(inner, layer.trees, out=y, nodes=nodes, z=z)
            return (self.bring(nodes)(), self.bring(z)()) if at_host else (nodes, z)
