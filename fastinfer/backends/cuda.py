"""The GPU backend: the reference with its ops replaced by the kernels of src/cuda and by cuBLASLt, through CuPy.

Activations and dense weights are of one dtype, the model's compute dtype; rows of trees are of that dtype or int8.
A forward pass is a CUDA graph, captured once per size of batch: its host work is one copy in and one launch.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import feedforward
from ..batch import PackedBatch
from ..checkpoint.tensor import Tensor
from ..config import Config, tree_nodes
from ..errors import BackendError, DtypeError, ShapeError
from ..weights import FeedForward, Layer, Weights
from ..workspace import Workspace
from . import driver
from .cache import cached
from .cublaslt import WORKSPACE, Product
from .reference import Reference, check_layer_arrays

MAX_HIDDEN = 4096  # a warp holds a row in registers
POOLING = ("cls", "mean", "max", "lse")
ACTIVATIONS = (None, "gelu", "tanh", "relu")
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
MACROS = {"float32": "ACT_FLOAT", "float16": "ACT_HALF", "bfloat16": "ACT_BFLOAT16"}
WARPS = 8  # per block, where a warp has a token
FEW_WARPS = 2  # the same in fff_tree_few: small blocks spread evenly over the multiprocessors
PRODUCT_WARPS, PRODUCTS = 8, ((1, 1), (1, 2), (1, 3), (1, 6), (2, 3), (2, 6), (2, 9), (2, 12))  # of products.cu: (R, N) of its kernels
TRIALS = 5  # calls of a product in a graph that is timed
MIDDLE_BYTES = 32 << 20  # of a feedforward's middle layer that are written before they are read: more would not stay in L2


# --- what there is ---


def why_not() -> str | None:
    """None where a GPU can be used here, else the reason. CuPy is not imported before there is a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    try:
        import cupy
    except ImportError:
        return "CuPy is missing; pip install 'fastinfer[cuda]' (CUDA 13) or 'fastinfer[cuda12]'"
    try:
        cupy.cuda.runtime.getDeviceCount()  # no GPU is an error, too
    except cupy.cuda.runtime.CUDARuntimeError as error:
        version = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return f"CuPy finds no GPU to use: {error} (is the driver too old for CUDA {version}, or does CUDA_VISIBLE_DEVICES hide all GPUs?)"
    return None


def names() -> list[str]:
    """Each GPU: name, compute capability, memory."""
    import cupy

    found = [cupy.cuda.runtime.getDeviceProperties(i) for i in range(cupy.cuda.runtime.getDeviceCount())]
    return [f"{p['name'].decode()}, sm_{p['major']}{p['minor']}, {p['totalGlobalMem'] / 2**30:.0f} GiB" for p in found]


def device_number(name: str) -> int:
    """N of "cuda:N"; 0 of "cuda". Raises BackendError where there is no such GPU."""
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    number = name.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= count:
        raise BackendError(
            f"device {name!r} was asked for, but this machine has {count} GPU{'s' * (count > 1)}: cuda:0 to cuda:{count - 1}"
        )
    return int(number)


# --- kernels ---


def source() -> str:
    """The kernels' text, behind the sizes that they share with this file."""
    folder = resources.files("fastinfer") / "cuda"  # installed
    if not folder.is_dir():
        folder = Path(__file__).parents[2] / "src" / "cuda"  # a source tree
    kernels, products, attention = ((folder / name).read_text() for name in ("kernels.cu", "products.cu", "attention.cu"))
    sizes = {"WARPS": WARPS, "FEW_WARPS": FEW_WARPS, "PRODUCT_WARPS": PRODUCT_WARPS, "PRODUCTS": " ".join(f"PRODUCT{p}" for p in PRODUCTS)}
    defines = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    return f"{defines}#line 1\n{kernels}\n#ifndef DEPTH\n{products}\n#ifdef HEADS\n{attention}\n#endif\n#endif\n"


def compiler() -> Any:
    """NVRTC, as CuPy calls it. Raises BackendError where it cannot be loaded."""
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # each way of finding a library has its own
        raise BackendError(
            f"NVRTC, which compiles the kernels, cannot be loaded: {error}\n  pip install 'fastinfer[cuda]' brings it."
        ) from error
    return nvrtc


def compile_kernels(architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """The kernels as (program, "cubin" or "ptx") for an architecture such as "sm_90a". Needs NVRTC and no GPU."""
    nvrtc = compiler()
    newest = max(nvrtc.getSupportedArchs())
    kind = "cubin"
    if int(architecture.removeprefix("sm_").rstrip("a")) > newest:  # a GPU newer than the compiler: its driver compiles the rest of the way
        architecture, kind = f"compute_{newest}", "ptx"
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", "--std=c++17", *options))
        return (nvrtc.getCUBIN if kind == "cubin" else nvrtc.getPTX)(program), kind
    except nvrtc.NVRTCError as error:
        raise BackendError(f"NVRTC cannot compile the GPU kernels for {architecture}: {error}\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def cached_kernels(architecture: str, options: tuple[str, ...]) -> Path:
    """The file with the compiled kernels, made at first use and kept as cache.py says."""
    key = hashlib.sha256(repr((source(), architecture, options, compiler().getVersion())).encode()).hexdigest()[:24]
    return cached(key, lambda: compile_kernels(architecture, options))


# struct FFF of kernels.cu: addresses, 0 for null; sizes; eps
ADDRESSES = ("x", "norm_weight", "norm_bias", "residual", "nodes", "scales", "b_in", "children", "bias", "out_norm_weight", "out_norm_bias")
ADDRESSES += ("out", "path", "z")
SIZES = ("tokens", "trees", "count", "add_input")
FFF_STRUCT = np.dtype([(a, np.uint64) for a in ADDRESSES] + [(s, np.int32) for s in SIZES] + [("eps", np.float32)], align=True)

# Strategies of kernels.cu: tokens and threads of a block (0: what the kernels say)
STRATEGIES = {
    "fff_tree": (WARPS, WARPS * 32),
    "fff_tree_few": (FEW_WARPS, FEW_WARPS * 32),
    "fff_trees": (WARPS, WARPS * 32),
    "fff_trees_few": (1, 0),
    "fff_subtrees": (1, 7 * 32),
}


def address(array: Any) -> int:
    """Where a CuPy array lies, 0 for None."""
    return 0 if array is None else array.data.ptr


def by_value(argument: Any) -> Any:
    """A kernel's argument as its bytes: an array's address, an int of 32 bits, a float of 32, or what has its size already."""
    if isinstance(argument, (int, float)):
        return (ctypes.c_float if isinstance(argument, float) else ctypes.c_int32)(argument)
    return argument if isinstance(argument, (np.ndarray, ctypes.c_int64)) else ctypes.c_void_p(address(argument))


def few_rows(rows: int, outputs: int, inputs: int, processors: int, shared: int) -> tuple[str, tuple[int, int], int] | None:
    """(name, blocks, bytes of shared memory) of the kernel of products.cu for a product of this shape, by the smallest blocks of which all
    can run at once on so many processors with so much shared memory each; None where there are none.
    """
    steps = -(-inputs // (32 * PRODUCT_WARPS))
    for r, n in PRODUCTS:
        blocks, needed = (-(-outputs // (8 * n)), -(-rows // (16 * r))), 512 * PRODUCT_WARPS * (n * max(r, steps) + 12)
        if r == min(2, -(-rows // 16)) and blocks[0] * blocks[1] <= processors and needed <= shared:
            return f"product_{r}_{n}", blocks, needed
    return None


def bucket(tokens: int) -> int:
    """The size of graph that serves `tokens`: steps of at most an eighth."""
    step = max(8, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def up(size: int) -> int:
    """The next multiple of 8: so many values of two bytes are what loads and tensor cores take."""
    return -(-size // 8) * 8


def many_trees_costs(tokens: int, neurons: int, slots: int, rows: str, processors: int) -> dict[str, float]:
    """{strategy: microseconds} for a layer of many trees of which a token uses so many neurons, and has so many slots (0: no products).

    rows: the dtype of the trees' rows.

    Fitted to times on an H100 at D = 768, 1 to 65,536 tokens. By a block a token: waves of blocks, each a start and its rows; one
    token has L2 to itself. By a warp a token: as long as the rows of one, until there are more tokens than warps. By products: what
    dense layers cost.
    """
    row = {"float32": 0.138, "int8": 0.104}.get(rows, 0.048)
    lone_row, start, product = (1.08, 30, 0.27) if rows == "float32" else (0.47, 11, 0.024)
    waves = 0.65 if tokens == 1 else -(-tokens // (processors * (2 if rows == "float32" else 1)))
    costs = {
        "fff_trees_few": waves * (6 + row * neurons),
        "fff_trees": lone_row * neurons * max(1, tokens / (16 * processors)),
    }
    if slots:
        costs["products"] = start + product * tokens * slots / 4096
    return costs


# --- prepared weights ---


class Matrix(NamedTuple):
    """A dense weight, data (outputs, inputs), both filled up with zeros to multiples of 8."""

    data: Any
    outputs: int


class Products(NamedTuple):
    """Trees as two matrix products: first (trees * slots, D), bias (trees * slots), second (D, trees * slots).

    At depth 0 there is one slot a tree, and the layer a dense one. Else slots = 2 << depth, and the bias is float32: fff_mask adds it.
    """

    first: Matrix
    bias: Any
    second: Matrix


class Trees(NamedTuple):
    """nodes (P, N, 2, D); scales (P, N, 2) float32 of int8 rows; b_in (P, N) float32; children (P, N, 2) int32; decisions to walk."""

    nodes: Any
    scales: Any
    b_in: Any
    children: Any
    depth: int
    products: Products | None


class Placed(NamedTuple):
    """A batch on the GPU. ids (tokens,) has its length only; input is what the kernel `embed` reads; cu_seqlens, the rows of each
    token's text (tokens, 2), is filled by it and is what `attention` takes.
    """

    ids: Any
    input: Any
    with_types: bool
    cu_seqlens: Any


class Session(Workspace):
    """What one forward pass at a time needs: a stream, buffers, graphs. A call takes one and gives it back."""

    def __init__(self, ops: CUDA, stream: Any) -> None:
        super().__init__()
        self.ops, self.stream = ops, stream
        self.graphs: dict[Any, tuple[Any, Any]] = {}  # by size of batch: the graph of the forward pass, and where its result is
        self._placed: dict[Any, Placed] = {}
        self._products: dict[Any, Product] = {}
        self._blocks: list[Any] = []  # pinned memory that batches leave from, in turn, and when each has left
        self._outer: list[Any] = []
        self.starts: Any = None  # the last batch's cu_seqlens: on the host, the device array that has them, from where on

    def __enter__(self) -> Session:
        cupy = self.ops.cupy
        self._outer.append((cupy.cuda.runtime.getDevice(), self.ops.local.__dict__.get("session")))
        cupy.cuda.runtime.setDevice(self.ops.number)
        self._outer[-1] += (cupy.cuda.get_current_stream(),)
        self.stream.use()
        self.ops.local.session = self
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        device, session, stream = self._outer.pop()
        stream.use()
        self.ops.cupy.cuda.runtime.setDevice(device)
        self.ops.local.session = session
        if isinstance(error, self.ops.cupy.cuda.memory.OutOfMemoryError):  # in an operation of CuPy's own
            raise self.ops.no_room(f"a copy ({error})") from None

    def close(self) -> None:
        """Ready for the next call."""
        self.ops.idle.append(self)

    def take(self, name: str, *shape: int, dtype: Any = None) -> Any:
        """As in model.py. A buffer that grows takes the graphs with it."""
        dtype = np.dtype(self.ops.storage if dtype is None else dtype)
        buffer = self._buffers.get(name)
        size = math.prod(shape)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            self.graphs.clear()  # they hold the old address, as these do
            self._placed.clear()
            self._buffers[name] = buffer = None
            self._buffers[name] = buffer = self.ops.allocate(f"the buffer {name!r}", (size,), dtype)
            buffer.fill(0)
        return buffer[:size].reshape(shape)

    def product(self, rows: int, weight: Matrix, bias: bool, residual: bool) -> Product:
        """The planned product of this shape; at first sight its algorithms are timed, and the fastest is kept for all sessions."""
        key = rows, *weight.data.shape, bias, residual
        if key not in self._products:
            self._products[key] = product = Product(self.ops.number, self.ops.act, *key)
            if key not in self.ops.algorithms:
                self.ops.algorithms[key] = self._fastest(product, rows, weight, bias, residual)
            product.algorithm = self.ops.algorithms[key]
        return self._products[key]

    def _fastest(self, product: Product, rows: int, weight: Matrix, bias: bool, residual: bool) -> bytes:
        """The algorithm with the least time in the best of three replays of a graph, on scratch memory: rows of the weight stand for x,
        since zeros would draw less power. On a stream of its own: a caller's may be one that cannot be captured.
        """
        cupy = self.ops.cupy
        outputs, inputs = weight.data.shape
        best = []
        with Session(self.ops, cupy.cuda.Stream(non_blocking=True)) as session:
            x, out = (self.ops.allocate("a trial of products", (rows, n), self.ops.storage) for n in (inputs, outputs))
            for begin in range(0, rows, outputs):
                x[begin : begin + outputs] = weight.data[: min(outputs, rows - begin)]
            out.fill(0)
            offset = self.ops.allocate("a trial of products", (outputs,), self.ops.storage) if bias else None
            operands = x, weight.data, offset, out if residual else None, out, session.workspace(), session.stream.ptr

            def run() -> None:
                for _ in range(TRIALS):
                    product(*operands)

            for algorithm in product.candidates():
                product.algorithm = algorithm
                run()
                graph, times = session.capture(run), []
                for _ in range(4):
                    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                    begin.record(session.stream)
                    graph.launch(session.stream)
                    end.record(session.stream)
                    end.synchronize()
                    times.append(cupy.cuda.get_elapsed_time(begin, end))
                best.append((min(times[1:]), algorithm))
        return min(best, key=lambda b: b[0])[1]

    def workspace(self) -> Any:
        """Scratch memory for cuBLASLt."""
        if "workspace" not in self._buffers:
            self._buffers["workspace"] = self.ops.allocate("the workspace of products", (WORKSPACE,), np.uint8)
        return self._buffers["workspace"]

    def place(self, batch: PackedBatch, size: int, with_types: bool) -> Placed:
        """Send a batch to the GPU, filled up to `size` tokens: one copy from pinned memory, which nobody waits for."""
        tokens, texts = len(batch.ids), len(batch)
        words, starts, types = 2 + 3 * size, 1 + size, 2 + 2 * size
        placed = self._placed.get((size, with_types))
        if placed is None:
            device, bounds = self.take("input", words, dtype=np.int32), self.take("bounds", size, 2, dtype=np.int32)
            placed = self._placed[size, with_types] = Placed(device[1:starts], device, with_types, bounds)
        if not self._blocks or len(self._blocks[0][0]) < words:
            self._blocks = [self._pinned(words) for _ in range(2)]
        host, source, left = self._blocks[0]
        self._blocks.reverse()
        left.synchronize()
        host[0] = texts
        host[1 : 1 + tokens] = batch.ids
        host[1 + tokens : starts] = 0
        host[starts : starts + texts + 1] = batch.cu_seqlens
        if with_types:
            host[types : types + tokens] = batch.token_types
            host[types + tokens : words] = 0
        used = words if with_types else starts + texts + 1
        runtime = self.ops.cupy.cuda.runtime
        runtime.memcpyAsync(placed.input.data.ptr, source, 4 * used, runtime.memcpyHostToDevice, self.stream.ptr)
        left.record(self.stream)
        self.starts = batch.cu_seqlens, placed.input, starts
        return placed

    def _pinned(self, words: int) -> tuple[np.ndarray, int, Any]:
        """Pinned memory, its address, and an event that is past when it may be written again."""
        for *_, left in self._blocks:
            left.synchronize()
        cupy = self.ops.cupy
        memory = cupy.cuda.alloc_pinned_memory(4 * words)
        return np.frombuffer(memory, np.int32, words), memory.ptr, cupy.cuda.Event(disable_timing=True)

    def capture(self, run: Callable[[], Any]) -> Any:
        """The graph of what `run` launches. It has run before: nothing is allocated, loaded or timed during capture."""
        self.stream.begin_capture()
        try:
            run()
        finally:
            graph = self.stream.end_capture()
        graph.upload(self.stream)
        return graph


# --- ops ---


class CUDA(Reference):
    """One GPU. `act` is the dtype of activations and dense weights, settled when the first weights are prepared."""

    name = "cuda"
    dtypes = ("float32", "float16", "bfloat16", "int8")
    batch_tokens = 16384  # weights are read once per batch, and a launch is long against the work of the host
    asynchronous = True

    def __init__(self, number: int = 0, dtype: str | None = None) -> None:
        import cupy

        self.cupy, self.number, self.dtype, self.process = cupy, number, dtype, os.getpid()
        self.idle: list[Session] = []
        self.algorithms: dict[Any, bytes] = {}
        self.local = threading.local()
        self.act = ""

    @property
    def device(self) -> str:
        return f"cuda:{self.number}"

    @property
    def storage(self) -> np.dtype:
        """NumPy's dtype of activations' bits."""
        return np.dtype(STORAGE[self.act])

    @property
    def vector_size(self) -> int:
        """Values in the 16 bytes that a kernel loads at once."""
        return 16 // self.storage.itemsize

    def workspace(self) -> Session:
        if os.getpid() != self.process:
            raise BackendError(
                f"{self.device} was set up by process {self.process}, of which this one is a fork: CUDA does not work there\n"
                "  Start processes by spawn or forkserver, or use no GPU before the fork."
            )
        try:
            return self.idle.pop()
        except IndexError:  # asking first would leave room for another thread
            with self.cupy.cuda.Device(self.number):
                return Session(self, self.cupy.cuda.Stream(non_blocking=True))

    def release(self) -> None:
        self.idle.clear()
        self.local = threading.local()
        with self.cupy.cuda.Device(self.number):
            self.cupy.get_default_memory_pool().free_all_blocks()
            self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    @property
    def _session(self) -> Session:
        """The session of the call that this thread is in, else one for the caller's own stream."""
        session = self.local.__dict__.get("session")
        if session is None:
            stream, sessions = self.cupy.cuda.get_current_stream(), self.local.__dict__.setdefault("streams", {})
            session = sessions.get(stream.ptr)
            if session is None:
                session = sessions[stream.ptr] = Session(self, stream)
        return session

    def allocate(self, what: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialised array. Raises BackendError that says what there was no room for."""
        try:
            return self.cupy.empty(shape, dtype)
        except self.cupy.cuda.memory.OutOfMemoryError:
            size = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
            raise self.no_room(f"{what}: {np.dtype(dtype)} {shape}, {size:.0f} MB") from None

    def no_room(self, what: str) -> BackendError:
        """The error where memory runs out."""
        with self.cupy.cuda.Device(self.number):
            free, total = (n / 1e6 for n in self.cupy.cuda.runtime.memGetInfo())
        return BackendError(
            f"{self.device} has no room for {what}; {free:.0f} of {total:.0f} MB are free.\n"
            f"  Give a smaller batch_tokens ({self.batch_tokens} where you give none), a smaller dtype (float16, int8) or another "
            "device; model.release() gives back what finished calls hold."
        )

    def empty(self, *shape: int, dtype: Any = None) -> Any:
        return self.allocate("a result", shape, self.storage if dtype is None else dtype)

    def _send(self, what: str, values: np.ndarray) -> Any:
        """A host array on the GPU."""
        array = self.allocate(what, values.shape, values.dtype)
        array.set(np.ascontiguousarray(values))
        return array

    def bring(self, array: Any) -> Callable[[], np.ndarray]:
        cupy, shape, runtime = self.cupy, array.shape, self.cupy.cuda.runtime
        array = cupy.ascontiguousarray(array)
        if array.dtype == self.storage and array.dtype != np.float32 and array.size:
            bits, array = array, self.empty(*shape, dtype=np.float32)
            self._launch("to_float32", min(4096, -(-array.size // 2048)), 256, bits, array, ctypes.c_int64(array.size))
        memory = cupy.cuda.alloc_pinned_memory(max(array.nbytes, 1))
        stream, done = cupy.cuda.get_current_stream(), cupy.cuda.Event(disable_timing=True)
        runtime.memcpyAsync(memory.ptr, array.data.ptr, array.nbytes, runtime.memcpyDeviceToHost, stream.ptr)
        done.record(stream)

        def finish() -> np.ndarray:
            done.synchronize()
            return np.frombuffer(memory, array.dtype, array.size).reshape(shape).copy()

        return finish

    def to_host(self, array: Any) -> Any:
        return self.cupy.asnumpy(array) if hasattr(array, "__cuda_array_interface__") else array

    def rows(self, x: Any, which: np.ndarray) -> Any:
        return x[self._send("indices", which)]

    # --- preparing weights ---

    def fitted(self, hidden: int, heads: int, stored: str) -> CUDA:
        made = CUDA(self.number, self.dtype)
        made._settle(hidden, heads, stored)
        return made

    def _settle(self, hidden: int, heads: int, stored: str) -> None:
        """Settle dtypes and compile the kernels; stored: the dtype of the file's dense weights."""
        if heads and (hidden % 8 or hidden // heads % 8 or hidden // heads > 128):
            raise BackendError(
                f"hidden is {hidden} and heads {heads}, but the GPU backend needs a head size that is a multiple of 8 "
                "up to 128: use device 'cpu'"
            )
        wanted = self.dtype or stored
        self.act = "float16" if wanted == "int8" else wanted
        self.int8_rows, self.width = wanted == "int8", up(hidden)
        self._functions: dict[Any, Any] = {}
        self._modules: dict[tuple[int, bool] | None, Any] = {}
        if hidden > MAX_HIDDEN:
            raise BackendError(f"hidden is {hidden}, but the GPU backend takes at most {MAX_HIDDEN}: use device 'cpu'")
        capability = self.cupy.cuda.Device(self.number).compute_capability
        if self.act == "bfloat16" and int(capability) < 80:
            raise BackendError(f"bfloat16 needs a GPU of compute capability 8.0, {self.device} has {capability}: use float16 or float32")
        self._architecture = f"sm_{capability}" + ("a" if capability == "90" else "")
        attributes = self.cupy.cuda.Device(self.number).attributes
        self._processors, self._shared_memory = attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]
        # Kernels that start early are captured as such from CUDA 12.3 on.
        self._early = int(capability) >= 90 and self.cupy.cuda.runtime.driverGetVersion() >= 12030
        self._few = self.act != "float32" and int(capability) >= 80
        self._options = (f"-D{MACROS[self.act]}", f"-DHIDDEN={self.width}")
        if heads:
            self._options += (f"-DHEADS={heads}",)
            self.attention_launch = self._constants(None, "attention_launch", 3)

    def _module(self, kind: tuple[int, bool] | None) -> Any:
        """The kernels of trees (walked so deep, pruned or not), or, for None, all others: compiled at first sight."""
        if kind not in self._modules:
            trees: tuple[str, ...] = ()
            if kind is not None:
                trees = (f"-DDEPTH={kind[0]}", *("-DSTOPS",) * kind[1], *("-DROW_INT8",) * self.int8_rows)
            with self.cupy.cuda.Device(self.number):
                self._modules[kind] = self.cupy.RawModule(path=str(cached_kernels(self._architecture, self._options + trees)))
        return self._modules[kind]

    def _constants(self, kind: tuple[int, bool] | None, name: str, count: int) -> list[int]:
        """What the kernels say of how they are to be launched."""
        with self.cupy.cuda.Device(self.number):
            return self.cupy.ndarray(count, np.int32, self._module(kind).get_global(name)).tolist()

    def prepare(self, config: Config, stored: Any, max_depth: int | None = None) -> Weights:
        with self.cupy.cuda.Device(self.number) as device:
            weights = super().prepare(config, stored, max_depth)
            device.synchronize()  # the streams of sessions do not wait for copies of this one
        return weights

    def _bits(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the bits of the compute dtype."""
        return Tensor(values, "float32").to(self.act).data

    def vector(self, values: Tensor | np.ndarray) -> Any:
        values = values if isinstance(values, np.ndarray) else values.float32()
        padded = np.zeros((*values.shape[:-1], up(values.shape[-1])), np.float32)
        padded[..., : values.shape[-1]] = values
        return self._send("a weight", self._bits(padded))

    def table(self, rows: Tensor) -> Any:
        return self.vector(rows)

    def matrix(self, weight: Tensor) -> Matrix:
        outputs, inputs = weight.data.shape
        padded = np.zeros((up(outputs), up(inputs)), np.float32)
        padded[:outputs, :inputs] = weight.float32()
        return Matrix(self._send("a dense weight", self._bits(padded)), outputs)

    def outputs(self, weight: Matrix) -> int:
        return weight.outputs

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int) -> Trees:
        if self.int8_rows:
            nodes = nodes.to("int8")
        rows, scales = (nodes.data, nodes.scale) if self.int8_rows else (nodes.float32(), None)
        count, _, hidden = rows.shape[1:]
        products = None
        # fff_mask spreads a tree over the lanes of one warp at most.
        if len(rows) >= 8 and 2 << depth <= 32 * self.vector_size and count == tree_nodes(depth) and children is None:
            products = self._as_products(nodes.float32(), b_in, depth)
        self._trees_few_threads = self._constants((depth, children is not None), "trees_few_threads", 1)[0]
        padded = np.zeros((*rows.shape[:3], self.width), rows.dtype)
        padded[..., :hidden] = rows
        small = (scales, b_in, children)
        return Trees(
            self._send("the trees of a layer", padded if self.int8_rows else self._bits(padded)),
            *(None if a is None else self._send("the trees of a layer", a) for a in small),
            depth,
            products,
        )

    def _as_products(self, nodes: np.ndarray, b_in: np.ndarray | None, depth: int) -> Products:
        """Trees of `depth` with a slot per node and, but for depth 0, one more that stays empty: slots are then a power of two."""
        trees, count, _, hidden = nodes.shape
        slots = 2 << depth if depth else 1
        rows, bias = np.zeros((trees, slots, 2, hidden), np.float32), np.zeros((trees, slots), np.float32)
        rows[:, :count] = nodes
        if b_in is not None:
            bias[:, :count] = b_in
        first, second = (Tensor(a, "float32") for a in (rows[:, :, 0].reshape(-1, hidden), rows[:, :, 1].reshape(-1, hidden).T))
        bias = self._send("the trees of a layer", bias.reshape(-1)) if depth else self.vector(bias.reshape(-1))
        return Products(self.matrix(first), bias, self.matrix(second))

    # --- launching ---

    def _launch(self, name: str, blocks: Any, threads: int, *arguments: Any, shared: int = 0, of: Trees | None = None) -> None:
        kind = of and (of.depth, of.children is not None)
        function = self._functions.get((name, kind))
        if function is None:
            function = self._functions[name, kind] = self._module(kind).get_function(name)
            if shared:
                function.max_dynamic_shared_size_bytes = self._shared_memory - function.shared_size_bytes
        blocks = blocks if isinstance(blocks, tuple) else (blocks,)
        stream = self.cupy.cuda.get_current_stream().ptr
        driver.launch(function.kernel.ptr, blocks, threads, shared, stream, map(by_value, arguments), self._early)

    # --- primitives ---

    def embed(self, batch: Any, embedding: Any, *, out: Any) -> None:
        if isinstance(batch, PackedBatch):
            batch = self._session.place(batch, len(batch.ids), batch.token_types is not None)
        norm = embedding.norm
        self._launch(
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
        )

    def linear(self, x: Any, weight: Matrix, *, bias: Any = None, activation: str | None = None, residual: Any = None, out: Any) -> None:
        session, (outputs, inputs) = self._session, weight.data.shape
        if x.dtype != self.storage:  # pooled vectors
            x = self._as_act(x)
        x = self._widened(x, inputs)
        few = few_rows(len(x), outputs, inputs, self._processors, self._shared_memory) if self._few and out.shape[1] == outputs else None
        if few is not None:
            name, blocks, shared = few
            sizes = len(x), outputs, inputs, ACTIVATIONS.index(activation)
            self._launch(name, blocks, PRODUCT_WARPS * 32, x, weight.data, bias, residual, out, *sizes, shared=shared)
            return
        aside = out.shape[1] != outputs or (activation is not None and residual is not None)
        y = self.empty(len(x), outputs) if aside else out
        before = residual if activation is None and y is out else None  # added by the product itself
        product = session.product(len(x), weight, bias is not None, before is not None)
        product(x, weight.data, bias, before, y, session.workspace(), session.stream.ptr)
        after = None if before is not None else residual
        if after is not None and y is not out:
            after = self._widened(after, outputs)
        if activation is not None or after is not None:
            kind = ACTIVATIONS.index(activation)
            self._launch("activate", min(4096, -(-y.size // 2048)), 256, y, after, kind, ctypes.c_int64(y.size))
        if y is not out:
            out[...] = y[:, : out.shape[1]]

    def _widened(self, x: Any, width: int) -> Any:
        """x with zeros in columns up to `width`; x itself where it is as wide."""
        if x.shape[1] == width:
            return self.cupy.ascontiguousarray(x)
        wide = self.empty(len(x), width)
        wide[:, x.shape[1] :] = 0
        wide[:, : x.shape[1]] = x
        return wide

    def norm(self, x: Any, norm: Any, eps: float, *, out: Any) -> None:
        self._launch("layer_norm", -(-len(x) // WARPS), WARPS * 32, x, norm.weight, norm.bias, float(eps), out, len(x))

    def qkv_dtype(self, head_size: int) -> Any:
        return self.storage

    def attention(self, qkv: Any, cu_seqlens: Any, heads: int, *, out: Any) -> None:
        """cu_seqlens: the reference's, or what `embed` filled: the rows of each token's text."""
        if cu_seqlens.ndim == 1:
            lengths = np.diff(cu_seqlens)
            cu_seqlens = self._send("bounds of texts", np.stack([np.repeat(c, lengths) for c in (cu_seqlens[:-1], cu_seqlens[1:])], 1))
        size = out.shape[1] // heads
        queries, threads, shared = self.attention_launch
        arguments = qkv, cu_seqlens, len(out), out, size**-0.5
        self._launch("attention", (-(-len(out) // queries), heads), threads, *arguments, shared=shared)

    def fff(self, x: Any, trees: Trees, *, bias: Any = None, residual: Any = None, out: Any, nodes: Any = None, z: Any = None) -> None:
        self.fff_between_norms(x, trees, bias=bias, residual=residual, out=out, nodes=nodes, z=z)

    def fff_between_norms(
        self,
        x: Any,
        trees: Trees,
        *,
        bias: Any = None,
        residual: Any = None,
        out: Any,
        nodes: Any = None,
        z: Any = None,
        norm: Any = None,
        add_input: bool = False,
        out_norm: Any = None,
        eps: float = 0.0,
    ) -> None:
        """The reference's fff, with what stands around it in a layer.

        norm       h = LayerNorm(x) goes down the trees instead of x
        add_input  h is added, too
        out_norm   out = LayerNorm of the sum

        out may be x here.
        """
        if not len(x):
            return
        strategy = self.plan(len(x), trees)
        if strategy == "products" and nodes is not None and not trees.depth:  # without signs to follow there is no pass that could record
            strategy = "fff_trees"
        if strategy != "products":
            tokens, threads = STRATEGIES[strategy]
            arguments = self._fff_arguments(x, trees, bias, residual, out, nodes, z, norm, add_input, out_norm, eps)
            self._launch(strategy, -(-len(x) // tokens), threads or self._trees_few_threads, arguments, of=trees)
            return
        if norm is not None:
            h = self._session.take("normed", *x.shape)
            self.norm(x, norm, eps, out=h)
            x = h
        before = x if add_input else residual
        for part in self._parts(len(x), trees.products.first):
            recorded = (None, None) if nodes is None else (nodes[part], z[part])
            self._fff_by_products(x[part], trees, bias, None if before is None else before[part], out[part], *recorded)
        if add_input and residual is not None:
            out += residual
        if out_norm is not None:
            self.norm(out, out_norm, eps, out=out)

    @staticmethod
    def _fff_arguments(
        x: Any, trees: Trees, bias: Any, residual: Any, out: Any, nodes: Any, z: Any,
        norm: Any, add_input: bool, out_norm: Any, eps: float,
    ) -> np.ndarray:  # fmt: skip
        """struct FFF"""
        arrays = {
            "x": x, "residual": residual, "nodes": trees.nodes, "scales": trees.scales, "b_in": trees.b_in, "children": trees.children,
            "bias": bias, "out": out, "path": nodes, "z": z,
        }  # fmt: skip
        if norm is not None:
            arrays |= {"norm_weight": norm.weight, "norm_bias": norm.bias}
        if out_norm is not None:
            arrays |= {"out_norm_weight": out_norm.weight, "out_norm_bias": out_norm.bias}
        arguments = np.zeros((), FFF_STRUCT)
        for name, array in arrays.items():
            arguments[name] = address(array)
        arguments["tokens"], arguments["trees"], arguments["count"] = len(x), *trees.nodes.shape[:2]
        arguments["add_input"], arguments["eps"] = add_input, eps
        return arguments

    def _fff_by_products(self, x: Any, trees: Trees, bias: Any, residual: Any, out: Any, nodes: Any, z: Any) -> None:
        """Every neuron computed by products, those off the paths set to zero: cheaper than rows of many trees."""
        products, width = trees.products, len(trees.products.first.data)
        logits = self._session.take("logits", len(x), width)
        if trees.depth:
            self.linear(x, products.first, out=logits)
            self._launch("fff_mask", len(x), 256, logits, products.bias, width, nodes, z, of=trees)
        else:
            self.linear(x, products.first, bias=products.bias, activation="gelu", out=logits)
        self.linear(logits, products.second, bias=bias, residual=residual, out=out)

    def _parts(self, tokens: int, first: Matrix) -> Iterator[slice]:
        """Tokens cut so that the outputs of `first` stay in L2 until they are read."""
        step = max(1024, MIDDLE_BYTES // (len(first.data) * self.storage.itemsize) // 1024 * 1024)
        for begin in range(0, tokens, step):
            yield slice(begin, min(begin + step, tokens))

    def plan(self, tokens: int, trees: Trees) -> str:
        """The strategy for so many tokens."""
        count = len(trees.nodes)
        if count == 1 and trees.children is None:
            few, some = (1, 8) if self.act == "float32" else (2, 12)  # per multiprocessor, where times on an H100 cross
            return (
                "fff_subtrees" if tokens <= few * self._processors else "fff_tree_few" if tokens <= some * self._processors else "fff_tree"
            )
        slots = 0 if trees.products is None else len(trees.products.first.data)
        rows = "int8" if self.int8_rows else self.act
        costs = many_trees_costs(tokens, count * (trees.depth + 1), slots, rows, self._processors)
        return min(costs, key=costs.get)

    def pool(self, x: Any, cu_seqlens: np.ndarray, kind: str, *, out: Any) -> None:
        """out is float32."""
        here, array, begin = self._session.starts or (None, None, 0)
        starts = array[begin : begin + len(cu_seqlens)] if here is cu_seqlens else self._send("bounds of texts", cu_seqlens)
        self._launch("pool", len(out), 128, x, starts, POOLING.index(kind), out)

    # --- the forward pass ---

    def encode(self, weights: Weights, batch: PackedBatch, work: Any, *, taps: dict | None = None, routes: list | None = None) -> Any:
        """The forward pass of model.py as one graph; op by op where something is watched."""
        with_types = weights.embedding.token_type is not None and batch.token_types is not None
        size = bucket(len(batch.ids))
        placed = work.place(batch, size, with_types)
        if taps or routes:
            x = self._encode_watched(weights, placed, work, len(batch.ids), taps, routes)
        else:
            run = lambda: super(CUDA, self).encode(weights, placed, work)  # noqa: E731
            if (size, with_types) not in work.graphs:
                x = run()
                work.graphs[size, with_types] = work.capture(run), x
            graph, x = work.graphs[size, with_types]
            graph.launch(work.stream)
        return x[: len(batch.ids)]

    def _encode_watched(self, weights: Weights, placed: Placed, work: Any, tokens: int, taps: dict | None, routes: list | None) -> Any:
        """The same ops on the same sizes; taps and routes are filled on the GPU and brought to the caller's arrays."""
        size = len(placed.ids)
        taps_here = {i: self.empty(size, weights.hidden) for i in taps or ()}
        routes_here = [r and tuple(self.empty(size, *a.shape[1:], dtype=a.dtype) for a in r) for r in routes or ()]
        x = super().encode(weights, placed, work, taps=taps_here, routes=routes_here)
        for i, array in taps_here.items():
            taps[i][...] = self.bring(array[:tokens])()
        for theirs, ours in zip(routes or (), routes_here, strict=True):
            for to, array in zip(theirs or (), ours or (), strict=True):
                to[...] = self.bring(array[:tokens])()
        return x

    def attention_block(self, x: Any, layer: Layer, cu_seqlens: Any, weights: Weights, work: Any) -> None:
        """As in model.py, but the norm behind it is left to ffn_block, whose kernel it is a part of."""
        attention = layer.attention
        h = work.take("h", *x.shape)
        qkv = work.take("qkv", len(x), 3 * x.shape[1])
        if weights.pre_norm:
            self.norm(x, attention.norm, weights.eps, out=h)
        self.linear(h if weights.pre_norm else x, attention.qkv.weight, bias=attention.qkv.bias, out=qkv)
        self.attention(qkv, cu_seqlens, weights.heads, out=h)
        self.linear(h, attention.out.weight, bias=attention.out.bias, residual=x, out=x)

    def ffn_block(self, x: Any, layer: Layer, weights: Weights, work: Any, *, routes: Any = None) -> None:
        """x = x + ffn(norm(x)), or norm(h + ffn(h)) with h = norm(x) where norms come after; trees alone are one kernel."""
        ffn = layer.ffn
        norm, out_norm = (ffn.norm, None) if weights.pre_norm else (layer.attention.norm, ffn.norm)
        nodes, z = routes or (None, None)
        if ffn.dense_in is None:
            around = {"norm": norm, "out_norm": out_norm, "eps": weights.eps}
            residual = x if weights.pre_norm else None
            around |= {"residual": residual, "add_input": residual is None}
            self.fff_between_norms(x, ffn.trees, bias=ffn.b_out, out=x, nodes=nodes, z=z, **around)
            return
        h = work.take("h", *x.shape)
        self.norm(x, norm, weights.eps, out=h)
        last = ffn.b_out if ffn.trees is None else None
        for part in self._parts(len(x), ffn.dense_in.weight):
            middle = work.take("middle", part.stop - part.start, len(ffn.dense_in.weight.data))
            self.linear(h[part], ffn.dense_in.weight, bias=ffn.dense_in.bias, activation="gelu", out=middle)
            residual = x if weights.pre_norm else h
            self.linear(middle, ffn.dense_out.weight, bias=last, residual=residual[part], out=x[part])
        if ffn.trees is not None:
            around = {"out_norm": out_norm, "eps": weights.eps}
            self.fff_between_norms(h, ffn.trees, bias=ffn.b_out, residual=x, out=x, nodes=nodes, z=z, **around)
        elif out_norm is not None:
            self.norm(x, out_norm, weights.eps, out=x)

    # --- a layer alone ---

    def call_layer(self, layer: FeedForward, hidden: int, x: Any, out: Any = None) -> Any:
        """For an array of the host (the answer comes back to it) or of the GPU (CuPy's, or one that CuPy can share:
        __cuda_array_interface__, __dlpack__), on the caller's current stream.
        """
        at_host = is_of_host(x)
        with self.cupy.cuda.Device(self.number), self._session:
            given, inner = self._taken(x, out, hidden)
            y = self.empty(*inner.shape)
            if len(inner):
                feedforward.forward(self, inner, layer, residual=None, out=y, work=self._session)
            y = y[:, :hidden]
            y = self.bring(y)() if at_host else self._as_floats(y, given.dtype)
            if out is None:
                return y
            out[...] = y
            return out

    def layer_routes(self, layer: FeedForward, hidden: int, trees: int, x: Any) -> tuple[Any, Any]:
        at_host = is_of_host(x)
        with self.cupy.cuda.Device(self.number), self._session:
            _, inner = self._taken(x, None, hidden)
            y = self.empty(*inner.shape)
            shape = len(inner), trees, layer.trees.depth + 1
            nodes, z = self.empty(*shape, dtype=np.int32), self.empty(*shape, dtype=np.float32)
            self.fff(inner, layer.trees, out=y, nodes=nodes, z=z)
            return (self.bring(nodes)(), self.bring(z)()) if at_host else (nodes, z)

    def _taken(self, x: Any, out: Any, hidden: int) -> tuple[Any, Any]:
        """(x on this GPU, the same in the compute dtype and as wide as the kernels' rows). Raises ShapeError, DtypeError, InputError."""
        cupy = self.cupy
        if is_of_host(x):
            check_layer_arrays(x, out, hidden)
            given = self._send("x", x)
        else:
            given = cupy.asarray(x) if hasattr(x, "__cuda_array_interface__") else cupy.from_dlpack(x)
            if given.ndim != 2 or given.shape[1] != hidden:
                raise ShapeError(f"x is {given.shape}, expected (T, {hidden})\n  hidden={hidden} comes from w_in")
            if given.dtype not in (np.float32, np.float16, self.storage):
                raise DtypeError(f"x has dtype {given.dtype}, expected float32, float16 or the bits of {self.act}")
        return given, self._widened(self._as_act(given), self.width)

    def _as_act(self, x: Any) -> Any:
        """float32 or float16 values as the compute dtype's bits."""
        if x.dtype == self.storage or self.act != "bfloat16":
            return x.astype(self.storage, copy=False)
        bits = self.cupy.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # of the NaN that GPUs give, all ones, this would make -0
        return self.cupy.where(self.cupy.isnan(x), 0x7FC0, rounded).astype(np.uint16)

    def _as_floats(self, y: Any, dtype: Any) -> Any:
        if self.act != "bfloat16" or dtype == self.storage:
            return self.cupy.ascontiguousarray(y, dtype)
        return (y.astype(np.uint32) << 16).view(np.float32).astype(dtype)


def is_of_host(x: Any) -> bool:
    """Whether x is not an array of a GPU, nor one that CuPy can share."""
    return isinstance(x, np.ndarray) or not any(hasattr(x, a) for a in ("__cuda_array_interface__", "__dlpack__"))
