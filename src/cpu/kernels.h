/* What every ISA offers, and the order in which every kernel sums.
 *
 * Each isa_*.c defines its vector type (simd_*.h), includes the algorithms (*.inc) and exports one
 * table of them, fi_isa. dispatch.c lists the tables; the caller picks one and passes it along: no
 * process-wide switch.
 *
 * Threads. Kernels open none. A kernel that takes (team) is called by every thread of a team with the
 * same arguments; it takes its share by team.rank and meets the others at fi_barrier(team). The caller brings
 * the team (fi_run; one run may hold many kernels). Kernels that meet need the whole region as their team. None waits for the
 * others before it returns: the barrier between kernels that share a buffer or a workspace is the caller's. A workspace must
 * be enough for every team up to the size it is asked for, since a run may get fewer threads.
 *
 * Order of summation. Answers may not depend on the batch, its order, the number of threads or the
 * strategy, so each sum has one order per ISA and storage type:
 *   - a dot product x.w over D of an FFF node: two accumulator vectors; lane l of accumulator c takes the elements
 *     l + c VL, l + (c + 2) VL, l + (c + 4) VL ... in ascending order, one FMA each (mul and add where there is no FMA),
 *     the tail padded with zeros; then accumulator 0 + accumulator 1, then vf_sum, one fixed tree; times the row's scale
 *     where there is one; + b_in.
 *   - an FFF's output: per element, over visited nodes in ascending (tree, node), one FMA each, from zero;
 *     then + bias, then + residual.
 *   - a matrix product: per output, over k ascending, one FMA each, from zero; then + bias, activation, + residual.
 *     bfloat16: both factors rounded to nearest even bfloat16; with VDPBF16PS, one such instruction per pair (k, k + 1)
 *     instead, which flushes denormals. int8: exact in integers, then one FMA: sum * (token's scale * output's scale) + bias.
 *   - attention: a score as a matrix product; weights exp(scale * (score - largest)), their sum by lanes over keys ascending, then
 *     vf_sum; an output is one FMA per key ascending, from zero, then times 1 / sum. bfloat16: dot instructions as above.
 *   - norm: sums of four lane accumulators, vector i in i mod 4, added as (0 + 1) + (2 + 3), then vf_sum: of x; then of x - mean, which
 *     gives the rest of the mean, and of its squares, whose mean less the rest's square is the variance.
 */
#ifndef FI_KERNELS_H
#define FI_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum fi_dtype { FI_F32 = 0, FI_BF16 = 1, FI_I8 = 2 };

typedef struct {
    int rank, size;
} fi_team;

/* P trees of N nodes each, as they lie in the checkpoint: children == NULL means heap order,
   2n + 1 to the left and 2n + 2 to the right, N = 2**(depth+1) - 1 or more. */
typedef struct {
    const void *nodes;       /* (P, N, 2, D) of dtype; [..., 0, :] decides, [..., 1, :] is added */
    const float *scale;      /* (P, N, 2) when dtype is FI_I8, else NULL */
    const float *b_in;       /* (P, N) or NULL */
    const int32_t *children; /* (P, N, 2) or NULL; -1 = stop */
    int dtype, trees, count, hidden, depth;
} fi_trees;

typedef struct {
    const float *x;        /* (T, D) C order */
    const float *bias;     /* (D,) or NULL */
    const float *residual; /* (T, D) or NULL; may be out itself */
    float *out;            /* (T, D), overwritten; never x itself */
    int32_t *nodes;        /* (T, P, depth + 1) visited node ids, -1 after a stop; or NULL */
    float *z;              /* (T, P, depth + 1) their logits, 0 after a stop; or NULL */
    int tokens;
} fi_fff_call;

/* Rows of a matrix (N outputs, K inputs), C order, as stored; scale (N,) when dtype is FI_I8, else NULL. */
typedef struct {
    const void *data;
    const float *scale;
    int dtype;
} fi_rows;

/* The same, packed by this ISA for computing in dtype. outputs and inputs >= 1; inputs <= 131072 for FI_I8, whose sums are int32
   (_cpu.pyx refuses more, and sizes for which the ints here are too small). */
typedef struct {
    const void *packed; /* pack_bytes of them, 64-aligned */
    int dtype, outputs, inputs;
} fi_matrix;

enum fi_activation { FI_LINEAR = 0, FI_GELU = 1, FI_TANH = 2, FI_RELU = 3 };

/* out = activation(x W^T + bias) + residual. Strides: values from a row to the next. */
typedef struct {
    const float *x;        /* (T, K) */
    const float *bias;     /* (N,) or NULL */
    const float *residual; /* (T, N) or NULL; may be out itself */
    void *out;             /* (T, N) float32, or bfloat16 (half), overwritten; apart from x */
    ptrdiff_t x_stride, residual_stride, out_stride;
    int tokens, activation, half;
} fi_gemm_call;

/* out = norm(x + residual) * gamma + beta, over rows. */
typedef struct {
    const float *x;        /* (T, D) */
    const float *residual; /* (T, D) or NULL */
    float *sum;            /* (T, D) gets x + residual, or NULL; may be x or residual; unused without residual */
    float *out;            /* (T, D); may be x or residual */
    const float *gamma;    /* (D,) */
    const float *beta;     /* (D,) or NULL */
    float eps;
    int tokens, hidden;
} fi_norm_call;

/* out = norm(words[ids] + position_rows[positions] + type_rows[types]); no gamma: no norm. Indices are the caller's to check. */
typedef struct {
    const int32_t *ids, *positions, *types; /* (T,); types NULL: 0; positions unused without position_rows */
    fi_rows words;                          /* (V, D) as stored */
    const float *position_rows, *type_rows; /* (., D) or NULL */
    const float *gamma, *beta;              /* (D,) or NULL */
    float *out;                             /* (T, D) */
    float eps;
    int tokens, hidden;
} fi_embed_call;

/* Per text and head: out = softmax(scale * q k^T) v. */
typedef struct {
    const void *qkv;           /* (T, 3 heads * head_size) float32, or bfloat16 (half, with FI_BF16 alone): q of all heads, k, v */
    float *out;                /* (T, heads * head_size), apart from qkv */
    const int32_t *cu_seqlens; /* (texts + 1,) from 0 to T */
    ptrdiff_t qkv_stride, out_stride;
    int texts, heads, head_size; /* head_size: a multiple of 8 */
    float scale;                 /* > 0 */
    int half;
    int dtype; /* FI_F32, or FI_BF16: bfloat16 factors where the ISA has their dot product, else float32 */
} fi_attention_call;

typedef struct fi_isa {
    const char *name;
    int (*usable)(void); /* does this CPU (and OS) have it? */
    int lanes;           /* floats in a vector */
    int half; /* does it write and read bfloat16 q, k and v? That is what attention in bfloat16 rounds them to, in half the memory */
    int (*fff_team)(const fi_trees *, int tokens, int most);              /* how many threads of `most` are worth it */
    size_t (*fff_workspace)(const fi_trees *, int tokens, int team_size); /* bytes, 64-aligned by the caller */
    void (*fff)(const fi_trees *, const fi_fff_call *, void *workspace, fi_team);
    size_t (*pack_bytes)(int dtype, int outputs, int inputs);
    void (*pack)(const fi_rows *, const fi_matrix *, void *packed, fi_team); /* packed: what the matrix will point to */
    size_t (*gemm_workspace)(const fi_matrix *, int tokens, int team_size);  /* bytes, 64-aligned by the caller */
    int (*gemm_team)(const fi_matrix *, int tokens, int most);               /* how many threads of `most` are worth it */
    void (*gemm)(const fi_matrix *, const fi_gemm_call *, void *workspace, fi_team);
    void (*norm)(const fi_norm_call *, fi_team);
    void (*embed)(const fi_embed_call *, fi_team);
    int (*attention_team)(const fi_attention_call *, int most);
    size_t (*attention_workspace)(const fi_attention_call *, int team_size); /* bytes, 64-aligned by the caller */
    void (*attention)(const fi_attention_call *, void *workspace, fi_team);  /* meets the team once, at its start */
    void (*gelu)(const float *x, float *out, size_t count);                  /* exact, by erf; out may be x, here and below */
    void (*tanh)(const float *x, float *out, size_t count);
    void (*erf)(const float *x, float *out, size_t count);
    void (*exp)(const float *x, float *out, size_t count);
    float (*probe_fma)(size_t rounds); /* probe.inc */
    float (*probe_read)(const float *, size_t count, size_t times);
} fi_isa;

extern const fi_isa *const fi_isas[]; /* best first, NULL at the end; the compiled ones, usable or not */

/* team.c: run task(argument, team) on `size` threads, the caller's among them; all of them meet at fi_barrier(). */
typedef void (*fi_task)(void *argument, fi_team);
void fi_run(fi_task, void *argument, int size);
void fi_barrier(fi_team);

#endif
