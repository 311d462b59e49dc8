// The instructions of sm_80 that multiply on tensor cores and copy to shared memory past the registers.

#if !defined(ACT_FLOAT) && __CUDA_ARCH__ >= 800

#ifdef ACT_HALF
#define ACT_PTX "f16"
#else
#define ACT_PTX "bf16"
#endif

// d (16, 8) += a (16, 16) b (16, 8). Lane l has rows l / 4 and l / 4 + 8 of d and, of each, columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ACT_PTX "." ACT_PTX ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 from shared memory; lane l says where row l % 8 of matrix l / 8 starts.
__device__ __forceinline__ void load_matrices(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

// 16 bytes to shared memory past the registers; zeros, and nothing is read, if they are not there. L2 may fetch the 128 bytes around: in
// attention what they hold of another head is wanted as well (5% of the time of short texts with heads of 32).
__device__ __forceinline__ void copy16(u32 to, const act* from, bool there = true) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// This thread's copies are done, but for those of the newest `LEFT` commits.
template <int LEFT> __device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#endif
