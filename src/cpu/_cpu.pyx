# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=True
"""The compiled backend: arrays in, kernels of one ISA run by a team of threads, the interpreter lock released.

Callers (backends/cpu.py) have checked shapes; typed memoryviews check dtypes and contiguity once more.
Threads live here only: a parallel region around each call, none where one thread does.
"""

from cython.parallel cimport parallel
from libc.stdint cimport int32_t
from libc.stdlib cimport free


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **pointer, size_t alignment, size_t size)


cdef extern from "kernels.h" nogil:
    enum: FI_F32
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
    ctypedef struct fi_isa:
        const char *name
        int (*usable)() noexcept nogil
        size_t (*fff_workspace)(const fi_trees *, int, int) noexcept nogil
        void (*fff)(const fi_trees *, const fi_fff_call *, void *, fi_team) noexcept nogil
        void (*gelu)(const float *, float *, size_t) noexcept nogil
    const fi_isa *fi_isas[]
    bint fi_openmp
    fi_team fi_team_here()


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


cdef class Trees:
    """The trees of one layer, used where they lie: nodes (P, N, 2, D) float32, b_in (P, N), children (P, N, 2)."""

    cdef fi_trees c
    cdef object _keep

    def __init__(self, const float[:, :, :, ::1] nodes, const float[:, ::1] b_in, const int32_t[:, :, ::1] children, int depth):
        self._keep = (nodes, b_in, children)
        self.c.nodes = &nodes[0, 0, 0, 0]
        self.c.scale = NULL
        self.c.b_in = NULL if b_in is None else &b_in[0, 0]
        self.c.children = NULL if children is None else &children[0, 0, 0]
        self.c.dtype = FI_F32
        self.c.trees, self.c.count, self.c.hidden = nodes.shape[0], nodes.shape[1], nodes.shape[3]
        self.c.depth = depth

    @property
    def depth(self):
        """Decisions per walk."""
        return self.c.depth


cdef class Kernels:
    """The kernels of one ISA."""

    cdef const fi_isa *isa

    def __init__(self, str name):
        cdef int i = 0
        while fi_isas[i] != NULL:
            if fi_isas[i].name == name.encode() and fi_isas[i].usable():
                self.isa = fi_isas[i]
                return
            i += 1
        raise ValueError(f"ISA {name!r} is not compiled in or not on this CPU: {isas()}")

    def fff(
        self, const float[:, ::1] x, Trees trees, const float[::1] bias, const float[:, ::1] residual, float[:, ::1] out,
        int32_t[:, :, ::1] nodes, float[:, :, ::1] z, int threads,
    ):
        """out (T, D) = fff(x (T, D)) + bias (D,) + residual (T, D); nodes and z (T, P, depth + 1) filled when given."""
        cdef fi_fff_call call
        cdef int size = min(threads, <int>x.shape[0]) if fi_openmp else 1
        cdef void *workspace = NULL
        if x.shape[0] == 0:
            return
        call.x = &x[0, 0]
        call.bias = NULL if bias is None else &bias[0]
        call.residual = NULL if residual is None else &residual[0, 0]
        call.out = &out[0, 0]
        call.nodes = NULL if nodes is None else &nodes[0, 0, 0]
        call.z = NULL if z is None else &z[0, 0, 0]
        call.tokens = <int>x.shape[0]
        if posix_memalign(&workspace, 64, self.isa.fff_workspace(&trees.c, call.tokens, size)):
            raise MemoryError("no memory for the workspace of fff")
        with nogil:
            if size == 1:
                self.isa.fff(&trees.c, &call, workspace, fi_team_here())
            else:
                with parallel(num_threads=size):
                    self.isa.fff(&trees.c, &call, workspace, fi_team_here())
        free(workspace)

    def gelu(self, const float[::1] x, float[::1] out):
        """out = gelu(x), elementwise."""
        if x.shape[0]:
            self.isa.gelu(&x[0], &out[0], x.shape[0])
