/* What every ISA offers, and the order in which every kernel sums.
 *
 * Each isa_*.c defines its vector type (simd_*.h), includes the algorithms (*.inc) and exports one
 * table of them, fi_isa. dispatch.c lists the tables; the caller picks one and passes it along: no
 * process-wide switch.
 *
 * Threads. Kernels open none. A kernel that takes (team) is called by every thread of a team with the
 * same arguments; it takes its share by team.rank and meets the others at fi_barrier(). The caller opens
 * the team (one parallel region may run many kernels).
 *
 * Order of summation. Answers may not depend on the batch, its order, the number of threads or the
 * strategy, so each sum has one order per ISA and storage type:
 *   - a dot product x.w over D of an FFF node: lane l of one accumulator vector takes the elements
 *     l, l + VL, l + 2 VL ... in ascending order, one FMA each (mul and add where there is no FMA), the tail
 *     padded with zeros; then vf_sum, one fixed tree. More accumulators per dot are DOT_CHAINS, below.
 *   - an FFF's output: per element, over visited nodes in ascending (tree, node), one FMA each, from zero;
 *     then + bias, then + residual.
 *   - a matrix product: per output, over k ascending, one FMA each, from zero; then + bias, activation, + residual.
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

typedef struct fi_isa {
    const char *name;
    int (*usable)(void); /* does this CPU (and OS) have it? */
    size_t (*fff_workspace)(const fi_trees *, int tokens, int team_size); /* bytes, 64-aligned by the caller */
    void (*fff)(const fi_trees *, const fi_fff_call *, void *workspace, fi_team);
    void (*gelu)(const float *x, float *out, size_t count);
} fi_isa;

extern const fi_isa *const fi_isas[];    /* best first, NULL at the end; the compiled ones, usable or not */
extern const int fi_openmp;              /* built with OpenMP? */
fi_team fi_team_here(void);              /* the calling thread's place in the innermost parallel region */
void fi_barrier(void);                   /* all threads of that region meet */

#endif
