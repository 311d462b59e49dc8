# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=True
"""The compiled backend: arrays in, kernels of one ISA run by a team of threads, the interpreter lock released.

Callers (backends/cpu.py) have checked shapes; typed memoryviews check dtypes and contiguity once more.
Threads live here only: a parallel region around each call, none where one thread does.
"""

import time

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cython.parallel cimport parallel
from libc.math cimport sqrt
from libc.stdint cimport int32_t
from libc.stdlib cimport free


ctypedef void (*array_kernel)(const float *, float *, size_t) noexcept nogil


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **pointer, size_t alignment, size_t size)


cdef extern from "kernels.h" nogil:
    enum: FI_F32, FI_BF16, FI_I8
    enum: FI_LINEAR, FI_GELU, FI_TANH, FI_RELU
    ctypedef struct fi_team:
        int rank, size
    ctypedef struct fi_trees:
        const void *nodes
        const float *scale
        const float *b_in
        const int32_t *children
        int dtype, trees, count, hidden, depth
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
    ctypedef struct fi_gemm_call:
        const float *x
        const float *bias
        const float *residual
        float *out
        Py_ssize_t x_stride, residual_stride, out_stride
        int tokens, activation
    ctypedef struct fi_norm_call:
        const float *x
        const float *residual
        float *sum
        float *out
        const float *gamma
        const float *beta
        float eps
        int tokens, hidden
    ctypedef struct fi_attention_call:
        const float *qkv
        float *out
        const int32_t *cu_seqlens
        Py_ssize_t qkv_stride, out_stride
        int texts, heads, head_size
        float scale
        int dtype
    ctypedef struct fi_isa:
        const char *name
        int (*usable)() noexcept nogil
        size_t (*fff_workspace)(const fi_trees *, int, int) noexcept nogil
        int (*fff_team)(const fi_trees *, int, int) noexcept nogil
        void (*fff)(const fi_trees *, const fi_fff_call *, void *, fi_team) noexcept nogil
        size_t (*pack_bytes)(int, int, int) noexcept nogil
        void (*pack)(const fi_rows *, const fi_matrix *, void *, fi_team) noexcept nogil
        size_t (*gemm_workspace)(const fi_matrix *, int, int) noexcept nogil
        int (*gemm_team)(const fi_matrix *, int, int) noexcept nogil
        void (*gemm)(const fi_matrix *, const fi_gemm_call *, void *, fi_team) noexcept nogil
        void (*norm)(const fi_norm_call *, fi_team) noexcept nogil
        int (*attention_team)(const fi_attention_call *, int) noexcept nogil
        size_t (*attention_workspace)(const fi_attention_call *, int) noexcept nogil
        void (*attention)(const fi_attention_call *, void *, fi_team) noexcept nogil
        array_kernel gelu, tanh, erf, exp
        float (*probe_fma)(size_t) noexcept nogil
        float (*probe_read)(const float *, size_t, size_t) noexcept nogil
        int lanes
    const fi_isa *fi_isas[]
    bint fi_openmp
    fi_team fi_team_here()


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
cdef dict ACTIVATIONS = {None: FI_LINEAR, "gelu": FI_GELU, "tanh": FI_TANH, "relu": FI_RELU}

# A workspace up to this size is kept for the next call; a larger one goes back to the system.
cdef size_t KEEP_BYTES = 16 << 20


# Rows of a norm that pay for waking another thread.
cdef int NORM_ROWS = 64


def isas():
    """[(name, whether this CPU has it)] of all compiled ISAs, best first."""
    found = []
    cdef int i = 0
    while fi_isas[i] != NULL:
        found.append((fi_isas[i].name.decode(), bool(fi_isas[i].usable())))
        i += 1
    return found


def openmp():
    """Whether the module was built with OpenMP; without it, every call runs on one thread."""
    return bool(fi_openmp)


cdef class Memory:
    """64-byte aligned, uninitialised bytes."""

    cdef void *data
    cdef size_t size

    def __init__(self, size_t size):
        if posix_memalign(&self.data, 64, max(size, 64)):
            self.data = NULL
            raise MemoryError(f"no memory for {size / 1e6:.1f} MB")
        self.size = size

    def __dealloc__(self):
        free(self.data)


cdef class Trees:
    """The trees of one layer, used where they lie.

    nodes (P, N, 2, D) of dtype (bfloat16 as uint16), scale (P, N, 2) of int8 or None, b_in (P, N) or None,
    children (P, N, 2) or None; depth: decisions per walk.
    """

    cdef fi_trees c
    cdef object _keep

    def __init__(self, nodes, str dtype, const float[:, :, ::1] scale, const float[:, ::1] b_in, const int32_t[:, :, ::1] children, int depth):
        cdef const unsigned char[::1] raw = nodes.reshape(-1).view("u1")
        self._keep = (nodes, scale, b_in, children)
        self.c.nodes = &raw[0]
        self.c.scale = NULL if scale is None else &scale[0, 0, 0]
        self.c.b_in = NULL if b_in is None else &b_in[0, 0]
        self.c.children = NULL if children is None else &children[0, 0, 0]
        self.c.dtype = DTYPES[dtype]
        self.c.trees, self.c.count, _, self.c.hidden = nodes.shape
        self.c.depth = depth

    @property
    def depth(self):
        """Decisions per walk."""
        return self.c.depth


cdef class Matrix:
    """A dense weight (outputs, inputs), packed once for the kernels of one ISA."""

    cdef fi_matrix c
    cdef Memory _packed

    @property
    def outputs(self):
        return self.c.outputs

    @property
    def nbytes(self):
        return self._packed.size


cdef class Kernels:
    """The kernels of one ISA, and a workspace that calls pass on to each other."""

    cdef const fi_isa *isa
    cdef Memory _spare

    def __init__(self, str name):
        cdef int i = 0
        while fi_isas[i] != NULL:
            if fi_isas[i].name == name.encode() and fi_isas[i].usable():
                self.isa = fi_isas[i]
                return
            i += 1
        raise ValueError(f"ISA {name!r} is not compiled in or not on this CPU: {isas()}")

    cdef Memory _take(self, size_t size):
        """A workspace of at least `size` bytes. The interpreter lock makes the exchange atomic: each caller has its own."""
        cdef Memory found = self._spare
        self._spare = None
        if found is None or found.size < size:
            found = Memory(size)
        return found

    cdef void _give(self, Memory workspace):
        if workspace.size <= KEEP_BYTES:
            self._spare = workspace

    def fff(
        self, const float[:, ::1] x, Trees trees, const float[::1] bias, const float[:, ::1] residual, float[:, ::1] out,
        int32_t[:, :, ::1] nodes, float[:, :, ::1] z, int threads,
    ):
        """out (T, D) = fff(x (T, D)) + bias (D,) + residual (T, D); nodes and z (T, P, depth + 1) filled when given."""
        cdef fi_fff_call call
        cdef Memory workspace
        cdef int size
        call.tokens = <int>x.shape[0]
        if call.tokens == 0:
            return
        call.x = &x[0, 0]
        call.bias = NULL if bias is None else &bias[0]
        call.residual = NULL if residual is None else &residual[0, 0]
        call.out = &out[0, 0]
        call.nodes = NULL if nodes is None else &nodes[0, 0, 0]
        call.z = NULL if z is None else &z[0, 0, 0]
        size = self.isa.fff_team(&trees.c, call.tokens, threads) if fi_openmp else 1
        workspace = self._take(self.isa.fff_workspace(&trees.c, call.tokens, size))
        with nogil:
            if size == 1:
                self.isa.fff(&trees.c, &call, workspace.data, fi_team(0, 1))
            else:
                with parallel(num_threads=size):
                    self.isa.fff(&trees.c, &call, workspace.data, fi_team_here())
        self._give(workspace)

    def pack(self, rows, str stored, const float[::1] scale, str dtype, int threads):
        """A Matrix for computing in `dtype` from rows (outputs, inputs) stored as `stored`, with scale (outputs,) of int8."""
        cdef const unsigned char[::1] raw = rows.reshape(-1).view("u1")
        cdef Matrix matrix = Matrix.__new__(Matrix)
        cdef fi_rows source
        cdef int size = threads if fi_openmp else 1
        source.data, source.dtype = &raw[0], DTYPES[stored]
        source.scale = NULL if scale is None else &scale[0]
        matrix.c.dtype, matrix.c.outputs, matrix.c.inputs = DTYPES[dtype], rows.shape[0], rows.shape[1]
        matrix._packed = Memory(self.isa.pack_bytes(matrix.c.dtype, matrix.c.outputs, matrix.c.inputs))
        matrix.c.packed = matrix._packed.data
        with nogil:
            if size == 1:
                self.isa.pack(&source, &matrix.c, matrix._packed.data, fi_team(0, 1))
            else:
                with parallel(num_threads=size):
                    self.isa.pack(&source, &matrix.c, matrix._packed.data, fi_team_here())
        return matrix

    def gemm(
        self, const float[:, ::1] x, Matrix matrix, const float[::1] bias, activation, const float[:, ::1] residual, float[:, ::1] out, int threads
    ):
        """out (T, M) = activation(x (T, K) @ matrix.T + bias (M,)) + residual (T, M)."""
        cdef fi_gemm_call call
        cdef Memory workspace
        cdef int size
        call.tokens = <int>x.shape[0]
        if call.tokens == 0:
            return
        call.x, call.x_stride = &x[0, 0], x.shape[1]
        call.bias = NULL if bias is None else &bias[0]
        call.residual, call.residual_stride = NULL, 0
        if residual is not None:
            call.residual, call.residual_stride = &residual[0, 0], residual.shape[1]
        call.out, call.out_stride = &out[0, 0], out.shape[1]
        call.activation = ACTIVATIONS[activation]
        size = self.isa.gemm_team(&matrix.c, call.tokens, threads) if fi_openmp else 1
        workspace = self._take(self.isa.gemm_workspace(&matrix.c, call.tokens, size))
        with nogil:
            if size == 1:
                self.isa.gemm(&matrix.c, &call, workspace.data, fi_team(0, 1))
            else:
                with parallel(num_threads=size):
                    self.isa.gemm(&matrix.c, &call, workspace.data, fi_team_here())
        self._give(workspace)

    def norm(self, const float[:, ::1] x, const float[::1] weight, const float[::1] bias, float eps, float[:, ::1] out, int threads):
        """out (T, D) = layer norm of the rows of x (T, D); out may be x."""
        cdef fi_norm_call call
        cdef int size
        if x.shape[0] == 0:
            return
        call.x, call.residual, call.sum, call.out = &x[0, 0], NULL, NULL, &out[0, 0]
        call.gamma, call.beta, call.eps = &weight[0], &bias[0], eps
        call.tokens, call.hidden = <int>x.shape[0], <int>x.shape[1]
        size = min(threads, 1 + call.tokens // NORM_ROWS) if fi_openmp else 1
        with nogil:
            if size == 1:
                self.isa.norm(&call, fi_team(0, 1))
            else:
                with parallel(num_threads=size):
                    self.isa.norm(&call, fi_team_here())

    def attention(self, const float[:, ::1] qkv, const int32_t[::1] cu_seqlens, int heads, float[:, ::1] out, int threads):
        """out (T, D) = multi-head attention inside each text over qkv (T, 3 D); D / heads is a multiple of 8."""
        cdef fi_attention_call call
        cdef Memory workspace
        cdef int size
        if out.shape[0] == 0:
            return
        call.qkv, call.qkv_stride = &qkv[0, 0], qkv.shape[1]
        call.out, call.out_stride = &out[0, 0], out.shape[1]
        call.cu_seqlens, call.texts = &cu_seqlens[0], <int>cu_seqlens.shape[0] - 1
        call.heads, call.head_size = heads, <int>out.shape[1] // heads
        call.scale, call.dtype = <float>(1.0 / sqrt(<double>call.head_size)), FI_F32
        size = self.isa.attention_team(&call, threads) if fi_openmp else 1
        workspace = self._take(self.isa.attention_workspace(&call, size))
        with nogil:
            if size == 1:
                self.isa.attention(&call, workspace.data, fi_team(0, 1))
            else:
                with parallel(num_threads=size):
                    self.isa.attention(&call, workspace.data, fi_team_here())
        self._give(workspace)

    def array(self, str function, const float[::1] x, float[::1] out):
        """out = function(x) elementwise: gelu, tanh, erf or exp."""
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
            raise ValueError(f"no function {function!r}")
        if x.shape[0]:
            with nogil:
                kernel(&x[0], &out[0], x.shape[0])

    def probe_fma(self, size_t rounds, int threads):
        """Floating-point operations per second (an FMA is two) of a team doing nothing but vector FMAs."""
        cdef double start = time.perf_counter()
        cdef int size = threads if fi_openmp else 1
        with nogil, parallel(num_threads=size):
            self.isa.probe_fma(rounds)
        return 2.0 * 8 * self.isa.lanes * rounds * size / (time.perf_counter() - start)

    def probe_read(self, const float[::1] data, size_t times, int threads):
        """Bytes per second of a team reading `data`, each thread its own part, in order, `times` over."""
        cdef int size = threads if fi_openmp else 1
        cdef size_t part = data.shape[0] // size // (8 * self.isa.lanes) * (8 * self.isa.lanes)
        cdef double start = time.perf_counter()
        with nogil, parallel(num_threads=size):
            self.isa.probe_read(&data[0] + part * fi_team_here().rank, part, times)
        return 4.0 * part * size * times / (time.perf_counter() - start)

    def ladder(self, str rung, const float[:, ::1] x, const float[:, ::1] w_in, const float[::1] b_in, const float[:, ::1] w_out, float[:, ::1] out):
        """The paper's levels through scipy's BLAS, a token at a time: dense1, dense2, fff1, fff2 (heap order, to the leaves)."""
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
        self._give(workspace)


cdef void *_blas(module, str name) except NULL:
    """The address of a BLAS routine that scipy exports to Cython."""
    capsule = module.__pyx_capi__[name]
    return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
