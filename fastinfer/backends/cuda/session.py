"""Sessions. Each has the stream, buffers, graphs and planned products of one forward pass at a time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...batch import PackedBatch
from ...errors import BackendError
from ...workspace import Workspace
from .cublaslt import WORKSPACE, HeadProduct, Product
from .memory import Memory
from .shared import STORAGE
from .tuning import fastest
from .weights import Matrix


class Placed(NamedTuple):
    """A batch on the GPU.

    ids         (tokens,) int32; only its length is used
    input       (words,) int32, which the kernel `embed` reads
    with_types  whether `input` has token types
    cu_seqlens  (tokens, 2) int32: the first row of each token's text and the row after its last; `embed` fills it for `attention`
    keys        those of the batch, on the host: the second number is then the row after the last key; None: no token has fewer keys
    """

    ids: Any
    input: Any
    with_types: bool
    cu_seqlens: Any
    keys: np.ndarray | None = None


class Session(Workspace):
    """The stream and buffers of one forward pass at a time. A call takes a session from `pool` and gives it back."""

    def __init__(self, pool: Sessions, stream: Any) -> None:
        super().__init__()
        self._pool, self.stream = pool, stream
        self.graphs: dict[Any, tuple[Any, Any]] = {}  # by batch size: the graph of the forward pass, and the array of its result
        self._placed: dict[Any, Placed] = {}
        self._products: dict[Any, Product] = {}
        self._head_products: dict[Any, HeadProduct] = {}
        self._blocks: list[Any] = []  # two blocks of pinned memory that batches are sent from in turn
        self._outer: list[Any] = []
        self.starts: Any = None  # of the last batch: cu_seqlens on the host, the device array that has a copy, and its first index there

    def __enter__(self) -> Session:
        """Make the session's GPU and stream the current ones of this thread. __exit__ restores the earlier ones."""
        cupy = self._pool.memory.cupy
        device, session = cupy.cuda.runtime.getDevice(), self._pool.entered
        cupy.cuda.runtime.setDevice(self._pool.memory.number)
        self._outer.append((device, session, cupy.cuda.get_current_stream()))
        self.stream.use()
        self._pool.entered = self
        return self

    def __exit__(self, *raised: object) -> None:
        memory, error = self._pool.memory, raised[1]
        device, session, stream = self._outer.pop()
        stream.use()
        memory.cupy.cuda.runtime.setDevice(device)
        self._pool.entered = session
        if isinstance(error, memory.cupy.cuda.memory.OutOfMemoryError):  # CuPy itself allocated
            raise memory.no_room(f"a copy ({error})") from None

    def close(self) -> None:
        """Return the session to the pool."""
        self._pool.idle.append(self)

    def take(self, name: str, *shape: int, dtype: Any = None) -> Any:
        """As Workspace.take. When a buffer must grow, all graphs are dropped, because they hold its old address."""
        dtype = np.dtype(self._pool.storage if dtype is None else dtype)
        buffer = self._buffers.get(name)
        size = math.prod(shape)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            self.graphs.clear()  # graphs and placed batches hold the old address
            self._placed.clear()
            self._buffers[name] = buffer = None
            self._buffers[name] = buffer = self._pool.memory.allocate(f"the buffer {name!r}", (size,), dtype)
            buffer.fill(0)
        return buffer[:size].reshape(shape)

    def product(self, rows: int, weight: Matrix, bias: bool, residual: bool) -> Product:
        """The planned product of this shape. At first use its algorithms are timed, and all sessions keep the fastest."""
        key = rows, *weight.data.shape, bias, residual
        if key not in self._products:
            pool = self._pool
            self._products[key] = product = Product(pool.memory.number, pool.act, *key)
            if key not in pool.algorithms:
                with pool.new() as aside:  # on a new stream, because a caller's stream may not allow capture
                    pool.algorithms[key] = fastest(product, weight.data, rows, bias, residual, pool.memory, aside)
            product.algorithm = pool.algorithms[key]
        return self._products[key]

    def head_product(self, rows: int, outputs: int, heads: int, size: int, strides: tuple[int, int], factor: float) -> HeadProduct:
        """The planned HeadProduct of this shape, with the algorithm that cuBLASLt suggests first."""
        key = rows, outputs, heads, size, strides, factor
        if key not in self._head_products:
            self._head_products[key] = HeadProduct(self._pool.memory.number, self._pool.act, *key)
        return self._head_products[key]

    def workspace(self) -> Any:
        """Scratch memory for cuBLASLt."""
        if "workspace" not in self._buffers:
            self._buffers["workspace"] = self._pool.memory.allocate("the workspace of products", (WORKSPACE,), np.uint8)
        return self._buffers["workspace"]

    def place(self, batch: PackedBatch, size: int, with_types: bool) -> Placed:
        """The batch on the GPU, padded to `size` tokens. It is sent in one copy from pinned memory, and the host does not wait."""
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
        runtime = self._pool.memory.cupy.cuda.runtime
        runtime.memcpyAsync(placed.input.data.ptr, source, 4 * used, runtime.memcpyHostToDevice, self.stream.ptr)
        left.record(self.stream)
        self.starts = batch.cu_seqlens, placed.input, starts
        return placed

    def _pinned(self, words: int) -> tuple[np.ndarray, int, Any]:
        """(pinned memory of `words` int32, its address, an event that is done when the memory may be written again)."""
        for *_, left in self._blocks:
            left.synchronize()
        cupy = self._pool.memory.cupy
        memory = cupy.cuda.alloc_pinned_memory(4 * words)
        return np.frombuffer(memory, np.int32, words), memory.ptr, cupy.cuda.Event(disable_timing=True)

    def capture(self, run: Callable[[], Any]) -> Any:
        """The graph of the kernels that `run` launches. `run` must have run before, so that capture allocates, loads and times nothing."""
        self.stream.begin_capture()
        try:
            run()
        finally:
            graph = self.stream.end_capture()
        graph.upload(self.stream)
        return graph


class Sessions:
    """The sessions of one model on one GPU. act: the compute dtype.

    idle        the sessions that no call uses
    algorithms  the fastest algorithm of cuBLASLt, by shape of product
    """

    def __init__(self, memory: Memory, act: str) -> None:
        self.memory, self.act, self.storage, self.process = memory, act, np.dtype(STORAGE[act]), os.getpid()
        self.idle: list[Session] = []
        self.algorithms: dict[Any, bytes] = {}
        self._local = threading.local()

    @property
    def entered(self) -> Session | None:
        """The session of the call that this thread is in."""
        found: Session | None = self._local.__dict__.get("session")
        return found

    @entered.setter
    def entered(self, session: Session | None) -> None:
        self._local.session = session

    def take(self) -> Session:
        """A session for one call, which the caller closes at its end. Raises BackendError in a forked process."""
        if os.getpid() != self.process:
            device = f"cuda:{self.memory.number}"
            raise BackendError(
                f"{device} was set up by process {self.process}, of which this one is a fork: CUDA does not work there\n"
                "  Start processes by spawn or forkserver, or use no GPU before the fork."
            )
        try:
            return self.idle.pop()
        except IndexError:  # a test before pop() would let another thread take the last one
            return self.new()

    def new(self) -> Session:
        """A new session on a new stream."""
        cupy = self.memory.cupy
        with cupy.cuda.Device(self.memory.number):
            return Session(self, cupy.cuda.Stream(non_blocking=True))

    def current(self) -> Session:
        """The session of the call that this thread is in, else one for the caller's own stream."""
        session = self.entered
        if session is None:
            stream, sessions = self.memory.cupy.cuda.get_current_stream(), self._local.__dict__.setdefault("streams", {})
            session = sessions.get(stream.ptr)
            if session is None:
                session = sessions[stream.ptr] = Session(self, stream)
        return session

    def clear(self) -> None:
        """Drop the sessions that no call uses."""
        self.idle.clear()
        self._local = threading.local()
