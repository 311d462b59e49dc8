/* What every ISA offers, and the order in which every kernel sums.
 *
 * Each isa_*.c defines its vector type (simd_*.h), includes the algorithms (kernels.inc) and exports one table of them, fi_isa.
 * dispatch.c lists the tables. The caller picks a table and passes it along, so there is no process-wide switch.
 *
 * Threads. Kernels start no threads. A kernel that takes (team) is called by every thread of a team with the same arguments. It
 * takes its share of the work by team.rank and waits for the others at fi_barrier(team). fi_run provides the team, and one run may
 * call many kernels, each a step. No kernel waits for the other threads before it returns: fi_run begins a step when all threads have
 * ended the one before, so that kernels may share a buffer or a workspace. A workspace must suffice for every team up to the size it was
 * computed for, since a step may get fewer threads.
 *
 * Order of summation. Answers may not depend on the batch, its order, the number of threads or the
 * strategy, so each sum has one order per ISA and storage type:
 *   - a dot product x.w over D of an FFF node: two accumulator vectors; lane l of accumulator c takes the elements
 *     l + c VL, l + (c + 2) VL, l + (c + 4) VL ... in ascending order, one FMA each (mul and add where there is no FMA),
 *     the tail padded with zeros; then accumulator 0 + accumulator 1, then vf_sum, one fixed tree; times the row's scale
 *     where there is one; + b_in.
 *   - an FFF's output: per element, over visited nodes in ascending (tree, node), one FMA each, from zero;
 *     then + bias, then + residual.
 *   - an FFF whose trees are packed as bytes: x rounded to int8 per token; a logit, exact lane sums added by vf_sum, times the token's
 *     scale, then the row's, + b_in; the output, exact in integers, times the scale of the token's neurons, + bias, + residual.
 *   - the blocks of an FFF: each of the two products as a matrix product, between them the activation, times the out-row's scale of int8;
 *     + b_leaf (of int8 in one FMA with the token's scale), + bias; trees ascending; each added to the output of the nodes.
 *   - a matrix product: per output, over k ascending, one FMA each, from zero; then + bias, activation, * gate or + residual.
 *     bfloat16: both factors rounded to nearest even bfloat16; with VDPBF16PS, one such instruction per pair (k, k + 1)
 *     instead, which flushes denormals; with BFDOT or BFMMLA, the two products of such a pair are added, then added to the sum, each
 *     rounded to odd, and denormals are flushed; with AMX, as amx.inc says. int8: exact in integers, then one FMA: sum * (token's scale *
 *     output's scale) + bias.
 *   - attention: a score as a matrix product, then the sum of the two relative products, then one FMA for its distance; a weight
 *     exp(scale * (score - largest)) as 2**x, x one FMA of the score, 0 for x below -125.5; the weights' sum by lanes over keys ascending,
 *     then vf_sum; an output is one FMA per key ascending, from zero, then times 1 / sum. bfloat16: dot instructions as above; AMX sums
 *     the products of values in blocks of 32 keys, which begin at the text's first key.
 *   - search: a dot product along K, in one accumulator vector, lane l takes l, l + VL ... ascending, one FMA each, then vf_sum.
 *   - no function of math.inc gives a denormal: exp is 0 below -87.33654, the tail of GELU and erf beyond 11.62.
 *   - norm: sums of four lane accumulators, vector i in i mod 4, added as (0 + 1) + (2 + 3), then vf_sum: of x; then of x - mean, which
 *     gives the rest of the mean, and of its squares, whose mean less the rest's square is the variance.
 */
#ifndef FI_KERNELS_H
#define FI_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { FI_MOST_DEPTH = 15 };  /* decisions of a path */
enum { FI_PROBE_CHAINS = 8 }; /* independent sums of the probes */
enum fi_dtype { FI_F32 = 0, FI_BF16 = 1, FI_I8 = 2 };
enum fi_activation { FI_LINEAR = 0, FI_GELU = 1, FI_TANH = 2, FI_RELU = 3, FI_SILU = 4, FI_GELU_TANH = 5 };

typedef struct {
    int rank, size;
} fi_team;

/* P trees of N nodes each, as they lie in the checkpoint. Without `children` the nodes are in heap order, with children 2n + 1 (left) and
   2n + 2 (right), and N is 2**(depth+1) - 1 or more. */
typedef struct {
    const void *nodes;       /* (P, N, 2, D) of dtype; [..., 0, :] is the in-row, which decides, [..., 1, :] the out-row, which is added */
    const float *scale;      /* (P, N, 2) when dtype is FI_I8, else NULL */
    const float *b_in;       /* (P, N) or NULL */
    const int32_t *children; /* (P, N, 2) or NULL; -1: the path stops here */
    int dtype, trees, count, hidden, depth;
    int activation, silent; /* of all nodes; silent: nodes add nothing, and only the paths matter */
    /* Wide int8 trees in heap order may be packed for dots of bytes; fff_bytes.inc says how, and what they compute then. Else NULL. */
    const int8_t *rows;  /* (P, N, D rounded up to 64 + 64): in-rows, and int32 behind them */
    const int8_t *quads; /* (strips, bundles, quads, columns, 4): out-rows */
} fi_trees;
enum { FI_STRIP_VECTORS = 8 }; /* vectors of columns in a strip of quads */

typedef struct {
    const float *x;        /* (T, D) C order */
    const float *bias;     /* (D,) or NULL */
    const float *residual; /* (T, D) or NULL; may be the same array as out */
    float *out;            /* (T, D), overwritten; must not be x */
    int32_t *nodes;        /* (T, P, depth + 1) visited node ids, -1 after a stop; or NULL */
    float *z;              /* (T, P, depth + 1) their logits, 0 after a stop; or NULL */
    int tokens;
} fi_fff_call;

/* A matrix as stored: N rows (outputs) of K values (inputs), C order; scale (N,) when dtype is FI_I8, else NULL. */
typedef struct {
    const void *data;
    const float *scale;
    int dtype;
} fi_rows;

/* A matrix packed by this ISA for computing in dtype. outputs and inputs >= 1; inputs <= 131072 for FI_I8, whose sums are int32.
   _cpu.pyx refuses more inputs, and sizes that do not fit the ints here. */
typedef struct {
    const void *packed; /* pack_bytes() bytes, 64-aligned */
    int dtype, outputs, inputs;
} fi_matrix;

/* out = activation(x W^T + bias) * gate + residual. Strides count values from one row to the next. A call has at most one of gate and
   residual. */
typedef struct {
    const float *x;        /* (T, K) */
    const float *bias;     /* (N,) or NULL */
    const float *gate;     /* (T, N) or NULL; may be the same array as out */
    const float *residual; /* (T, N) or NULL; may be the same array as out */
    void *out;             /* (T, N) float32, or bfloat16 (half), overwritten; must not overlap x */
    ptrdiff_t x_stride, gate_stride, residual_stride, out_stride;
    int tokens, activation, half;
} fi_gemm_call;

/* The blocks of neurons at the leaves of P trees, B to a tree and L neurons each. */
typedef struct {
    fi_matrix first;         /* (P B L, D): the in-rows, block after block */
    fi_matrix second;        /* (P B D', L): the out-rows of each block as columns; D' is D rounded up to a multiple of FI_BLOCK_ROWS */
    const float *b_in;       /* (P, B L) or NULL */
    const float *scale;      /* (P, B L), by which neurons are multiplied before they are packed, or NULL */
    const float *b_leaf;     /* (P, B, D) or NULL */
    const int32_t *children; /* (P, nodes, 2) or NULL, as in fi_trees; a child that is not less than `nodes` is a block */
    int trees, nodes, blocks, leaf, hidden, activation;
    int levels, depth; /* of the paths of a call; the most decisions before a block */
} fi_blocks;
enum { FI_BLOCK_ROWS = 32 }; /* a multiple of every ISA's panel */

typedef struct {
    const float *x;        /* (T, D) C order */
    const int32_t *path;   /* (T, P, levels), as fi_fff_call fills it; unused where levels is 0: then all tokens are at block 0 */
    const float *path_z;   /* (T, P, levels) */
    const float *bias;     /* (D,) or NULL; only where levels is 0 */
    const float *residual; /* (T, D) or NULL; may be the same array as out; only where levels is 0 */
    float *out;            /* (T, D): where levels is not 0, what the nodes gave, to which the blocks are added */
    int32_t *nodes;        /* (T, P, depth + 1): the path and the number of its block, nodes or more, then -1; or NULL */
    float *z;              /* (T, P, depth + 1): the logits of the path, then 0; or NULL */
    int tokens;
} fi_blocks_call;

/* out = norm(x + residual) * gamma + beta, over rows; rms: an RMSNorm, without mean and beta. */
typedef struct {
    const float *x;        /* (T, D) */
    const float *residual; /* (T, D) or NULL */
    float *sum;            /* (T, D) gets x + residual, or NULL; may be x or residual; unused without residual */
    float *out;            /* (T, D); may be x or residual */
    const float *gamma;    /* (D,) */
    const float *beta;     /* (D,) or NULL */
    float eps;
    int tokens, hidden, rms;
} fi_norm_call;

/* out = norm(words[ids] + position_rows[positions] + type_rows[types]); gamma NULL: no norm. The caller has checked the indices. */
typedef struct {
    const int32_t *ids, *positions, *types; /* (T,); types NULL: all 0; positions are unused without position_rows */
    fi_rows words;                          /* (V, D) as stored */
    const float *position_rows, *type_rows; /* (any, D) or NULL */
    const float *gamma, *beta;              /* (D,) or NULL */
    float *out;                             /* (T, D) */
    float eps;
    int tokens, hidden;
} fi_embed_call;

/* Put q and k in place through an RMSNorm of each head. */
typedef struct {
    void *qkv;                /* (T, 3 heads * head_size) float32, or bfloat16 (half): q of all heads, k, v */
    const float *query, *key; /* (head_size,), the weights for q and for k */
    ptrdiff_t qkv_stride;
    float eps;
    int tokens, heads, head_size, half;
} fi_norm_heads_call;

/* Turn q and k in place by their positions: columns i and head_size / 2 + i of a head are a pair, turned by one angle. */
typedef struct {
    void *qkv;                 /* (T, 3 heads * head_size) float32, or bfloat16 (half): q of all heads, k, v */
    const int32_t *cu_seqlens; /* (texts + 1,), rising: the rows where texts begin, and where the last one ends */
    const float *table;        /* (positions, head_size): head_size / 2 cosines, then as many sines */
    ptrdiff_t qkv_stride;
    int texts, heads, head_size, half; /* head_size: even */
} fi_rotate_call;

/* For each text and head: out = softmax(scale * (q k^T + relative) + distances) v.
   distances: score (i, j) of head h gains distances[h * distance_stride + reach - 1 + j - i], for texts of at most `reach` tokens.
   relative: it gains q_i . keys[r] + k_j . queries[r], r = relative_rows[reach - 1 + i - j]; each head has relative_width rows of both
   matrices, a multiple of 32, and relative_rows never falls. */
typedef struct {
    const void *qkv;           /* (T, 3 heads * head_size) float32, or bfloat16 (half, with FI_BF16 alone): q of all heads, k, v */
    float *out;                /* (T, heads * head_size); must not overlap qkv */
    const int32_t *cu_seqlens; /* (texts + 1,), rising: the rows where texts begin, and where the last one ends */
    ptrdiff_t qkv_stride, out_stride;
    int texts, heads, head_size; /* head_size: a multiple of 8 */
    float scale;                 /* > 0 */
    int half;
    int dtype;           /* FI_F32, or FI_BF16: bfloat16 factors where the ISA has their dot product, else float32 */
    int window;          /* a query sees keys that are at most so far away; 0: all keys of its text */
    const int32_t *keys; /* (texts,): the tokens at the beginning of each text that are seen, at least one, or NULL: all; no window then */
    int causal;          /* a query sees itself and keys before it alone */
    int reach, relative_width;
    ptrdiff_t distance_stride;
    const float *distances;                            /* (heads, distance_stride) or NULL */
    const fi_matrix *relative_keys, *relative_queries; /* (heads * relative_width, head_size) in attention's dtype, or NULL */
    const int32_t *relative_rows;                      /* (2 reach - 1,), each from 0 to relative_width - 1 */
} fi_attention_call;

enum fi_search_kind { FI_SEARCH_F32 = 0, FI_SEARCH_I8 = 1, FI_SEARCH_BITS = 2 };
enum { FI_SEARCH_GROUP = 64 }; /* rows whose largest score decides whether one of them is a candidate */

/* The best rows of a query so far, of one thread: the `keep` best, rows within `margin` of the last of these, and some more. Each is the
   bits of the score, ordered as the scores are, above those of ~row: the larger number is better, and of equal scores the earlier row. */
typedef struct {
    uint64_t *found; /* (room,) */
    float least;     /* only rows that score at least so much are candidates; nan: none is */
    float margin;
    int count, next; /* found; as many are found when the others are dropped again */
    int crowded;     /* more rows were as good as there is room for, so none is kept */
} fi_best;
enum { FI_BEST_ROOM = 1024 }; /* room is 4 keep and so much, or as many as there are rows */

void fi_best_begin(fi_best *, uint64_t *found, float margin, int keep, int room);
void fi_best_reduce(fi_best *, int keep, int room);
/* The rows that are the best of what some threads found, the best first. Returns how many; -1: a thread was crowded.
   best: that of a query in the first thread, `stride` before that in the next; rows: has room for all that they found */
int fi_best_merge(const fi_best *best, int threads, size_t stride, int keep, int64_t *rows);

/* out[q][r] = rows[r] . queries[q] * (scale[r] * query_scale[q]) + bias[r], of one kind each. */
typedef struct {
    const void *rows, *queries;       /* (row_count, inputs), (query_count, inputs): float32, int8, or bytes of bits */
    const float *scale, *query_scale; /* (row_count,), (query_count,), or both NULL */
    const float *bias;                /* (row_count,) or NULL */
    float *out;                       /* (query_count, row_count), out_stride apart; or NULL */
    fi_best *best;                    /* (threads, query_count); or NULL */
    const uint8_t *gone;              /* (row_count,): not 0 for rows that `best` leaves out; or NULL */
    ptrdiff_t out_stride;
    uint32_t first;                           /* the number of the first row in `best` */
    int keep, room;                           /* of `best` */
    int kind, row_count, query_count, inputs; /* inputs <= 131072 for int8, whose sums are int32 */
} fi_search_call;

typedef struct fi_isa {
    const char *name;
    int (*usable)(void); /* whether this CPU and its OS have the ISA */
    int lanes;           /* floats in a vector */
    int bias;            /* what is added to the bytes of `quads`, so that they are unsigned: 128, or 0 */
    /* whether gemm writes and attention reads bfloat16 q, k and v, in half the memory: attention in bfloat16 rounds them anyway */
    int half;
    int (*fff_team)(const fi_trees *, int tokens, int most);              /* the threads, up to `most`, that repay their wake-up */
    size_t (*fff_workspace)(const fi_trees *, int tokens, int team_size); /* bytes, 64-aligned by the caller */
    void (*fff)(const fi_trees *, const fi_fff_call *, void *workspace, fi_team);
    int (*blocks_team)(const fi_blocks *, int tokens, int most);
    size_t (*blocks_workspace)(const fi_blocks *, int tokens, int team_size); /* bytes, 64-aligned by the caller */
    void (*blocks)(const fi_blocks *, const fi_blocks_call *, void *workspace, fi_team);
    size_t (*pack_bytes)(int dtype, int outputs, int inputs);
    void (*pack)(const fi_rows *, const fi_matrix *, void *packed, fi_team); /* packed: where the matrix will point */
    size_t (*gemm_workspace)(const fi_matrix *, int tokens, int team_size);  /* bytes, 64-aligned by the caller */
    int (*gemm_team)(const fi_matrix *, int tokens, int most);               /* the threads, up to `most`, that repay their wake-up */
    void (*gemm)(const fi_matrix *, const fi_gemm_call *, void *workspace, fi_team);
    void (*norm)(const fi_norm_call *, fi_team);
    void (*embed)(const fi_embed_call *, fi_team);
    void (*norm_heads)(const fi_norm_heads_call *, fi_team);
    void (*rotate)(const fi_rotate_call *, fi_team);
    int (*attention_team)(const fi_attention_call *, int most);
    size_t (*attention_workspace)(const fi_attention_call *, int team_size); /* bytes, 64-aligned by the caller */
    void (*attention)(const fi_attention_call *, void *workspace, fi_team);  /* waits at one barrier, at its start */
    void (*search)(const fi_search_call *, fi_team);
    void (*gelu)(const float *x, float *out, size_t count); /* exact, through erf; out may be x, here and below */
    void (*tanh)(const float *x, float *out, size_t count);
    void (*erf)(const float *x, float *out, size_t count);
    void (*exp)(const float *x, float *out, size_t count);
    float (*probe_fma)(size_t rounds); /* probe.inc */
    float (*probe_dot)(size_t rounds); /* NULL without a dot instruction of bfloat16 */
    float (*probe_read)(const float *, size_t count, size_t times);
} fi_isa;

extern const fi_isa *const fi_isas[]; /* the compiled ISAs, usable or not: best first, NULL at the end */

/* team.c: run task(argument, step, team) for the steps 0 to count - 1 in turn, until fi_seconds() has passed `until`. Returns the number
   of steps that ran, at least one. A step's team has the caller's thread and up to sizes[step] - 1 others. Before the first step the caller
   waits for those that sleep, for wait_us at most; the others join at a later step. All threads of a team must call fi_barrier() equally
   often. */
typedef void (*fi_task)(void *argument, int step, fi_team);
int fi_run(fi_task, void *argument, const int *sizes, int count, double until, int wait_us);
void fi_barrier(fi_team);

/* The functions of an OpenMP library, by which gcc's code calls it. */
typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags); /* GOMP_parallel */
    void (*barrier)(void);                                                        /* GOMP_barrier */
    int (*rank)(void);                                                            /* omp_get_thread_num */
    int (*size)(void);                                                            /* omp_get_num_threads */
} fi_openmp;

/* Let later runs compute on threads of OpenMP; NULL: on the team's own. A child of fork() computes on its own: libgomp's threads, which it
   lacks, would be waited for without end. */
void fi_use_openmp(const fi_openmp *);
int fi_uses_openmp(void);

/* team_openmp.c: fi_run, for sizes up to `most`, by a caller that no other runs beside. */
int fi_run_openmp(const fi_openmp *, fi_task, void *argument, const int *sizes, int count, int most, double until);

#endif
