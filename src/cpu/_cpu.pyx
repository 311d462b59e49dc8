# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=True
"""The compiled part of the CPU backend: it runs the kernels of one ISA on arrays, by a team of threads, without the interpreter lock.

backends/cpu.py has checked the shapes, with errors in the caller's words. This module checks again, so no kernel runs on an array that
is too short: typed memoryviews check dtypes and contiguity, _rows and _long check shapes, _size checks that a size fits a C int.
Kernels runs each op at once, with a team of its own (team.c). Program collects ops and runs them all with one team.
"""

import time

import numpy as np

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.math cimport sqrt
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastinfer.activations import NUMBERS as _NUMBERS
from fastinfer.errors import ShapeError


ctypedef void (*array_kernel)(const float *, float *, size_t) noexcept nogil


cdef extern from "platform.h" nogil:
    enum: FI_ALIGNMENT
    void *fi_allocate(size_t)
    void fi_free(void *)
    double fi_seconds()


cdef extern from "<stdatomic.h>" nogil:
    ctypedef struct atomic_int:
        pass
    int atomic_load(atomic_int *)
    int atomic_fetch_add(atomic_int *, int)
    void atomic_store(atomic_int *, int)


cdef extern from "kernels.h" nogil:
    enum: FI_MOST_DEPTH, FI_PROBE_CHAINS
    enum: FI_F32, FI_BF16, FI_I8
    enum: FI_BLOCK_ROWS
    ctypedef struct fi_team:
        int rank, size
    ctypedef struct fi_trees:
        const void *nodes
        const float *scale
        const float *b_in
        const int32_t *children
        int dtype, trees, count, hidden, depth
        int activation, silent
        const int8_t *rows
        const int8_t *quads
    enum: FI_STRIP_VECTORS
    ctypedef struct fi_fff_call:
        const float *x
        const float *bias
        const float *residual
        float *out
        int32_t *nodes
        float *z
        int tokens
    ctypedef struct fi_rows:
        const void *data
        const float *scale
        int dtype
    ctypedef struct fi_matrix:
        const void *packed
        int dtype, outputs, inputs
    ctypedef struct fi_blocks:
        fi_matrix first, second
        const float *b_in
        const float *scale
        const float *b_leaf
        const int32_t *children
        int trees, nodes, blocks, leaf, hidden, activation
        int levels, depth
    ctypedef struct fi_blocks_call:
        const float *x
        const int32_t *path
        const float *path_z
        const float *bias
        const float *residual
        float *out
        int32_t *nodes
        float *z
        int tokens
    ctypedef struct fi_gemm_call:
        const float *x
        const float *bias
        const float *gate
        const float *residual
        void *out
        Py_ssize_t x_stride, gate_stride, residual_stride, out_stride
        int tokens, activation, half
    ctypedef struct fi_norm_call:
        const float *x
        const float *residual
        float *sum
        float *out
        const float *gamma
        const float *beta
        float eps
        int tokens, hidden, rms
    ctypedef struct fi_embed_call:
        const int32_t *ids
        const int32_t *positions
        const int32_t *types
        fi_rows words
        const float *position_rows
        const float *type_rows
        const float *gamma
        const float *beta
        float *out
        float eps
        int tokens, hidden
    ctypedef struct fi_norm_heads_call:
        void *qkv
        const float *query
        const float *key
        Py_ssize_t qkv_stride
        float eps
        int tokens, heads, head_size, half
    ctypedef struct fi_rotate_call:
        void *qkv
        const int32_t *cu_seqlens
        const float *table
        Py_ssize_t qkv_stride
        int texts, heads, head_size, half
    ctypedef struct fi_attention_call:
        const void *qkv
        float *out
        const int32_t *cu_seqlens
        Py_ssize_t qkv_stride, out_stride
        int texts, heads, head_size
        float scale
        int half
        int dtype
        int window
        int causal
        const int32_t *keys
        int reach, relative_width
        Py_ssize_t distance_stride
        const float *distances
        const fi_matrix *relative_keys
        const fi_matrix *relative_queries
        const int32_t *relative_rows
    enum: FI_SEARCH_F32, FI_SEARCH_I8, FI_SEARCH_BITS, FI_SEARCH_GROUP, FI_BEST_ROOM
    ctypedef struct fi_best:
        uint64_t *found
        float least
        float margin
        int count, next, crowded
    void fi_best_begin(fi_best *, uint64_t *, float, int, int) nogil
    int fi_best_merge(const fi_best *, int, size_t, int, int64_t *) nogil
    ctypedef struct fi_search_call:
        const void *rows
        const void *queries
        const float *scale
        const float *query_scale
        const float *bias
        float *out
        fi_best *best
        const uint8_t *gone
        Py_ssize_t out_stride
        uint32_t first
        int keep, room, kind, row_count, query_count, inputs
    ctypedef struct fi_isa:
        const char *name
        int (*usable)() noexcept nogil
        size_t (*fff_workspace)(const fi_trees *, int, int) noexcept nogil
        int (*fff_team)(const fi_trees *, int, int) noexcept nogil
        void (*fff)(const fi_trees *, const fi_fff_call *, void *, fi_team) noexcept nogil
        int (*blocks_team)(const fi_blocks *, int, int) noexcept nogil
        size_t (*blocks_workspace)(const fi_blocks *, int, int) noexcept nogil
        void (*blocks)(const fi_blocks *, const fi_blocks_call *, void *, fi_team) noexcept nogil
        size_t (*pack_bytes)(int, int, int) noexcept nogil
        void (*pack)(const fi_rows *, const fi_matrix *, void *, fi_team) noexcept nogil
        size_t (*gemm_workspace)(const fi_matrix *, int, int) noexcept nogil
        int (*gemm_team)(const fi_matrix *, int, int) noexcept nogil
        void (*gemm)(const fi_matrix *, const fi_gemm_call *, void *, fi_team) noexcept nogil
        void (*norm)(const fi_norm_call *, fi_team) noexcept nogil
        void (*embed)(const fi_embed_call *, fi_team) noexcept nogil
        void (*norm_heads)(const fi_norm_heads_call *, fi_team) noexcept nogil
        void (*rotate)(const fi_rotate_call *, fi_team) noexcept nogil
        int (*attention_team)(const fi_attention_call *, int) noexcept nogil
        size_t (*attention_workspace)(const fi_attention_call *, int) noexcept nogil
        void (*attention)(const fi_attention_call *, void *, fi_team) noexcept nogil
        void (*search)(const fi_search_call *, fi_team) noexcept nogil
        array_kernel gelu, tanh, erf, exp
        float (*probe_fma)(size_t) noexcept nogil
        float (*probe_dot)(size_t) noexcept nogil
        float (*probe_read)(const float *, size_t, size_t) noexcept nogil
        int lanes, half, bias
    const fi_isa *fi_isas[]
    ctypedef void (*fi_task)(void *, int, fi_team) noexcept nogil
    int fi_run(fi_task, void *, const int *, int, double, int)
    ctypedef struct fi_openmp:
        void (*parallel)(void (*)(void *), void *, unsigned, unsigned) noexcept nogil
        void (*barrier)() noexcept nogil
        int (*rank)() noexcept nogil
        int (*size)() noexcept nogil
    void fi_use_openmp(const fi_openmp *)
    int fi_uses_openmp()


cdef extern from "ladder.h" nogil:
    ctypedef float (*fi_sdot)(int *, float *, int *, float *, int *) noexcept nogil
    ctypedef void (*fi_saxpy)(int *, float *, float *, int *, float *, int *) noexcept nogil
    ctypedef void (*fi_sgemv)(char *, int *, int *, float *, float *, int *, float *, int *, float *, float *, int *) noexcept nogil
    ctypedef struct fi_ladder_call:
        fi_sdot dot
        fi_saxpy axpy
        fi_sgemv gemv
        const float *x
        const float *w_in
        const float *b_in
        const float *w_out
        float *out
        int tokens, hidden, neurons
    void fi_ladder(const fi_ladder_call *, int, array_kernel, float *)


cdef dict DTYPES = {"float32": FI_F32, "bfloat16": FI_BF16, "int8": FI_I8}
cdef dict ACTIVATIONS = _NUMBERS
cdef dict SEARCH_KINDS = {"f": FI_SEARCH_F32, "b": FI_SEARCH_I8, "B": FI_SEARCH_BITS}  # dtype.char; dtype.name takes ten times as long

cdef size_t KEEP_BYTES = 16 << 20  # bytes: the largest workspace that is kept for the next call; a larger one is freed

cdef double PATIENCE = 0.05  # seconds: how long a call runs ops before it looks for signals, such as Ctrl-C

# bytes of rows, times queries, whose products repay waking one more thread: 0.15 ms of one
cdef double SEARCH_PER_THREAD = 4 << 20
# the same of a step of a search, for each thread: a thread that wakes late, or is slow, is waited for at the end of a step
cdef double SEARCH_STEP = 2 << 20
cdef Py_ssize_t SEARCH_STEP_ROWS = 1024  # the fewest rows of a step
cdef Py_ssize_t MOST_FOUND = (1 << 32) - 1  # rows of a search for the best, whose numbers are 32 bits

cdef int ANY = 1 << 20  # as many threads as the work repays
# us: the longest that a single op, or a batch in parts, waits for threads to wake. An op waits a third of its time where that is less.
cdef int WAIT_US = 200
cdef int ROWS_PER_THREAD = 64  # rows of a norm or an embedding that repay waking one more thread


# The largest sizes that the kernels take. Their ints must hold twice the tokens and 16 levels of every tree.
cdef Py_ssize_t MOST_TOKENS = (1 << 30) - 1
cdef Py_ssize_t MOST_SIZE = 1 << 26

cdef Py_ssize_t MOST_HEAD = 1024  # values of a head that norm_heads widens at a time

cdef Py_ssize_t MOST_NEURONS = 1 << 16  # neurons of a token in trees packed as bytes, whose sums are int32: 65,536 * 127 * 255 < 2**31

cdef Py_ssize_t MOST_INT8_INPUTS = 1 << 17  # inputs of an int8 product, whose sums are int32: 131,072 * 127 * 128 < 2**31


cdef int _size(str what, Py_ssize_t got, Py_ssize_t least, Py_ssize_t most, str instead="") except -1:
    """`got` as a C int. Raises ShapeError where it is not from `least` to `most`; `instead` ends the message and says what to do."""
    if not least <= got <= most:
        raise ShapeError(f"{what} is {got}, expected {least} to {most} for the kernels of the CPU{instead}")
    return <int> got


cdef int _tokens(Py_ssize_t rows) except -1:
    """The number of rows of a call as a C int. Raises ShapeError where the kernels cannot take so many."""
    return _size("the number of rows", rows, 0, MOST_TOKENS, ": pass them in parts")


cdef int _rows(str what, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t want_rows, Py_ssize_t want_columns) except -1:
    """Raise ShapeError unless the matrix `what` has the expected shape."""
    if rows != want_rows or columns != want_columns:
        raise ShapeError(f"{what} is ({rows}, {columns}), expected ({want_rows}, {want_columns})")
    return 0


cdef int _scaled(scale, str stored) except -1:
    """Raise ShapeError unless int8 rows have scales, and rows of other dtypes have none."""
    if (scale is not None) != (stored == "int8"):
        raise ShapeError(f"{stored} rows have {'no scales' if scale is None else 'scales'}: int8 rows have one each, others none")
    return 0


cdef int _long(str what, Py_ssize_t got, Py_ssize_t want) except -1:
    """Raise ShapeError unless the vector `what` has the expected length."""
    if got != want:
        raise ShapeError(f"{what} is ({got},), expected ({want},)")
    return 0


def dtypes():
    """The dtypes that kernels compute in, as {name: number in kernels.h}."""
    return dict(DTYPES)


def activations():
    """The activations of a product's epilogue, as {name: number in kernels.h}; None is the identity."""
    return dict(ACTIVATIONS)


def isas():
    """All compiled ISAs as [(name, whether this CPU has it)], best first."""
    found = []
    cdef int i = 0
    while fi_isas[i] != NULL:
        found.append((fi_isas[i].name.decode(), bool(fi_isas[i].usable())))
        i += 1
    return found


def use_openmp(size_t parallel, size_t barrier, size_t rank, size_t size):
    """Let OpenMP's threads run later calls. The arguments are the addresses of the functions in fi_openmp of kernels.h."""
    cdef fi_openmp openmp
    openmp.parallel = <void (*)(void (*)(void *) noexcept, void *, unsigned, unsigned) noexcept nogil> <void *> parallel
    openmp.barrier = <void (*)() noexcept nogil> <void *> barrier
    openmp.rank = <int (*)() noexcept nogil> <void *> rank
    openmp.size = <int (*)() noexcept nogil> <void *> size
    with nogil:
        fi_use_openmp(&openmp)


def use_own():
    """Let the team's own threads run later calls, as at the start and in the child of a fork."""
    with nogil:
        fi_use_openmp(NULL)


def uses_openmp():
    """Whether OpenMP's threads run the calls of this process."""
    cdef bint uses
    with nogil:
        uses = fi_uses_openmp()
    return uses


cdef class Memory:
    """A block of uninitialised bytes, 64-byte aligned, freed with the object."""

    cdef void *data
    cdef size_t size

    def __init__(self, size_t size):
        self.data = fi_allocate(size if size > FI_ALIGNMENT else FI_ALIGNMENT)
        if self.data == NULL:
            raise MemoryError(f"no memory for {size / 1e6:.1f} MB")
        self.size = size

    def __dealloc__(self):
        fi_free(self.data)


cdef class Trees:
    """The trees of one layer. The arrays are used where they lie, not copied.

    nodes (P, N, 2, D) of dtype (bfloat16 as uint16), scale (P, N, 2) of int8 or None, b_in (P, N) or None,
    children (P, N, 2) or None; depth: decisions per token and tree; activation of all nodes; silent: they add nothing.
    rows and quads: wide int8 trees packed as bytes, as fff_bytes.inc takes them, or None. Raises ShapeError where shapes disagree.
    """

    cdef fi_trees c
    cdef object _keep

    def __init__(
        self, nodes, str dtype, const float[:, :, ::1] scale, const float[:, ::1] b_in, const int32_t[:, :, ::1] children, int depth,
        str activation, bint silent, const int8_t[:, :, ::1] rows_of_bytes, const int8_t[:, :, :, :, ::1] quads,
    ):
        cdef const unsigned char[::1] raw = nodes.reshape(-1).view("u1")
        cdef Py_ssize_t trees, count, rows, hidden
        trees, count, rows, hidden = nodes.shape
        self._keep = (raw, scale, b_in, children)
        self.c.depth = _size("depth", depth, 0, FI_MOST_DEPTH)
        self.c.trees = _size("the number of trees", trees, 1, MOST_SIZE)
        self.c.count = _size("the number of a tree's nodes", count, 1 if children is not None else (2 << depth) - 1, MOST_SIZE)
        self.c.hidden = _size("the hidden size", hidden, 1, MOST_SIZE)
        _long("a node's rows", rows, 2)
        _scaled(scale, dtype)
        if scale is not None:
            _rows("scale", scale.shape[0], scale.shape[1] * scale.shape[2], trees, 2 * count)
        if b_in is not None:
            _rows("b_in", b_in.shape[0], b_in.shape[1], trees, count)
        if children is not None:
            _rows("children", children.shape[0], children.shape[1] * children.shape[2], trees, 2 * count)
        self.c.nodes = &raw[0]
        self.c.scale = NULL if scale is None else &scale[0, 0, 0]
        self.c.b_in = NULL if b_in is None else &b_in[0, 0]
        self.c.children = NULL if children is None else &children[0, 0, 0]
        self.c.dtype = DTYPES[dtype]
        self.c.activation, self.c.silent = ACTIVATIONS[activation], silent
        self.c.rows = self.c.quads = NULL
        if rows_of_bytes is not None and quads is not None:
            self._take_bytes(rows_of_bytes, quads)

    cdef int _take_bytes(self, const int8_t[:, :, ::1] rows, const int8_t[:, :, :, :, ::1] quads) except -1:
        """Take trees packed as bytes. Raises ShapeError where they do not fit."""
        cdef int level, top = (self.c.depth + 1) % 4
        cdef Py_ssize_t columns = quads.shape[3], bundle = 4 if top == 1 else 2 if top == 2 else 1, ways = 0
        for level in range(top + 3, self.c.depth + 1, 4):
            ways += bundle << level
        ways += 0 if top == 0 else 1 if top == 1 else 4
        if self.c.dtype != FI_I8 or self.c.children != NULL or self.c.silent or self.c.trees * (self.c.depth + 1) > MOST_NEURONS:
            raise ShapeError("trees that are packed as bytes are expected to be int8, full, not silent and of few levels")
        _rows("rows of bytes", rows.shape[0] * rows.shape[1], rows.shape[2], self.c.trees * <Py_ssize_t>self.c.count,
              (self.c.hidden + <Py_ssize_t>63) // 64 * 64 + 64)
        if columns < 4 * FI_STRIP_VECTORS or columns % FI_STRIP_VECTORS:
            raise ShapeError(f"quads have {columns} columns, expected {FI_STRIP_VECTORS} vectors")
        _rows("quads", quads.shape[0] * quads.shape[1], quads.shape[2] * columns * quads.shape[4],
              (self.c.hidden + columns - 1) // columns * ((self.c.trees + bundle - 1) // bundle), ways * columns * 4)
        self._keep += (rows, quads)
        self.c.rows, self.c.quads = &rows[0, 0, 0], &quads[0, 0, 0, 0, 0]
        return 0

    @property
    def depth(self):
        """Decisions per token and tree."""
        return self.c.depth


cdef class Matrix:
    """A dense weight (outputs, inputs), packed once for the kernels of one ISA."""

    cdef fi_matrix c
    cdef unsigned char[::1] _packed

    @property
    def outputs(self):
        """Rows of the weight: values per token that a product writes."""
        return self.c.outputs

    @property
    def nbytes(self):
        """Bytes of the packed weight."""
        return self._packed.nbytes


cdef class Blocks:
    """The blocks of neurons at the leaves of one layer's trees: P trees, B blocks each, of L neurons.

    first (P B L, D) and second (P B D', L), packed for the kernels of one ISA in one dtype, D' being D rounded up to a multiple of 32
    b_in (P, B L) or None; scale (P, B L), by which neurons are multiplied between the products, or None; b_leaf (P, B, D) or None
    children (P, nodes, 2), in which a child from `nodes` on is a block, or None: heap order
    levels, depth: nodes of a path at most, and decisions before a block at most. Raises ShapeError where shapes disagree.
    """

    cdef fi_blocks c
    cdef Matrix _first, _second
    cdef object _keep

    def __init__(
        self, Matrix first, Matrix second, int blocks, int nodes, const float[:, ::1] b_in, const float[:, ::1] scale,
        const float[:, :, ::1] b_leaf, const int32_t[:, :, ::1] children, int levels, int depth, str activation,
    ):
        cdef Py_ssize_t padded
        self._first, self._second, self._keep = first, second, (b_in, scale, b_leaf, children)
        self.c.first, self.c.second = first.c, second.c
        self.c.hidden, self.c.leaf = first.c.inputs, second.c.inputs
        self.c.blocks, self.c.nodes = _size("the number of blocks", blocks, 1, MOST_SIZE), _size("the number of nodes", nodes, 0, MOST_SIZE)
        self.c.trees = _size("the number of trees", first.c.outputs // (<Py_ssize_t>blocks * self.c.leaf), 1, MOST_SIZE)
        padded = (self.c.hidden + FI_BLOCK_ROWS - 1) // FI_BLOCK_ROWS * FI_BLOCK_ROWS
        _long("the in-rows of the blocks", first.c.outputs, <Py_ssize_t>self.c.trees * blocks * self.c.leaf)
        _long("the out-rows of the blocks", second.c.outputs, <Py_ssize_t>self.c.trees * blocks * padded)
        self.c.depth = _size("depth", depth, 0, FI_MOST_DEPTH)
        self.c.levels = _size("the levels of a path", levels, 0, depth + 1)
        if first.c.dtype != second.c.dtype:
            raise ShapeError("the in-rows and the out-rows of blocks have two dtypes, expected one")
        if (nodes == 0) != (levels == 0) or levels and children is None and nodes + 1 != 1 << levels and depth >= levels:
            raise ShapeError(f"paths have {levels} levels and trees {nodes} nodes, expected 2**levels - 1 nodes before the blocks")
        for what, values in (("b_in", b_in), ("scale", scale)):
            if values is not None:
                _rows(what, values.shape[0], values.shape[1], self.c.trees, <Py_ssize_t>blocks * self.c.leaf)
        if b_leaf is not None:
            _rows("b_leaf", b_leaf.shape[0] * b_leaf.shape[1], b_leaf.shape[2], <Py_ssize_t>self.c.trees * blocks, self.c.hidden)
        if children is not None:
            _rows("children", children.shape[0], children.shape[1] * children.shape[2], self.c.trees, 2 * nodes)
        self.c.b_in = NULL if b_in is None else &b_in[0, 0]
        self.c.scale = NULL if scale is None else &scale[0, 0]
        self.c.b_leaf = NULL if b_leaf is None else &b_leaf[0, 0, 0]
        self.c.children = NULL if children is None else &children[0, 0, 0]
        self.c.activation = ACTIVATIONS[activation]


cdef int _longest(const int32_t[::1] cu_seqlens) noexcept:
    """The tokens of the longest text."""
    cdef int i, longest = 0
    for i in range(cu_seqlens.shape[0] - 1):
        longest = max(longest, cu_seqlens[i + 1] - cu_seqlens[i])
    return longest


cdef class Relative:
    """The tables of disentangled attention, for the kernels of one ISA.

    keys, queries  packed (heads * width, S), of the dtype in which attention computes; width is a multiple of 32
    rows           (2 R - 1,): the row of each distance i - j, from 0 to width - 1, rising
    """

    cdef Matrix _keys, _queries
    cdef const int32_t[::1] _rows
    cdef int _width

    def __init__(self, Matrix keys, Matrix queries, const int32_t[::1] rows, int width):
        cdef Py_ssize_t i
        self._keys, self._queries, self._rows = keys, queries, rows
        self._width = _size("the width of relative tables", width, 32, MOST_SIZE)
        if width % 32 or keys.c.dtype != queries.c.dtype or rows.shape[0] % 2 == 0:
            raise ShapeError(f"relative tables have width {width}, {rows.shape[0]} distances, expected a multiple of 32, an odd number")
        for i in range(rows.shape[0]):
            if not (0 if i == 0 else rows[i - 1]) <= rows[i] < width:
                raise ShapeError(f"relative row {i} is {rows[i]}, expected rows that never fall, from 0 to {width - 1}")

    cdef int fill(self, fi_attention_call *call, int longest, bint half) except -1:
        """Write the tables into a call. Raises ShapeError where they do not fit it. half: whether the kernels have bfloat16 products."""
        cdef int reach = <int>(self._rows.shape[0] // 2 + 1)
        if call.distances != NULL or reach < longest or self._keys.c.dtype != (call.dtype if half else <int>FI_F32):
            raise ShapeError(f"relative tables reach {reach} tokens, expected {longest} or more, attention's dtype, no distances beside")
        _rows("relative keys", self._keys.c.outputs, self._keys.c.inputs, call.heads * self._width, call.head_size)
        _rows("relative queries", self._queries.c.outputs, self._queries.c.inputs, call.heads * self._width, call.head_size)
        call.relative_keys, call.relative_queries = &self._keys.c, &self._queries.c
        call.relative_rows, call.relative_width, call.reach = &self._rows[0], self._width, reach
        return 0


# The arguments of one kernel.
cdef union AnyCall:
    fi_fff_call fff
    fi_blocks_call blocks
    fi_gemm_call gemm
    fi_norm_call norm
    fi_embed_call embed
    fi_norm_heads_call norm_heads
    fi_rotate_call rotate
    fi_attention_call attention
    fi_search_call search
    fi_rows pack

ctypedef void (*run_step)(const fi_isa *, const Step *, void *, fi_team) noexcept nogil
ctypedef int (*repaid_step)(const fi_isa *, const Step *) noexcept nogil
ctypedef void (*confine_step)(Step *, const Part *) noexcept nogil

# Some texts that lie one after another in a batch: their first row and text, and how many there are. Their rows of `result` are those of
# the batch. Other arrays of activations serve the steps of a part alone: there they are rows from `spare` on, which a thread uses for all
# of its parts, so that they stay in the cache.
cdef struct Part:
    Py_ssize_t row, spare
    int rows, text, texts
    const char *result
    const char *result_end

# The functions of a kind of step; the last two are NULL for what is not a part of a forward pass.
# repaid: the threads that the work repays; each takes 3 us of it, or more
# confine: lets the step compute the rows of a part alone
cdef struct Kind:
    run_step run
    repaid_step repaid
    confine_step confine

cdef struct Step:
    Kind kind
    const void *weights
    AnyCall call
    int rows
    int worth  # threads that the work repays
    size_t workspace

cdef struct Job:
    const fi_isa *isa
    const Step *steps
    void *workspace

# Each part is computed by one thread, which takes the next one until there are no more, or fi_seconds() has passed `until`. A thread has
# its own part of the workspace and, where a batch has room, `spare_rows` rows of its own; else 0.
cdef struct Apart:
    const fi_isa *isa
    const Step *steps
    const Part *parts
    char *workspace
    size_t workspace_bytes
    Py_ssize_t spare_rows
    int step_count, part_count
    atomic_int taken
    double until


cdef void run_fff(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.fff(<const fi_trees *> step.weights, &step.call.fff, workspace, team)


cdef int repaid_fff(const fi_isa *isa, const Step *step) noexcept nogil:
    return isa.fff_team(<const fi_trees *> step.weights, step.rows, ANY)


cdef inline float *_below(const void *rows, Py_ssize_t values) noexcept nogil:
    """`values` further on in an array, or NULL where there is none."""
    return NULL if rows == NULL else <float *> rows + values


cdef inline Py_ssize_t _row(const void *rows, const Part *part) noexcept nogil:
    """The first row of a part in an array of activations."""
    return part.row if part.result <= <const char *> rows < part.result_end else part.spare


cdef inline float *_own(const void *rows, const Part *part, Py_ssize_t stride) noexcept nogil:
    """The rows of a part in an array of activations, or NULL where there is none."""
    return _below(rows, _row(rows, part) * stride)


cdef void confine_fff(Step *step, const Part *part) noexcept nogil:
    cdef fi_fff_call *call = &step.call.fff
    cdef const fi_trees *trees = <const fi_trees *> step.weights
    cdef Py_ssize_t levels = part.row * trees.trees * (trees.depth + 1)
    call.x, call.out, call.residual = (
        _own(call.x, part, trees.hidden), _own(call.out, part, trees.hidden), _own(call.residual, part, trees.hidden)
    )
    call.nodes, call.z = <int32_t *> _below(call.nodes, levels), _below(call.z, levels)
    call.tokens = part.rows


cdef void run_blocks(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.blocks(<const fi_blocks *> step.weights, &step.call.blocks, workspace, team)


cdef int repaid_blocks(const fi_isa *isa, const Step *step) noexcept nogil:
    return isa.blocks_team(<const fi_blocks *> step.weights, step.rows, ANY)


cdef void confine_blocks(Step *step, const Part *part) noexcept nogil:
    cdef fi_blocks_call *call = &step.call.blocks
    cdef const fi_blocks *blocks = <const fi_blocks *> step.weights
    cdef Py_ssize_t levels = part.row * blocks.trees * blocks.levels, most = part.row * blocks.trees * (blocks.depth + 1)
    call.x, call.out, call.residual = (
        _own(call.x, part, blocks.hidden), _own(call.out, part, blocks.hidden), _own(call.residual, part, blocks.hidden)
    )
    call.path, call.path_z = <const int32_t *> _below(call.path, levels), _below(call.path_z, levels)
    call.nodes, call.z = <int32_t *> _below(call.nodes, most), _below(call.z, most)
    call.tokens = part.rows


cdef void run_gemm(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.gemm(<const fi_matrix *> step.weights, &step.call.gemm, workspace, team)


cdef int repaid_gemm(const fi_isa *isa, const Step *step) noexcept nogil:
    return isa.gemm_team(<const fi_matrix *> step.weights, step.rows, ANY)


cdef void confine_gemm(Step *step, const Part *part) noexcept nogil:
    cdef fi_gemm_call *call = &step.call.gemm
    call.x, call.gate = _own(call.x, part, call.x_stride), _own(call.gate, part, call.gate_stride)
    call.residual = _own(call.residual, part, call.residual_stride)
    call.out = <char *> call.out + _row(call.out, part) * call.out_stride * (2 if call.half else 4)
    call.tokens = part.rows


cdef void run_pack(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    cdef const fi_matrix *matrix = <const fi_matrix *> step.weights
    isa.pack(&step.call.pack, matrix, <void *> matrix.packed, team)


cdef void run_norm(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.norm(&step.call.norm, team)


cdef int repaid_rows(const fi_isa *isa, const Step *step) noexcept nogil:
    return 1 + step.rows // ROWS_PER_THREAD


cdef void confine_norm(Step *step, const Part *part) noexcept nogil:
    cdef fi_norm_call *call = &step.call.norm
    call.x, call.out = _own(call.x, part, call.hidden), _own(call.out, part, call.hidden)
    call.tokens = part.rows


cdef void run_embed(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.embed(&step.call.embed, team)


cdef void confine_embed(Step *step, const Part *part) noexcept nogil:
    cdef fi_embed_call *call = &step.call.embed
    call.ids, call.positions = call.ids + part.row, call.positions + part.row
    call.types = <const int32_t *> _below(call.types, part.row)
    call.out = _own(call.out, part, call.hidden)
    call.tokens = part.rows


cdef void run_norm_heads(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.norm_heads(&step.call.norm_heads, team)


cdef void confine_norm_heads(Step *step, const Part *part) noexcept nogil:
    cdef fi_norm_heads_call *call = &step.call.norm_heads
    call.qkv = <char *> call.qkv + _row(call.qkv, part) * call.qkv_stride * (2 if call.half else 4)
    call.tokens = part.rows


cdef void run_rotate(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.rotate(&step.call.rotate, team)


cdef void confine_rotate(Step *step, const Part *part) noexcept nogil:
    cdef fi_rotate_call *call = &step.call.rotate  # its rows are numbered by cu_seqlens
    call.qkv = <char *> call.qkv + (_row(call.qkv, part) - part.row) * call.qkv_stride * (2 if call.half else 4)
    call.cu_seqlens, call.texts = call.cu_seqlens + part.text, part.texts


cdef void run_attention(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.attention(&step.call.attention, workspace, team)


cdef int repaid_attention(const fi_isa *isa, const Step *step) noexcept nogil:
    return isa.attention_team(&step.call.attention, ANY)


cdef void confine_attention(Step *step, const Part *part) noexcept nogil:
    cdef fi_attention_call *call = &step.call.attention  # its rows are numbered by cu_seqlens
    call.qkv = <const char *> call.qkv + (_row(call.qkv, part) - part.row) * call.qkv_stride * (2 if call.half else 4)
    call.out = _below(call.out, (_row(call.out, part) - part.row) * call.out_stride)
    call.cu_seqlens, call.texts = call.cu_seqlens + part.text, part.texts
    call.keys = <const int32_t *> _below(call.keys, part.text)


cdef void run_search(const fi_isa *isa, const Step *step, void *workspace, fi_team team) noexcept nogil:
    isa.search(&step.call.search, team)


cdef Kind FFF = Kind(run_fff, repaid_fff, confine_fff)
cdef Kind BLOCKS = Kind(run_blocks, repaid_blocks, confine_blocks)
cdef Kind GEMM = Kind(run_gemm, repaid_gemm, confine_gemm)
cdef Kind NORM = Kind(run_norm, repaid_rows, confine_norm)
cdef Kind EMBED = Kind(run_embed, repaid_rows, confine_embed)
cdef Kind NORM_HEADS = Kind(run_norm_heads, repaid_rows, confine_norm_heads)
cdef Kind ROTATE = Kind(run_rotate, repaid_rows, confine_rotate)
cdef Kind ATTENTION = Kind(run_attention, repaid_attention, confine_attention)
cdef Kind PACK = Kind(run_pack, NULL, NULL)
cdef Kind SEARCH = Kind(run_search, NULL, NULL)


cdef void _confine(Step *step, const Part *part) noexcept nogil:
    step.kind.confine(step, part)
    step.rows = part.rows


cdef int _search(
    fi_search_call *call, rows, queries, const float[::1] scale, const float[::1] query_scale, const float[::1] bias,
) except -1:
    """Fill in all of a call but where its results go; rows and queries are contiguous, and outlive it. Raises ShapeError."""
    cdef const unsigned char[::1] raw = rows.reshape(-1).view("u1")
    cdef const unsigned char[::1] asked = queries.reshape(-1).view("u1")
    memset(call, 0, sizeof(fi_search_call))
    call.kind = SEARCH_KINDS[rows.dtype.char]
    if queries.dtype != rows.dtype:
        raise ShapeError(f"the queries are {queries.dtype}, expected {rows.dtype}, as the rows are")
    call.row_count, call.query_count = _tokens(rows.shape[0]), _tokens(queries.shape[0])
    if call.row_count == 0 or call.query_count == 0:
        return 0
    call.inputs = _size("the numbers of a vector", rows.shape[1], 1, MOST_INT8_INPUTS)
    _rows("queries", queries.shape[0], queries.shape[1], call.query_count, call.inputs)
    if scale is not None:
        _long("scale", scale.shape[0], call.row_count)
        _long("query_scale", query_scale.shape[0], call.query_count)
        call.scale, call.query_scale = &scale[0], &query_scale[0]
    if bias is not None:
        _long("bias", bias.shape[0], call.row_count)
        call.bias = &bias[0]
    call.rows, call.queries = &raw[0], &asked[0]
    return 0


cdef int _search_team(double work, int threads):
    """The threads that repay waking: work are the bytes of the rows, times the queries."""
    return <int> min(<double> threads, 1 + work / SEARCH_PER_THREAD)


cdef void run_job(void *argument, int step, fi_team team) noexcept nogil:
    cdef Job *job = <Job *> argument
    job.steps[step].kind.run(job.isa, &job.steps[step], job.workspace, team)


cdef void run_apart(void *argument, int step, fi_team team) noexcept nogil:
    """All steps of a Program for one part after another."""
    cdef Apart *apart = <Apart *> argument
    cdef fi_team alone = fi_team(0, 1)
    cdef Part part
    cdef Step confined
    cdef int taken, i
    while True:
        taken = atomic_fetch_add(&apart.taken, 1)
        if taken >= apart.part_count:
            return
        part = apart.parts[taken]
        part.spare = team.rank * apart.spare_rows if apart.spare_rows else part.row
        for i in range(apart.step_count):
            confined = apart.steps[i]
            _confine(&confined, &part)
            confined.kind.run(apart.isa, &confined, apart.workspace + team.rank * apart.workspace_bytes, alone)
        if fi_seconds() > apart.until:
            return


cdef class Kernels:
    """The kernels of one ISA. Each op runs at once, on up to `threads` threads; the workspace of a call is kept for the next."""

    cdef const fi_isa *isa
    cdef Memory _spare

    def __init__(self, str name):
        cdef int i = 0
        while fi_isas[i] != NULL:
            if fi_isas[i].name == name.encode() and fi_isas[i].usable():
                self.isa = fi_isas[i]
                return
            i += 1
        here = ", ".join(isa for isa, usable in isas() if usable)
        raise ValueError(f"ISA is {name!r}, expected one that is compiled in and on this CPU: {here}")

    cdef Memory _take(self, size_t size):
        """A workspace of at least `size` bytes, for this caller alone: the interpreter lock makes taking the spare one atomic."""
        cdef Memory found = self._spare
        self._spare = None
        if found is None or found.size < size:
            found = Memory(size)
        return found

    cdef _give(self, Memory workspace):
        """Keep a workspace for the next caller, unless it is large."""
        if workspace.size <= KEEP_BYTES:
            self._spare = workspace

    @property
    def lanes(self):
        """Floats in a vector."""
        return self.isa.lanes

    @property
    def block_rows(self):
        """To a multiple of so many, which is whole panels of every ISA, the out-rows of a block are padded."""
        return FI_BLOCK_ROWS

    @property
    def strip_vectors(self):
        """Vectors of a strip of the out-rows of trees that are packed as bytes."""
        return FI_STRIP_VECTORS

    @property
    def bias(self):
        """What is added to the bytes of trees that are packed as bytes: 128 or 0."""
        return self.isa.bias

    @property
    def half(self):
        """Whether gemm can write bfloat16 and attention can read it."""
        return bool(self.isa.half)

    cdef _run(self, const Step *steps, const int *sizes, int count, size_t workspace_bytes):
        """Run steps in order, each on a team of up to sizes[i] threads."""
        cdef Memory workspace = self._take(workspace_bytes)
        cdef Job job = Job(self.isa, steps, workspace.data)
        cdef int done = 0, wait_us = min(steps.worth, WAIT_US) if count == 1 else 0
        while done < count:
            job.steps = steps + done
            with nogil:
                done += fi_run(run_job, &job, sizes + done, count - done, fi_seconds() + PATIENCE, wait_us)
            PyErr_CheckSignals()
        self._give(workspace)

    cdef _submit(self, Step *step, int threads, tuple keep):
        """Run a step now, on up to `threads` threads. `keep` holds the objects that its pointers point into."""
        cdef int size = min(step.worth, threads)
        self._run(step, &size, 1, step.workspace)

    def fff(
        self, const float[:, ::1] x, Trees trees, const float[::1] bias, const float[:, ::1] residual, float[:, ::1] out,
        int32_t[:, :, ::1] nodes, float[:, :, ::1] z, int threads,
    ):
        """out (T, D) = fff(x (T, D)) + bias (D,) + residual (T, D); nodes and z (T, P, depth + 1) are filled where given."""
        cdef Step step
        cdef fi_fff_call *call = &step.call.fff
        cdef Py_ssize_t levels = trees.c.depth + 1
        call.tokens = _tokens(x.shape[0])
        if call.tokens == 0:
            return
        _rows("x", x.shape[0], x.shape[1], call.tokens, trees.c.hidden)
        _rows("out", out.shape[0], out.shape[1], call.tokens, trees.c.hidden)
        if bias is not None:
            _long("bias", bias.shape[0], trees.c.hidden)
        if residual is not None:
            _rows("residual", residual.shape[0], residual.shape[1], call.tokens, trees.c.hidden)
        if nodes is not None:
            _rows("nodes", nodes.shape[0], nodes.shape[1] * nodes.shape[2], call.tokens, trees.c.trees * levels)
        if z is not None:
            _rows("z", z.shape[0], z.shape[1] * z.shape[2], call.tokens, trees.c.trees * levels)
        call.x = &x[0, 0]
        call.bias = NULL if bias is None else &bias[0]
        call.residual = NULL if residual is None else &residual[0, 0]
        call.out = &out[0, 0]
        call.nodes = NULL if nodes is None else &nodes[0, 0, 0]
        call.z = NULL if z is None else &z[0, 0, 0]
        step.kind, step.rows, step.weights = FFF, call.tokens, &trees.c
        step.worth = step.kind.repaid(self.isa, &step)
        step.workspace = self.isa.fff_workspace(&trees.c, call.tokens, threads)
        self._submit(&step, threads, (x, trees, bias, residual, out, nodes, z))

    def blocks(
        self, const float[:, ::1] x, Blocks blocks, const int32_t[:, :, ::1] path, const float[:, :, ::1] path_z, const float[::1] bias,
        const float[:, ::1] residual, float[:, ::1] out, int32_t[:, :, ::1] nodes, float[:, :, ::1] z, int threads,
    ):
        """out (T, D) += what the blocks at the ends of paths (T, P, levels) give for x (T, D); path and path_z as `fff` fills them.

        Where paths have no levels (path None), out = what the blocks give + bias (D,) + residual (T, D). nodes and z (T, P, depth + 1)
        are filled where given.
        """
        cdef Step step
        cdef fi_blocks_call *call = &step.call.blocks
        cdef const fi_blocks *c = &blocks.c
        call.tokens = _tokens(x.shape[0])
        if call.tokens == 0:
            return
        _rows("x", x.shape[0], x.shape[1], call.tokens, c.hidden)
        _rows("out", out.shape[0], out.shape[1], call.tokens, c.hidden)
        if (c.levels == 0) != (path is None) or (path is None) != (path_z is None) or path is not None and (
            bias is not None or residual is not None
        ):
            raise ShapeError(f"blocks below {c.levels} levels got other arguments, expected paths or, without levels, bias and residual")
        if path is not None:
            _rows("path", path.shape[0], path.shape[1] * path.shape[2], call.tokens, <Py_ssize_t>c.trees * c.levels)
            _rows("path_z", path_z.shape[0], path_z.shape[1] * path_z.shape[2], call.tokens, <Py_ssize_t>c.trees * c.levels)
        if bias is not None:
            _long("bias", bias.shape[0], c.hidden)
        if residual is not None:
            _rows("residual", residual.shape[0], residual.shape[1], call.tokens, c.hidden)
        if nodes is not None:
            _rows("nodes", nodes.shape[0], nodes.shape[1] * nodes.shape[2], call.tokens, <Py_ssize_t>c.trees * (c.depth + 1))
        if z is not None:
            _rows("z", z.shape[0], z.shape[1] * z.shape[2], call.tokens, <Py_ssize_t>c.trees * (c.depth + 1))
        call.x = &x[0, 0]
        call.path = NULL if path is None else &path[0, 0, 0]
        call.path_z = NULL if path_z is None else &path_z[0, 0, 0]
        call.bias = NULL if bias is None else &bias[0]
        call.residual = NULL if residual is None else &residual[0, 0]
        call.out = &out[0, 0]
        call.nodes = NULL if nodes is None else &nodes[0, 0, 0]
        call.z = NULL if z is None else &z[0, 0, 0]
        step.kind, step.rows, step.weights = BLOCKS, call.tokens, c
        step.worth = step.kind.repaid(self.isa, &step)
        step.workspace = self.isa.blocks_workspace(c, call.tokens, threads)
        self._submit(&step, threads, (x, blocks, path, path_z, bias, residual, out, nodes, z))

    def pack(self, rows, str stored, const float[::1] scale, str dtype, take, int threads):
        """A Matrix that computes in `dtype`, packed from rows (outputs, inputs) of dtype `stored`; int8 rows have scale (outputs,).

        take(bytes) gives the memory for it, aligned to cache lines.
        """
        cdef const unsigned char[::1] raw = rows.reshape(-1).view("u1")
        cdef Matrix matrix = Matrix.__new__(Matrix)
        cdef size_t size
        cdef Step step
        matrix.c.dtype = DTYPES[dtype]
        matrix.c.outputs = _size("the outputs of a matrix", rows.shape[0], 1, MOST_SIZE)
        matrix.c.inputs = _size("the inputs of a matrix", rows.shape[1], 1, MOST_SIZE)
        if dtype == "int8":
            _size("the inputs of an int8 matrix", rows.shape[1], 1, MOST_INT8_INPUTS, ": compute in another dtype, e.g. bfloat16")
        _scaled(scale, stored)
        if scale is not None:
            _long("scale", scale.shape[0], matrix.c.outputs)
        size = self.isa.pack_bytes(matrix.c.dtype, matrix.c.outputs, matrix.c.inputs)
        matrix._packed = take(size)
        if <size_t> matrix._packed.shape[0] < size or <size_t> &matrix._packed[0] % 64:
            raise ShapeError(f"packed weights got {matrix._packed.shape[0]} bytes, expected {size}, aligned to 64")
        matrix.c.packed = &matrix._packed[0]
        step.kind, step.weights, step.worth, step.workspace = PACK, &matrix.c, ANY, 0
        step.call.pack.data, step.call.pack.dtype = &raw[0], DTYPES[stored]
        step.call.pack.scale = NULL if scale is None else &scale[0]
        self._run(&step, &threads, 1, 0)
        return matrix

    def gemm(
        self, const float[:, ::1] x, Matrix matrix, const float[::1] bias, activation, const float[:, ::1] gate,
        const float[:, ::1] residual, out, int threads,
    ):
        """out (T, M) = activation(x (T, K) @ matrix.T + bias (M,)) * gate (T, M) + residual (T, M).

        out is float32, or bfloat16 as uint16 where `half`.
        """
        cdef Step step
        cdef fi_gemm_call *call = &step.call.gemm
        cdef uint16_t[:, ::1] halves
        cdef float[:, ::1] floats
        call.tokens = _tokens(x.shape[0])
        if call.tokens == 0:
            return
        _rows("x", x.shape[0], x.shape[1], call.tokens, matrix.c.inputs)
        _rows("out", out.shape[0], out.shape[1], call.tokens, matrix.c.outputs)
        if bias is not None:
            _long("bias", bias.shape[0], matrix.c.outputs)
        call.x, call.x_stride = &x[0, 0], x.shape[1]
        call.bias = NULL if bias is None else &bias[0]
        call.gate, call.gate_stride = NULL, 0
        if gate is not None:
            _rows("gate", gate.shape[0], gate.shape[1], call.tokens, matrix.c.outputs)
            call.gate, call.gate_stride = &gate[0, 0], gate.shape[1]
        call.residual, call.residual_stride = NULL, 0
        if residual is not None:
            _rows("residual", residual.shape[0], residual.shape[1], call.tokens, matrix.c.outputs)
            call.residual, call.residual_stride = &residual[0, 0], residual.shape[1]
        call.half = self.half and out.itemsize == 2
        if call.half:
            halves = out
            call.out = &halves[0, 0]
        else:
            floats = out
            call.out = &floats[0, 0]
        call.out_stride = matrix.c.outputs
        call.activation = ACTIVATIONS[activation]
        step.kind, step.rows, step.weights = GEMM, call.tokens, &matrix.c
        step.worth = step.kind.repaid(self.isa, &step)
        step.workspace = self.isa.gemm_workspace(&matrix.c, call.tokens, threads)
        self._submit(&step, threads, (x, matrix, bias, gate, residual, out))

    def norm(self, const float[:, ::1] x, const float[::1] weight, const float[::1] bias, float eps, float[:, ::1] out, int threads):
        """out (T, D) = layer norm of the rows of x (T, D), or without a bias their RMS norm; out may be x."""
        cdef Step step
        cdef fi_norm_call *call = &step.call.norm
        call.tokens = _tokens(x.shape[0])
        if call.tokens == 0:
            return
        call.hidden = _size("the hidden size", x.shape[1], 1, MOST_SIZE)
        _rows("out", out.shape[0], out.shape[1], call.tokens, call.hidden)
        _long("the norm's weight", weight.shape[0], call.hidden)
        if bias is not None:
            _long("the norm's bias", bias.shape[0], call.hidden)
        call.x, call.residual, call.sum, call.out = &x[0, 0], NULL, NULL, &out[0, 0]
        call.gamma, call.beta, call.eps, call.rms = &weight[0], NULL, eps, bias is None
        if bias is not None:
            call.beta = &bias[0]
        step.kind, step.rows, step.weights, step.workspace = NORM, call.tokens, NULL, 0
        step.worth = step.kind.repaid(self.isa, &step)
        self._submit(&step, threads, (x, weight, bias, out))

    def embed(
        self, const int32_t[::1] ids, const int32_t[::1] positions, const int32_t[::1] types, words, str stored, const float[::1] scale,
        const float[:, ::1] position_rows, const float[:, ::1] type_rows, const float[::1] weight, const float[::1] bias, float eps,
        float[:, ::1] out, int threads,
    ):
        """out (T, D) = norm(words[ids] + position_rows[positions] + type_rows[types]); the caller has checked ids.

        words (V, D) of dtype `stored`, int8 words with scale (V,). types None: all 0; position_rows and type_rows None: not added;
        weight None: no norm.
        """
        cdef const unsigned char[::1] raw = words.reshape(-1).view("u1")
        cdef Step step
        cdef fi_embed_call *call = &step.call.embed
        call.tokens = _tokens(out.shape[0])
        if call.tokens == 0:
            return
        call.hidden = _size("the hidden size", out.shape[1], 1, MOST_SIZE)
        _long("ids", ids.shape[0], call.tokens)
        _long("positions", positions.shape[0], call.tokens)
        _long("a word's row", words.shape[1], call.hidden)
        if position_rows is not None:
            _long("a position's row", position_rows.shape[1], call.hidden)
        if types is not None:
            _long("token_types", types.shape[0], call.tokens)
        _scaled(scale, stored)
        if scale is not None:
            _long("scale", scale.shape[0], words.shape[0])
        if type_rows is not None:
            _long("a token type's row", type_rows.shape[1], call.hidden)
        if weight is not None:
            _long("the norm's weight", weight.shape[0], call.hidden)
        if bias is not None:
            _long("the norm's bias", bias.shape[0], call.hidden)
        call.ids, call.positions = &ids[0], &positions[0]
        call.types = NULL if types is None else &types[0]
        call.words.data, call.words.dtype = &raw[0], DTYPES[stored]
        call.words.scale = NULL if scale is None else &scale[0]
        call.position_rows = NULL if position_rows is None else &position_rows[0, 0]
        call.type_rows = NULL if type_rows is None else &type_rows[0, 0]
        call.gamma = NULL if weight is None else &weight[0]
        call.beta = NULL if bias is None else &bias[0]
        call.out, call.eps = &out[0, 0], eps
        step.kind, step.rows, step.weights, step.workspace = EMBED, call.tokens, NULL, 0
        step.worth = step.kind.repaid(self.isa, &step)
        self._submit(&step, threads, (ids, positions, types, raw, scale, position_rows, type_rows, weight, bias, out))

    cdef int _heads(self, const int32_t[::1] cu_seqlens, int heads, int hidden, int tokens) except -1:
        """The values of a head. Raises ShapeError unless `heads` divide hidden and cu_seqlens rises from 0 to tokens."""
        cdef int i
        _size("the number of heads", heads, 1, hidden)
        if hidden % heads:
            raise ShapeError(f"the hidden size is {hidden}, expected a multiple of {heads} heads")
        _size("the number of texts", cu_seqlens.shape[0] - 1, 1, tokens)
        if cu_seqlens[0] != 0 or cu_seqlens[cu_seqlens.shape[0] - 1] != tokens:
            raise ShapeError(f"cu_seqlens is from {cu_seqlens[0]} to {cu_seqlens[cu_seqlens.shape[0] - 1]}, expected 0 to {tokens}")
        for i in range(cu_seqlens.shape[0] - 1):
            if cu_seqlens[i] > cu_seqlens[i + 1]:
                raise ShapeError(f"cu_seqlens[{i + 1}] is {cu_seqlens[i + 1]}, expected at least {cu_seqlens[i]}, the one before")
        return hidden // heads

    def norm_heads(self, qkv, int heads, const float[::1] query, const float[::1] key, float eps, int threads):
        """Put q and k of qkv (T, 3 heads S), float32 or bfloat16 as uint16, in place through an RMSNorm of each head; query, key (S,)."""
        cdef Step step
        cdef fi_norm_heads_call *call = &step.call.norm_heads
        cdef uint16_t[:, ::1] halves
        cdef float[:, ::1] floats
        call.tokens = _tokens(qkv.shape[0])
        if call.tokens == 0:
            return
        call.head_size = _size("the size of a head", query.shape[0], 1, MOST_HEAD)
        call.heads = _size("the number of heads", heads, 1, MOST_SIZE)
        _long("the weight for k", key.shape[0], call.head_size)
        _rows("qkv", qkv.shape[0], qkv.shape[1], call.tokens, 3 * <Py_ssize_t> heads * call.head_size)
        call.half = self.half and qkv.itemsize == 2
        if call.half:
            halves = qkv
            call.qkv = &halves[0, 0]
        else:
            floats = qkv
            call.qkv = &floats[0, 0]
        call.query, call.key, call.eps, call.qkv_stride = &query[0], &key[0], eps, qkv.shape[1]
        step.kind, step.rows, step.weights, step.workspace = NORM_HEADS, call.tokens, NULL, 0
        step.worth = step.kind.repaid(self.isa, &step)
        self._submit(&step, threads, (qkv, query, key))

    def rotate(self, qkv, const int32_t[::1] cu_seqlens, int heads, const float[:, ::1] table, int threads):
        """Turn q and k of qkv (T, 3 D), float32 or bfloat16 as uint16, in place by the angles of table (positions, D / heads)."""
        cdef Step step
        cdef fi_rotate_call *call = &step.call.rotate
        cdef uint16_t[:, ::1] halves
        cdef float[:, ::1] floats
        cdef int tokens = _tokens(qkv.shape[0])
        cdef int hidden = _size("the hidden size", qkv.shape[1] // 3, 0, MOST_SIZE)
        if tokens == 0:
            return
        _rows("qkv", qkv.shape[0], qkv.shape[1], tokens, 3 * hidden)
        call.head_size = self._heads(cu_seqlens, heads, hidden, tokens)
        if call.head_size % 2:
            raise ShapeError(f"a head has {call.head_size} values, expected an even number: pairs are turned")
        _rows("the table of angles", table.shape[0], table.shape[1], max(table.shape[0], _longest(cu_seqlens)), call.head_size)
        call.half = self.half and qkv.itemsize == 2
        if call.half:
            halves = qkv
            call.qkv = &halves[0, 0]
        else:
            floats = qkv
            call.qkv = &floats[0, 0]
        call.cu_seqlens, call.texts, call.heads = &cu_seqlens[0], <int>cu_seqlens.shape[0] - 1, heads
        call.table, call.qkv_stride = &table[0, 0], qkv.shape[1]
        step.kind, step.rows, step.weights, step.workspace = ROTATE, tokens, NULL, 0
        step.worth = step.kind.repaid(self.isa, &step)
        self._submit(&step, threads, (qkv, cu_seqlens, table))

    def attention(
        self, qkv, const int32_t[::1] cu_seqlens, int heads, int window, bint causal, const float[:, ::1] distances, Relative relative,
        const int32_t[::1] keys, float[:, ::1] out, str dtype, int threads,
    ):
        """out (T, D) = multi-head attention of qkv (T, 3 D), inside each text; D / heads must be a multiple of 8.

        qkv is float32, or bfloat16 as uint16 where `half` and dtype is bfloat16. window (0: all), causal, distances (heads, 2 R - 1) and
        relative are those of weights.Scores. keys (texts,): how many tokens at the beginning of each text are attended to, None: all.
        """
        cdef Step step
        cdef fi_attention_call *call = &step.call.attention
        cdef const uint16_t[:, ::1] halves
        cdef const float[:, ::1] floats
        cdef int i
        cdef int tokens = _tokens(out.shape[0])
        cdef int hidden = _size("the hidden size", out.shape[1], 0, MOST_SIZE)
        if tokens == 0:
            return
        call.head_size = self._heads(cu_seqlens, heads, hidden, tokens)
        call.texts, call.heads = <int>cu_seqlens.shape[0] - 1, heads
        if call.head_size % 8:
            raise ShapeError(f"the hidden size is {hidden}, expected {heads} heads of a multiple of 8")
        _rows("qkv", qkv.shape[0], qkv.shape[1], tokens, 3 * hidden)
        call.half = self.half and dtype == "bfloat16" and qkv.itemsize == 2
        if call.half:
            halves = qkv
            call.qkv = &halves[0, 0]
        else:
            floats = qkv
            call.qkv = &floats[0, 0]
        call.qkv_stride = 3 * out.shape[1]
        call.out, call.out_stride = &out[0, 0], out.shape[1]
        call.cu_seqlens = &cu_seqlens[0]
        call.scale, call.dtype = <float>(1.0 / sqrt(<double>call.head_size)), DTYPES[dtype]
        call.causal = causal
        call.window = _size("the window", window, 0, MOST_TOKENS)
        call.keys = NULL
        if keys is not None:
            _long("keys", keys.shape[0], call.texts)
            for i in range(call.texts):
                _size("the number of keys", keys[i], 1, cu_seqlens[i + 1] - cu_seqlens[i])
            if call.window or causal:
                raise ShapeError(f"the window is {call.window}, causal {causal} beside keys, expected none: a query might see no key")
            call.keys = &keys[0]
        call.reach, call.distance_stride, call.distances = 0, 0, NULL
        if distances is not None:
            call.reach, call.distance_stride, call.distances = <int>(distances.shape[1] // 2 + 1), distances.shape[1], &distances[0, 0]
            _rows("distances", distances.shape[0], distances.shape[1], heads, 2 * max(call.reach, _longest(cu_seqlens)) - 1)
        call.relative_keys, call.relative_queries, call.relative_rows, call.relative_width = NULL, NULL, NULL, 0
        if relative is not None:
            relative.fill(call, _longest(cu_seqlens), self.half)
        step.kind, step.rows, step.weights = ATTENTION, tokens, NULL
        step.worth = step.kind.repaid(self.isa, &step)
        step.workspace = self.isa.attention_workspace(call, threads)
        self._submit(&step, threads, (qkv, cu_seqlens, distances, relative, keys, out))

    def search(
        self, rows, queries, const float[::1] scale, const float[::1] query_scale, const float[::1] bias, float[:, ::1] out, int threads,
    ):
        """out (Q, N) = queries (Q, K) @ rows.T (K, N) * (query_scale (Q,) * scale (N,)) + bias (N,).

        rows and queries are both float32, both int8, or both uint8: bits, whose product is that of vectors of 1 and -1.
        """
        cdef Step step
        cdef fi_search_call *call = &step.call.search
        rows, queries = np.ascontiguousarray(rows), np.ascontiguousarray(queries)
        _search(call, rows, queries, scale, query_scale, bias)
        if call.row_count == 0 or call.query_count == 0:
            return
        _rows("out", out.shape[0], out.shape[1], call.query_count, call.row_count)
        call.out, call.out_stride = &out[0, 0], out.shape[1]
        step.kind, step.weights, step.workspace = SEARCH, NULL, 0
        step.worth = _search_team(<double> call.row_count * call.query_count * call.inputs * rows.itemsize, ANY)
        self._submit(&step, threads, (rows, queries, scale, query_scale, bias, out))

    def nearest(self, list parts, queries, const float[::1] query_scale, int keep, const float[::1] margin, int threads):
        """For each query the numbers of the rows of `parts` with the largest scores, the best first: int64 (found,), or None.

        parts: (number of the first row, rows, scale, bias, gone) each, ascending, with what search() takes; gone (N,) bool or None: rows
        to leave out. Found are the `keep` largest and those whose score is within margin (Q,) of the last of these. Of equal scores, the
        earlier row is better. None: too many are within the margin.
        """
        cdef Py_ssize_t total = sum([len(part[1]) for part in parts]), count = _tokens(queries.shape[0]), block, begin, end
        cdef int room = <int> min(4 * <Py_ssize_t> keep + FI_BEST_ROOM, max(total, 1)), t, q, got
        _size("threads", threads, 1, MOST_SIZE)
        _size("keep", keep, 1, MOST_TOKENS // 4)
        _long("margin", margin.shape[0], count)
        if not parts or not count:
            return [np.empty(0, np.int64)] * count
        end = max([part[0] + len(part[1]) for part in parts])
        if end > MOST_FOUND:
            raise ShapeError(f"the index has {end:,} rows, expected at most {MOST_FOUND:,}")
        cdef double products = <double> count * queries.shape[1] * queries.itemsize, step_rows
        cdef int size = _search_team(products * total, threads)
        queries = np.ascontiguousarray(queries)
        cdef size_t asked_bytes = queries.nbytes
        cdef Memory asked = Memory(asked_bytes)  # aligned: a load that crosses a cache line takes twice as long
        cdef Memory best = Memory(size * count * sizeof(fi_best))
        cdef Memory lists = Memory(size * count * room * sizeof(uint64_t))
        cdef fi_best *bests = <fi_best *> best.data
        for t in range(size):
            for q in range(<int> count):
                fi_best_begin(
                    &bests[t * count + q], <uint64_t *> lists.data + (t * count + q) * room, margin[q], keep, room
                )
        step_rows = max(<double> SEARCH_STEP_ROWS, size * SEARCH_STEP / products)
        block = <Py_ssize_t> min(step_rows, <double> max(total, 1)) // FI_SEARCH_GROUP * FI_SEARCH_GROUP + FI_SEARCH_GROUP
        cdef Py_ssize_t most = sum([(len(part[1]) + block - 1) // block for part in parts])
        cdef Memory steps = Memory(most * sizeof(Step)), sizes = Memory(most * sizeof(int))
        cdef Step step
        cdef fi_search_call *call = &step.call.search
        cdef Step *added
        cdef const unsigned char[::1] mask
        cdef int made = 0
        step.kind, step.weights, step.workspace, step.worth = SEARCH, NULL, 0, _search_team(products * total, ANY)
        held = []
        for first, rows, scale, bias, gone in parts:
            rows = np.ascontiguousarray(rows)
            held.append(rows)
            _search(call, rows, queries, scale, query_scale, bias)
            if call.row_count == 0:
                continue
            call.gone = NULL
            if gone is not None:
                mask = gone.view("u1")
                _long("gone", mask.shape[0], call.row_count)
                call.gone = &mask[0]
            memcpy(asked.data, call.queries, asked_bytes)
            call.queries, call.best, call.keep, call.room = asked.data, bests, keep, room
            for begin in range(0, call.row_count, block):
                end = min(begin + block, <Py_ssize_t> call.row_count)
                added = <Step *> steps.data + made
                added[0] = step
                added.call.search.first = <uint32_t> (<Py_ssize_t> first + begin)
                added.call.search.row_count = <int> (end - begin)
                added.call.search.rows = <const char *> call.rows + begin * <Py_ssize_t> (rows.shape[1] * rows.itemsize)
                if call.scale != NULL:
                    added.call.search.scale = call.scale + begin
                if call.bias != NULL:
                    added.call.search.bias = call.bias + begin
                if call.gone != NULL:
                    added.call.search.gone = call.gone + begin
                (<int *> sizes.data)[made] = size
                made += 1
        self._run(<const Step *> steps.data, <const int *> sizes.data, made, 0)
        cdef Py_ssize_t used = 0
        for t in range(size * <int> count):
            used += bests[t].count
        found, each = np.empty(used + 1, np.int64), []
        cdef int64_t[::1] into = found
        used = 0
        for q in range(<int> count):
            got = fi_best_merge(&bests[q], size, count, keep, &into[used])
            each.append(found[used : used + got] if got >= 0 else None)
            used += max(got, 0)
        return each

    def array(self, str function, const float[::1] x, float[::1] out):
        """out = function(x) for each element; function: "gelu", "tanh", "erf" or "exp"."""
        cdef array_kernel kernel
        if function == "gelu":
            kernel = self.isa.gelu
        elif function == "tanh":
            kernel = self.isa.tanh
        elif function == "erf":
            kernel = self.isa.erf
        elif function == "exp":
            kernel = self.isa.exp
        else:
            raise ValueError(f"function is {function!r}, expected gelu, tanh, erf or exp")
        _long("out", out.shape[0], x.shape[0])
        if x.shape[0]:
            with nogil:
                kernel(&x[0], &out[0], x.shape[0])

    def probe_dot(self):
        """How many times as long as an FMA a dot instruction of bfloat16 takes, which replaces two; None without one."""
        cdef double start, dot = 1e300, fma = 1e300
        cdef size_t rounds = 4096  # 10 to 30 us
        if self.isa.probe_dot == NULL:
            return None
        for _ in range(8):  # the best time counts: others run beside
            start = fi_seconds()
            self.isa.probe_fma(rounds)
            fma = min(fma, fi_seconds() - start)
            start = fi_seconds()
            self.isa.probe_dot(rounds)
            dot = min(dot, fi_seconds() - start)
        return dot / fma

    def probe_fma(self, size_t rounds, int threads):
        """Floating-point operations per second (an FMA counts as two) of a team that computes only vector FMAs."""
        cdef Probe probe = Probe(self.isa, NULL, rounds, 0, 0)
        cdef double start = time.perf_counter()
        with nogil:
            fi_run(run_probe, &probe, &threads, 1, 0, WAIT_US)
        return 2.0 * FI_PROBE_CHAINS * self.isa.lanes * rounds * probe.size / (time.perf_counter() - start)

    def probe_read(self, const float[::1] data, size_t times, int threads):
        """Bytes per second that a team reads: each thread reads its own part of `data`, in order, `times` times."""
        cdef size_t part = data.shape[0] // threads // (FI_PROBE_CHAINS * self.isa.lanes) * (FI_PROBE_CHAINS * self.isa.lanes)
        cdef Probe probe = Probe(self.isa, &data[0], times, part, 0)
        cdef double start = time.perf_counter()
        with nogil:
            fi_run(run_probe, &probe, &threads, 1, 0, WAIT_US)
        return 4.0 * part * probe.size * times / (time.perf_counter() - start)

    def ladder(
        self, str rung, const float[:, ::1] x, const float[:, ::1] w_in, const float[::1] b_in, const float[:, ::1] w_out, float[:, ::1] out
    ):
        """out = one rung of the comparison of ladder.h, through scipy's BLAS, a token at a time.

        rung: dense1, dense2, fff1 or fff2; trees are full, in heap order, and every path goes to a leaf.
        """
        from scipy.linalg import cython_blas

        cdef fi_ladder_call call
        cdef Memory workspace = self._take(<size_t> w_in.shape[0] * sizeof(float))
        cdef int kind = ["dense1", "dense2", "fff1", "fff2"].index(rung)
        call.dot = <fi_sdot> _blas(cython_blas, "sdot")
        call.axpy = <fi_saxpy> _blas(cython_blas, "saxpy")
        call.gemv = <fi_sgemv> _blas(cython_blas, "sgemv")
        call.x, call.w_in, call.b_in, call.w_out, call.out = &x[0, 0], &w_in[0, 0], &b_in[0], &w_out[0, 0], &out[0, 0]
        call.tokens, call.hidden, call.neurons = <int>x.shape[0], <int>x.shape[1], <int>w_in.shape[0]
        with nogil:
            fi_ladder(&call, kind, self.isa.gelu, <float *> workspace.data)
        self._spare = workspace


@cython.final
cdef class Program(Kernels):
    """Collects ops as they are called and runs them in order by one team: threads wake once, with a barrier between ops."""

    cdef Kernels _kernels
    cdef list _keep
    cdef Memory _steps, _sizes
    cdef int _count, _room
    cdef size_t _bytes

    def __init__(self, Kernels kernels):
        self.isa = kernels.isa
        self._kernels = kernels
        self._keep = []
        self._count, self._room, self._bytes = 0, 0, 0

    cdef _submit(self, Step *step, int threads, tuple keep):
        cdef Memory steps, sizes
        if self._count == self._room:
            self._room = max(64, 2 * self._room)
            steps, sizes = Memory(self._room * sizeof(Step)), Memory(self._room * sizeof(int))
            if self._count:
                memcpy(steps.data, self._steps.data, self._count * sizeof(Step))
                memcpy(sizes.data, self._sizes.data, self._count * sizeof(int))
            self._steps, self._sizes = steps, sizes
        (<Step *> self._steps.data)[self._count] = step[0]
        (<int *> self._sizes.data)[self._count] = min(step.worth, threads)
        self._count += 1
        self._keep.append(keep)
        self._bytes = max(self._bytes, step.workspace)

    def run(self):
        """Run the collected ops in order."""
        if self._count:
            self._kernels._run(<const Step *> self._steps.data, <const int *> self._sizes.data, self._count, self._bytes)

    def run_first(self, int rows, int texts, int threads):
        """Run the collected ops in order for the first `rows` rows and `texts` texts of their arrays, with up to `threads` threads."""
        cdef Memory confined = Memory(self._count * sizeof(Step)), sizes = Memory(self._count * sizeof(int))
        cdef Step *step = <Step *> confined.data
        cdef Part part
        cdef int i
        memset(&part, 0, sizeof(Part))
        part.rows, part.texts = rows, texts
        for i in range(self._count):
            step[i] = (<const Step *> self._steps.data)[i]
            _size("the number of rows", rows, 1, step[i].rows)
            _confine(&step[i], &part)
            (<int *> sizes.data)[i] = min(step[i].kind.repaid(self.isa, &step[i]), threads)
        self._kernels._run(step, <const int *> sizes.data, self._count, self._bytes)

    def run_apart(self, const float[:, ::1] result, const int32_t[::1] texts, const int32_t[::1] cu_seqlens, int threads):
        """Run the collected ops, all of which got one thread, for parts of the batch: a thread takes a part through all ops, then the next.

        result (T, D): the array whose rows are wanted afterwards; those of other activations are not. cu_seqlens: that of the batch, all of
        whose rows each op got. texts (parts + 1,): the number of each part's first text, rising from 0 to the number of texts.
        """
        cdef int count = <int> texts.shape[0] - 1, tokens = <int> result.shape[0], most = 0, i
        cdef Memory table = Memory(max(count, 1) * sizeof(Part))
        cdef Part *parts = <Part *> table.data
        if count < 1 or texts[0] != 0 or texts[count] != cu_seqlens.shape[0] - 1 or cu_seqlens[texts[count]] != tokens:
            raise ShapeError(f"the parts have texts {texts[0]} to {texts[count]}, expected all of a batch of {tokens} tokens")
        for i in range(count):
            if texts[i] >= texts[i + 1]:
                raise ShapeError(f"texts[{i + 1}] is {texts[i + 1]}, expected more than {texts[i]}, the one before")
            parts[i].row, parts[i].rows = cu_seqlens[texts[i]], cu_seqlens[texts[i + 1]] - cu_seqlens[texts[i]]
            parts[i].text, parts[i].texts = texts[i], texts[i + 1] - texts[i]
            parts[i].result = <const char *> &result[0, 0]
            parts[i].result_end = parts[i].result + result.shape[0] * result.shape[1] * sizeof(float)
            most = max(most, parts[i].rows)
        for i in range(self._count):
            _size("the number of rows", (<Step *> self._steps.data)[i].rows, tokens, tokens)
        cdef int size = min(threads, count)
        cdef size_t bytes_each = (self._bytes + 63) // 64 * 64
        cdef Memory workspace = self._kernels._take(size * bytes_each)
        cdef Apart apart
        apart.isa, apart.steps, apart.step_count = self.isa, <const Step *> self._steps.data, self._count
        apart.parts, apart.part_count = parts, count
        apart.workspace, apart.workspace_bytes = <char *> workspace.data, bytes_each
        apart.spare_rows = most if <Py_ssize_t> size * most <= tokens else 0
        atomic_store(&apart.taken, 0)
        while atomic_load(&apart.taken) < count:
            with nogil:
                apart.until = fi_seconds() + PATIENCE
                fi_run(run_apart, &apart, &size, 1, 0, WAIT_US)
            PyErr_CheckSignals()
        self._kernels._give(workspace)


# data: the floats to read; NULL: compute FMAs instead. size: the threads that ran
cdef struct Probe:
    const fi_isa *isa
    const float *data
    size_t times, part
    int size


cdef void run_probe(void *argument, int step, fi_team team) noexcept nogil:
    cdef Probe *probe = <Probe *> argument
    if team.rank == 0:
        probe.size = team.size
    if probe.data == NULL:
        probe.isa.probe_fma(probe.times)
    else:
        probe.isa.probe_read(probe.data + probe.part * team.rank, probe.part, probe.times)


cdef void *_blas(module, str name) except NULL:
    """The address of a BLAS routine that scipy exports to Cython."""
    capsule = module.__pyx_capi__[name]
    return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
