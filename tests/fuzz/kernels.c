/* Runs every kernel of every usable ISA on shapes and values that input bytes decide, for the sanitizers and for libFuzzer.
 *
 * Each array is a heap block of exactly the size that kernels.h asks for, at any alignment that C allows its type. So the address
 * sanitizer sees the first byte that is read or written outside it. Two further calls must give the bits of a call by one thread: a call
 * by a team, once or several times in one run, and a call for some of the rows or texts. A difference ends the process, as a sanitizer
 * does.
 *
 *   built with clang -DLIBFUZZER -fsanitize=fuzzer,address,undefined: takes libFuzzer's flags and corpus folders
 *   built with any other compiler: kernels SECONDS MOST_TEAM [FILE ...] runs the files, then random bytes for SECONDS;
 *     bytes that fail stay in the file crash-kernels
 *
 * tools/sanitize.sh builds and runs both.
 */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"

enum { MOST_BLOCKS = 256, FILL = 0xd5 };

static int most_team = 3;

/* --- numbers from the input bytes --- */

static const uint8_t *at, *end;
static uint64_t seed;
static int special; /* whether values may be infinite, not a number, denormal or huge */

static int byte(void) { return at < end ? *at++ : 0; }
static int number(int low, int high) {
    const int two = byte();
    return low + (two | byte() << 8) % (high - low + 1);
}
/* A number from 1 to `usual`, or one time in 16 from 1 to `most`. */
static int sometimes(int usual, int most) { return number(1, byte() < 240 ? usual : most); }
static uint32_t any(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float value(void) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-42f, 3e38f, -3e38f};
    return special && any() % 64 == 0 ? odd[any() % 8] : ((float)(any() % 4096) - 2048.0f) / 1024.0f;
}

/* --- memory --- */

static void *blocks[MOST_BLOCKS];
static int block_count;

static void *keep(void *block) {
    if (!block || block_count == MOST_BLOCKS) abort();
    return blocks[block_count++] = block;
}
static void forget(void) {
    while (block_count) free(blocks[--block_count]);
}
/* A block of `bytes` that ends where its heap block ends and begins a few elements after its start, so its alignment varies. */
static void *room(size_t bytes, size_t type) {
    const size_t off = type * (size_t)(byte() % 17);
    char *p = (char *)keep(malloc(bytes + off ? bytes + off : 1)) + off;
    memset(p, FILL, bytes);
    return p;
}
static void *aligned(size_t bytes, int fill) {
    void *p;
    if (posix_memalign(&p, 64, bytes ? bytes : 1)) abort();
    memset(p, fill, bytes);
    return keep(p);
}
static float *floats(size_t count) {
    float *p = room(count * sizeof *p, sizeof *p);
    for (size_t i = 0; i < count; i++) p[i] = value();
    return p;
}
static float *perhaps(size_t count) { return byte() % 2 ? floats(count) : NULL; }
static float *scales(size_t count) {
    float *p = room(count * sizeof *p, sizeof *p);
    for (size_t i = 0; i < count; i++) p[i] = 0.001f * (float)(1 + any() % 100);
    return p;
}
static void *stored(int dtype, size_t count) {
    if (dtype == FI_F32) return floats(count);
    if (dtype == FI_BF16) {
        uint16_t *p = room(count * sizeof *p, sizeof *p);
        for (size_t i = 0; i < count; i++) {
            const float v = value();
            uint32_t bits;
            memcpy(&bits, &v, sizeof bits);
            p[i] = (uint16_t)(bits >> 16);
        }
        return p;
    }
    int8_t *p = room(count, 1);
    for (size_t i = 0; i < count; i++) p[i] = (int8_t)(any() % 256 - 128);
    return p;
}
static void *copy(const void *from, size_t bytes, size_t type) { return memcpy(room(bytes, type), from, bytes); }

/* --- runs --- */

typedef struct job {
    const fi_isa *isa;
    void (*run)(const struct job *, fi_team);
    const void *weights, *call;
    void *workspace;
    int repeats;
} job;
enum { MOST_REPEATS = 3 };

static void task(void *argument, int step, fi_team team) {
    (void)step;
    const job *j = argument;
    j->run(j, team);
}
/* Run a job as often as it says, on teams of up to `size` threads. */
static void run_on(job *j, int size) {
    int sizes[MOST_REPEATS];
    for (int i = 0; i < j->repeats; i++) sizes[i] = size;
    for (int done = 0; done < j->repeats;) done += fi_run(task, j, sizes, j->repeats - done, 1e300, 20);
}
static void run_fff(const job *j, fi_team team) { j->isa->fff(j->weights, j->call, j->workspace, team); }
static void run_blocks(const job *j, fi_team team) { j->isa->blocks(j->weights, j->call, j->workspace, team); }
static void run_gemm(const job *j, fi_team team) { j->isa->gemm(j->weights, j->call, j->workspace, team); }
static void run_search(const job *j, fi_team team) { j->isa->search(j->call, team); }
static void run_norm(const job *j, fi_team team) { j->isa->norm(j->call, team); }
static void run_embed(const job *j, fi_team team) { j->isa->embed(j->call, team); }
static void run_norm_heads(const job *j, fi_team team) { j->isa->norm_heads(j->call, team); }
static void run_rotate(const job *j, fi_team team) { j->isa->rotate(j->call, team); }
static void run_attention(const job *j, fi_team team) { j->isa->attention(j->call, j->workspace, team); }
static void run_pack(const job *j, fi_team team) { j->isa->pack(j->call, j->weights, j->workspace, team); }

/* How a kernel is run the second time: by a team of `size`, `repeats` times in one run. */
typedef struct {
    int size, asked, repeats; /* asked: the team that the workspace is made for, perhaps larger than the team */
} plan;
static plan team_plan(int repeatable) {
    plan p = {.size = 1 + byte() % most_team, .repeats = repeatable ? 1 + byte() % MOST_REPEATS : 1};
    p.asked = p.size + byte() % 3;
    return p;
}

static void wrong(const char *what, const fi_isa *isa, size_t where) {
    fprintf(stderr, "%s of %s: value %zu depends on the team or on the other rows\n", what, isa->name, where);
    abort();
}
static void same_bytes(const char *what, const fi_isa *isa, const void *a, const void *b, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const char *)a)[i] != ((const char *)b)[i]) wrong(what, isa, i);
}
/* The same bits, or both nan: the compiler chooses which nan results from two. */
static void same(const char *what, const fi_isa *isa, const float *a, const float *b, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) && !(isnan(a[i]) && isnan(b[i]))) wrong(what, isa, i);
}
static void same_halves(const char *what, const fi_isa *isa, const uint16_t *a, const uint16_t *b, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (a[i] != b[i] && ((a[i] & 0x7fff) <= 0x7f80 || (b[i] & 0x7fff) <= 0x7f80)) wrong(what, isa, i);
}
static void team_of(int size, int most, const char *what, const fi_isa *isa) {
    if (size < 1 || size > most) wrong(what, isa, (size_t)size);
}

/* --- the kernels --- */

static void try_fff(const fi_isa *isa) {
    static const struct {
        int trees[2], depth[2];
    } shapes[] = {{{1, 1}, {0, 4}}, {{1, 4}, {0, 2}}, {{8, 70}, {0, 2}}, {{1, 3}, {3, 7}}, {{2, 20}, {2, 4}}, {{1, 1}, {8, 15}}};
    const int kind = byte() % 6, size = byte();
    fi_trees t = {.dtype = byte() % 3, .trees = number(shapes[kind].trees[0], shapes[kind].trees[1]), .hidden = sometimes(20, 150)};
    t.depth = number(shapes[kind].depth[0], shapes[kind].depth[1]);
    t.activation = byte() % 6, t.silent = byte() % 4 == 0;
    if (t.depth > 11) t.depth = sometimes(11, 15);
    t.count = (2 << t.depth) - 1;
    const int table = byte() % 4 == 0;
    if (table) t.count = number(1, t.count);
    while ((size_t)t.trees * t.count * t.hidden > 1 << 13 && t.hidden > 1) t.hidden /= 2;
    /* Some calls exceed one block of tokens: 1,024 of several trees, 16,384 of one tree. */
    int tokens = number(0, size < 200 ? 12 : 70);
    if (size >= 250) tokens = number(1000, 2200), t.hidden = t.hidden % 4 + 1;
    if (size >= 255 && t.trees == 1) tokens = number(16300, 33000);
    const size_t nodes = (size_t)t.trees * t.count, values = (size_t)tokens * t.hidden, steps = (size_t)tokens * t.trees * (t.depth + 1);
    t.nodes = stored(t.dtype, nodes * 2 * t.hidden);
    t.scale = t.dtype == FI_I8 ? scales(nodes * 2) : NULL;
    t.b_in = perhaps(nodes);
    if (table) {
        int32_t *children = room(nodes * 2 * sizeof *children, sizeof *children);
        for (size_t i = 0; i < nodes * 2; i++) {
            const int node = (int)(i / 2 % t.count), left = t.count - 1 - node;
            children[i] = left && any() % 5 ? node + 1 + (int)(any() % left) : -1;
        }
        t.children = children;
    }
    fi_fff_call c = {.x = floats(values), .bias = perhaps(t.hidden), .tokens = tokens};
    const int inside = byte() % 4 == 0, routes = byte() % 2; /* inside: the residual is the same array as out */
    const float *residual = perhaps(values);
    const plan p = team_plan(!inside);
    float *out[3], *z[3] = {0};
    int32_t *visited[3] = {0};
    const int skip = tokens ? number(0, tokens - 1) : 0;
    for (int i = 0; i < 3; i++) { /* alone, by a team, and the rows from `skip` on */
        const int rows = i == 2 ? tokens - skip : tokens, size_i = i == 1 ? p.size : 1, asked = i == 1 ? p.asked : 1;
        const size_t from = (size_t)(tokens - rows) * t.hidden, done = (size_t)(tokens - rows) * t.trees * (t.depth + 1);
        out[i] = room((values - from) * sizeof **out, sizeof **out);
        if (routes) {
            z[i] = room((steps - done) * sizeof **z, sizeof **z);
            visited[i] = room((steps - done) * sizeof **visited, sizeof **visited);
        }
        fi_fff_call mine = c;
        mine.x += from, mine.out = out[i], mine.nodes = visited[i], mine.z = z[i], mine.tokens = rows;
        mine.residual = residual ? residual + from : NULL;
        if (residual && inside) mine.residual = memcpy(out[i], residual + from, (values - from) * sizeof **out);
        void *workspace = aligned(isa->fff_workspace(&t, rows, asked), i ? 0xff : 0x7f);
        job j = {isa, run_fff, &t, &mine, workspace, i == 1 ? p.repeats : 1};
        run_on(&j, size_i);
        same("fff", isa, out[i], out[0] + from, values - from);
        if (routes) {
            same("routes' z", isa, z[i], z[0] + done, steps - done);
            same_bytes("routes' nodes", isa, visited[i], visited[0] + done, (steps - done) * sizeof **visited);
        }
    }
    team_of(isa->fff_team(&t, tokens, p.asked), p.asked, "fff_team", isa);
}

/* Random rows (outputs, inputs), packed in `dtype`. */
static fi_matrix random_matrix(const fi_isa *isa, int dtype, int outputs, int inputs) {
    fi_matrix m = {.dtype = dtype, .outputs = outputs, .inputs = inputs};
    const fi_rows rows = {
        .data = stored(dtype, (size_t)outputs * inputs), .scale = dtype == FI_I8 ? scales((size_t)outputs) : NULL, .dtype = dtype};
    void *packed = aligned(isa->pack_bytes(dtype, outputs, inputs), 0);
    job j = {isa, run_pack, &m, &rows, packed, 1};
    run_on(&j, 1);
    m.packed = packed;
    return m;
}

static void try_blocks(const fi_isa *isa) {
    const int dtype = byte() % 3, hidden = sometimes(40, 120), tokens = sometimes(40, 200) - 1;
    fi_blocks b = {.trees = number(1, 3), .leaf = sometimes(20, 70), .hidden = hidden, .activation = byte() % 6};
    b.depth = number(0, 4), b.levels = b.depth, b.nodes = (1 << b.depth) - 1, b.blocks = 1 << b.depth;
    const size_t neurons = (size_t)b.trees * b.blocks * b.leaf, values = (size_t)tokens * hidden;
    const size_t walked = (size_t)tokens * b.trees * b.levels, steps = (size_t)tokens * b.trees * (b.depth + 1);
    b.first = random_matrix(isa, dtype, (int)neurons, hidden);
    b.second = random_matrix(isa, dtype, b.trees * b.blocks * ((hidden + FI_BLOCK_ROWS - 1) / FI_BLOCK_ROWS * FI_BLOCK_ROWS), b.leaf);
    b.b_in = perhaps(neurons), b.b_leaf = perhaps((size_t)b.trees * b.blocks * hidden);
    b.scale = dtype == FI_I8 ? scales(neurons) : NULL;
    int32_t *path = room(walked * sizeof *path, sizeof *path);
    float *z = room(walked * sizeof *z, sizeof *z);
    for (size_t i = 0, node = 0; i < walked; i++) { /* random walks, some of which stop */
        const int level = (int)(i % b.levels), stops = level && (path[i - 1] < 0 || any() % 50 == 0);
        if (!level) node = 0;
        path[i] = stops ? -1 : (int32_t)node;
        z[i] = stops ? 0.0f : any() % 2 ? 1.0f : -1.0f;
        node = 2 * node + 1 + (z[i] > 0);
    }
    const float *from = floats(values), *x = floats(values), *bias = b.levels ? NULL : perhaps(hidden);
    const plan p = team_plan(0);
    float *out[3], *logits[3];
    int32_t *nodes[3];
    const int skip = tokens ? number(0, tokens - 1) : 0;
    for (int i = 0; i < 3; i++) { /* alone, by a team, and the rows from `skip` on */
        const int rows = i == 2 ? tokens - skip : tokens, asked = i == 1 ? p.asked : 1;
        const size_t begin = (size_t)(tokens - rows) * hidden, done = (size_t)(tokens - rows) * b.trees * (b.depth + 1);
        out[i] = copy(from + begin, (values - begin) * sizeof **out, sizeof **out);
        logits[i] = room((steps - done) * sizeof **logits, sizeof **logits);
        nodes[i] = room((steps - done) * sizeof **nodes, sizeof **nodes);
        const size_t above = (size_t)(tokens - rows) * b.trees * b.levels;
        fi_blocks_call c = {.x = x + begin, .path = path + above, .path_z = z + above, .bias = bias, .out = out[i], .tokens = rows};
        c.residual = b.levels ? NULL : out[i], c.nodes = nodes[i], c.z = logits[i];
        void *workspace = aligned(isa->blocks_workspace(&b, rows, asked), i ? 0xff : 0x7f);
        job j = {isa, run_blocks, &b, &c, workspace, 1};
        run_on(&j, i == 1 ? p.size : 1);
        same("blocks", isa, out[i], out[0] + begin, values - begin);
        same("blocks' z", isa, logits[i], logits[0] + done, steps - done);
        same_bytes("blocks' nodes", isa, nodes[i], nodes[0] + done, (steps - done) * sizeof **nodes);
    }
    team_of(isa->blocks_team(&b, tokens, p.asked), p.asked, "blocks_team", isa);
}

static void try_gemm(const fi_isa *isa) {
    const int tokens = sometimes(16, 200) - 1, from = byte() % 3;
    fi_matrix m = {.dtype = byte() % 3, .outputs = sometimes(70, 200), .inputs = sometimes(40, 400)};
    const fi_rows rows = {
        .data = stored(from, (size_t)m.outputs * m.inputs), .scale = from == FI_I8 ? scales(m.outputs) : NULL, .dtype = from};
    const plan p = team_plan(1);
    const size_t packed_bytes = isa->pack_bytes(m.dtype, m.outputs, m.inputs);
    void *packed[2];
    for (int i = 0; i < 2; i++) {
        packed[i] = aligned(packed_bytes, i ? 0xff : 0x7f);
        job j = {isa, run_pack, &m, &rows, packed[i], 1};
        run_on(&j, i ? p.size : 1);
    }
    if (!special) same_bytes("pack", isa, packed[0], packed[1], packed_bytes);
    m.packed = packed[0];

    fi_gemm_call c = {.tokens = tokens, .activation = byte() % 6, .half = isa->half && byte() % 4 == 0};
    c.x_stride = m.inputs + byte() % 5, c.out_stride = m.outputs + byte() % 5;
    ptrdiff_t other_stride = m.outputs + byte() % 5;
    const size_t x = tokens ? (size_t)(tokens - 1) * c.x_stride + m.inputs : 0,
                 y = tokens ? (size_t)(tokens - 1) * c.out_stride + m.outputs : 0;
    c.x = floats(x);
    c.bias = perhaps(m.outputs);
    const int inside = !c.half && byte() % 4 == 0, gated = byte() % 2; /* inside: the gate or residual is the same array as out */
    if (inside) other_stride = c.out_stride;
    const float *other = perhaps(tokens ? (size_t)(tokens - 1) * other_stride + m.outputs : 0);
    *(gated ? &c.gate_stride : &c.residual_stride) = other_stride;
    const size_t each = c.half ? 2 : 4;
    const int skip = tokens ? number(0, tokens - 1) : 0;
    char *out[3];
    for (int i = 0; i < 3; i++) {
        const int mine_tokens = i == 2 ? tokens - skip : tokens;
        const size_t first = tokens - mine_tokens, begin = first * c.out_stride;
        fi_gemm_call mine = c;
        mine.tokens = mine_tokens, mine.x += first * c.x_stride;
        mine.out = out[i] = room((y - begin) * each, each);
        const float *added = other ? other + first * other_stride : NULL;
        if (other && inside) added = memcpy(out[i], other + begin, (y - begin) * each);
        *(gated ? &mine.gate : &mine.residual) = added;
        void *workspace = aligned(isa->gemm_workspace(&m, mine_tokens, i == 1 ? p.asked : 1), i ? 0xff : 0x7f);
        job j = {isa, run_gemm, &m, &mine, workspace, i == 1 && !(other && inside) ? p.repeats : 1};
        run_on(&j, i == 1 ? p.size : 1);
        /* No kernel may write between the rows of out, so these bytes are compared, too. */
        if (c.half) same_halves("gemm in halves", isa, (uint16_t *)out[i], (uint16_t *)out[0] + begin, y - begin);
        else same("gemm", isa, (float *)out[i], (float *)out[0] + begin, y - begin);
    }
    team_of(isa->gemm_team(&m, tokens, p.asked), p.asked, "gemm_team", isa);
}

static void try_norm(const fi_isa *isa) {
    fi_norm_call c = {.tokens = number(0, 60), .hidden = number(1, 150), .eps = 1e-6f, .rms = byte() % 4 == 0};
    const size_t values = (size_t)c.tokens * c.hidden;
    const float *x = floats(values), *residual = perhaps(values);
    c.gamma = floats(c.hidden), c.beta = c.rms ? NULL : perhaps(c.hidden);
    const int apart = byte() % 3, sum_apart = byte() % 4; /* out: apart, x, residual; sum: apart, x, residual, none */
    const plan p = team_plan(0);
    float *out[2], *sum[2];
    for (int i = 0; i < 2; i++) {
        fi_norm_call mine = c;
        float *own_x = copy(x, values * sizeof *x, sizeof *x), *own = residual ? copy(residual, values * sizeof *x, sizeof *x) : NULL;
        mine.x = own_x, mine.residual = own;
        mine.out = out[i] = apart == 1 ? own_x : apart == 2 && own ? own : room(values * sizeof *x, sizeof *x);
        mine.sum = sum[i] = sum_apart == 3 || !own || (sum_apart == apart && apart) ? NULL
                            : sum_apart == 1                                        ? own_x
                            : sum_apart == 2                                        ? own
                                                                                    : room(values * sizeof *x, sizeof *x);
        job j = {isa, run_norm, NULL, &mine, NULL, 1};
        run_on(&j, i ? p.size : 1);
        same("norm", isa, out[i], out[0], values);
        if (sum[i]) same("norm's sum", isa, sum[i], sum[0], values);
    }
}

/* The best rows of a search, alone and by a team, are those of its scores. Each must have the room that it is given, and no more. */
static void try_best(const fi_isa *isa, const fi_search_call *c, const float *scores, int size) {
    const int keep = number(1, 20), room_of = 4 * keep + FI_BEST_ROOM < c->row_count ? 4 * keep + FI_BEST_ROOM : c->row_count;
    const float margin = byte() % 2 ? 0 : 1;
    for (int threads = 1; threads <= size; threads += size > 1 ? size - 1 : 1) {
        const size_t lists = (size_t)threads * c->query_count;
        fi_search_call mine = *c;
        mine.out = NULL, mine.keep = keep, mine.room = room_of;
        mine.best = room(lists * sizeof *mine.best, 8);
        for (size_t i = 0; i < lists; i++) fi_best_begin(&mine.best[i], room(room_of * sizeof(uint64_t), 8), margin, keep, room_of);
        job j = {isa, run_search, NULL, &mine, NULL, 1};
        run_on(&j, threads);
        for (int q = 0; q < c->query_count; q++) {
            int64_t *rows = room((size_t)threads * room_of * sizeof *rows, 8);
            const int count = fi_best_merge(&mine.best[q], threads, c->query_count, keep, rows);
            const float *score = scores + (size_t)q * c->row_count;
            for (int i = 0; i < count; i++) /* ordered; no row that is not among them is better than the last of the best */
                if (rows[i] < 0 || rows[i] >= c->row_count || (i && !(score[rows[i - 1]] >= score[rows[i]]))) abort();
            int better = 0;
            for (int r = 0; count >= keep && r < c->row_count; r++) better += score[r] > score[rows[keep - 1]];
            if (better >= keep) abort();
        }
        if (size == 1) break;
    }
}

static void try_search(const fi_isa *isa) {
    fi_search_call c = {.kind = byte() % 3, .row_count = sometimes(80, 300), .query_count = number(1, 14), .inputs = sometimes(150, 600)};
    const int stored_as = c.kind == FI_SEARCH_F32 ? FI_F32 : FI_I8;
    const size_t each = c.kind == FI_SEARCH_F32 ? 4 : 1, width = (size_t)c.inputs * each;
    const char *rows = stored(stored_as, (size_t)c.row_count * c.inputs), *queries = stored(stored_as, (size_t)c.query_count * c.inputs);
    c.scale = byte() % 2 ? scales(c.row_count) : NULL;
    c.query_scale = c.scale ? scales(c.query_count) : NULL;
    c.bias = perhaps(c.row_count);
    const plan p = team_plan(0);
    const int row = number(0, c.row_count - 1), query = number(0, c.query_count - 1);
    float *out[3];
    for (int i = 0; i < 3; i++) { /* alone, by a team, and the rows and queries from some on */
        fi_search_call mine = c;
        const int r = i == 2 ? row : 0, q = i == 2 ? query : 0;
        mine.row_count -= r, mine.query_count -= q;
        mine.rows = copy(rows + r * width, mine.row_count * width, each);
        mine.queries = copy(queries + q * width, mine.query_count * width, each);
        mine.scale = c.scale ? c.scale + r : NULL, mine.query_scale = c.query_scale ? c.query_scale + q : NULL;
        mine.bias = c.bias ? c.bias + r : NULL;
        mine.out_stride = mine.row_count;
        mine.out = out[i] = room((size_t)mine.query_count * mine.row_count * sizeof **out, sizeof **out);
        job j = {isa, run_search, NULL, &mine, NULL, 1};
        run_on(&j, i == 1 ? p.size : 1);
        for (int k = 0; k < mine.query_count; k++)
            same("search", isa, out[i] + (size_t)k * mine.row_count, out[0] + (size_t)(q + k) * c.row_count + r, mine.row_count);
    }
    c.rows = rows, c.queries = queries;
    try_best(isa, &c, out[0], p.size);
}

static void try_embed(const fi_isa *isa) {
    fi_embed_call c = {.tokens = number(0, 60), .hidden = number(1, 150), .eps = 1e-6f};
    const int vocabulary = number(1, 30), positions = number(1, 20), types = 1 + byte() % 3;
    const size_t values = (size_t)c.tokens * c.hidden, bytes = (size_t)c.tokens * sizeof(int32_t);
    int32_t *ids = room(bytes, 4), *places = room(bytes, 4), *kinds = byte() % 2 ? room(bytes, 4) : NULL;
    for (int i = 0; i < c.tokens; i++) {
        ids[i] = (int)(any() % vocabulary), places[i] = (int)(any() % positions);
        if (kinds) kinds[i] = (int)(any() % types);
    }
    c.ids = ids, c.positions = places, c.types = kinds;
    c.words.dtype = byte() % 3;
    c.words.data = stored(c.words.dtype, (size_t)vocabulary * c.hidden);
    c.words.scale = c.words.dtype == FI_I8 ? scales(vocabulary) : NULL;
    c.position_rows = perhaps((size_t)positions * c.hidden);
    c.type_rows = perhaps((size_t)types * c.hidden);
    c.gamma = perhaps(c.hidden);
    c.beta = c.gamma ? perhaps(c.hidden) : NULL;
    const plan p = team_plan(1);
    float *out[2];
    for (int i = 0; i < 2; i++) {
        fi_embed_call mine = c;
        mine.out = out[i] = room(values * sizeof **out, sizeof **out);
        job j = {isa, run_embed, NULL, &mine, NULL, i ? p.repeats : 1};
        run_on(&j, i ? p.size : 1);
        same("embed", isa, out[i], out[0], values);
    }
}

/* Texts of 0 to `longest` tokens, as cu_seqlens. */
static int32_t *bounds(int texts, int longest) {
    int32_t *cu = room((size_t)(texts + 1) * sizeof *cu, sizeof *cu);
    cu[0] = 0;
    for (int i = 0; i < texts; i++) cu[i + 1] = cu[i] + number(0, longest);
    return cu;
}

/* What stands from byte `begin` of each row to the next row, v and what lies between the rows, is as it was. */
static void same_v(const char *what, const fi_isa *isa, const char *a, const char *b, int rows, size_t stride, size_t begin, size_t bytes) {
    for (int t = 0; t < rows; t++) {
        const size_t from = t * stride + begin, next = (t + 1) * stride;
        same_bytes(what, isa, a + from, b + from, (next < bytes ? next : bytes) - from);
    }
}

/* Angles of any size, so that what is turned wrongly is far away. */
static void try_rotate(const fi_isa *isa) {
    fi_rotate_call c = {.texts = number(1, 4), .heads = number(1, 3), .head_size = 2 * sometimes(20, 70)};
    c.half = isa->half && byte() % 2;
    const int longest = sometimes(20, 100), width = c.heads * c.head_size, positions = longest + byte() % 3;
    const int32_t *cu = c.cu_seqlens = bounds(c.texts, longest);
    c.qkv_stride = 3 * width + byte() % 5;
    c.table = floats((size_t)positions * c.head_size);
    const size_t each = c.half ? 2 : 4, values = cu[c.texts] ? (size_t)(cu[c.texts] - 1) * c.qkv_stride + 3 * width : 0;
    const char *qkv = stored(c.half ? FI_BF16 : FI_F32, values);
    const plan p = team_plan(0);
    const int text = number(0, c.texts - 1), length = cu[text + 1] - cu[text];
    int32_t *one = room(2 * sizeof *one, sizeof *one);
    one[0] = 0, one[1] = length;
    char *out[3];
    for (int i = 0; i < 3; i++) { /* alone, by a team, and one of the texts */
        fi_rotate_call mine = c;
        size_t begin = 0, count = values;
        if (i == 2) {
            mine.cu_seqlens = one, mine.texts = 1;
            begin = (size_t)cu[text] * c.qkv_stride, count = length ? (size_t)(length - 1) * c.qkv_stride + 3 * width : 0;
        }
        mine.qkv = out[i] = copy(qkv + begin * each, count * each, each);
        job j = {isa, run_rotate, NULL, &mine, NULL, 1};
        run_on(&j, i == 1 ? p.size : 1);
        if (c.half) same_halves("rotate in halves", isa, (uint16_t *)out[i], (uint16_t *)out[0] + begin, count);
        else same("rotate", isa, (float *)out[i], (float *)out[0] + begin, count);
    }
    same_v("rotate's v", isa, out[0], qkv, cu[c.texts], c.qkv_stride * each, 2 * width * each, values * each);
}

static void try_norm_heads(const fi_isa *isa) {
    fi_norm_heads_call c = {.tokens = number(0, 60), .heads = number(1, 3), .head_size = sometimes(40, 1024), .eps = 1e-6f};
    c.half = isa->half && byte() % 2;
    if (c.head_size > 150) c.tokens %= 4;
    const int width = c.heads * c.head_size;
    c.qkv_stride = 3 * width + byte() % 5;
    c.query = floats(c.head_size), c.key = floats(c.head_size);
    const size_t each = c.half ? 2 : 4, values = c.tokens ? (size_t)(c.tokens - 1) * c.qkv_stride + 3 * width : 0;
    const char *qkv = stored(c.half ? FI_BF16 : FI_F32, values);
    const plan p = team_plan(0);
    const int skip = c.tokens ? number(0, c.tokens - 1) : 0;
    char *out[3];
    for (int i = 0; i < 3; i++) { /* alone, by a team, and the rows from `skip` on */
        fi_norm_heads_call mine = c;
        const size_t begin = i == 2 ? (size_t)skip * c.qkv_stride : 0;
        if (i == 2) mine.tokens -= skip;
        mine.qkv = out[i] = copy(qkv + begin * each, (values - begin) * each, each);
        job j = {isa, run_norm_heads, NULL, &mine, NULL, 1};
        run_on(&j, i == 1 ? p.size : 1);
        if (c.half) same_halves("norm_heads in halves", isa, (uint16_t *)out[i], (uint16_t *)out[0] + begin, values - begin);
        else same("norm_heads", isa, (float *)out[i], (float *)out[0] + begin, values - begin);
    }
    same_v("norm_heads' v", isa, out[0], qkv, c.tokens, c.qkv_stride * each, 2 * width * each, values * each);
}

/* A packed table of random rows for disentangled attention, in the dtype in which attention computes. */
static const fi_matrix *relative_table(const fi_isa *isa, const fi_attention_call *c) {
    fi_matrix *m = keep(calloc(1, sizeof *m));
    m->dtype = isa->half ? c->dtype : FI_F32, m->outputs = c->heads * c->relative_width, m->inputs = c->head_size;
    const fi_rows rows = {.data = stored(m->dtype, (size_t)m->outputs * m->inputs), .dtype = m->dtype};
    void *packed = aligned(isa->pack_bytes(m->dtype, m->outputs, m->inputs), 0);
    job j = {isa, run_pack, m, &rows, packed, 1};
    run_on(&j, 1);
    m->packed = packed;
    return m;
}

/* Distances and relative tables for texts of `reach` tokens or fewer, some of the time. */
static void relate(const fi_isa *isa, fi_attention_call *c, int reach) {
    c->reach = reach;
    if (byte() % 2) {
        c->distance_stride = 2 * reach - 1 + byte() % 2;
        c->distances = floats((size_t)(c->heads - 1) * c->distance_stride + 2 * reach - 1);
    }
    if (byte() % 2) return;
    c->relative_width = 32 * number(1, 3);
    c->relative_keys = relative_table(isa, c), c->relative_queries = relative_table(isa, c);
    const int step = 1 + byte() % 4;
    int32_t *rows = room((size_t)(2 * reach - 1) * sizeof *rows, sizeof *rows);
    for (int i = 0, row = byte() % c->relative_width; i < 2 * reach - 1; i++) {
        rows[i] = row;
        row += (int)(any() % step);
        if (row >= c->relative_width) row = c->relative_width - 1;
    }
    c->relative_rows = rows;
}

static void try_attention(const fi_isa *isa) {
    fi_attention_call c = {.texts = number(1, 4), .heads = number(1, 3), .head_size = 8 * sometimes(4, 9), .scale = 0.25f};
    c.dtype = byte() % 2 ? FI_BF16 : FI_F32;
    c.half = isa->half && c.dtype == FI_BF16 && byte() % 2;
    const int longest = sometimes(20, 200), width = c.heads * c.head_size;
    const int32_t *cu = c.cu_seqlens = bounds(c.texts, longest);
    int32_t *keys = byte() % 2 ? room((size_t)c.texts * sizeof *keys, sizeof *keys) : NULL;
    for (int i = 0; keys && i < c.texts; i++) keys[i] = cu[i + 1] > cu[i] ? number(1, cu[i + 1] - cu[i]) : 0;
    c.keys = keys;
    if (!keys && byte() % 2) c.window = number(1, longest + 2);
    if (!keys && byte() % 4 == 0) c.causal = 1;
    /* A key that is hidden has weight 0, which makes nan of an infinite value; which such keys are met at all depends on the team. */
    if (c.window || c.causal) special = 0;
    int most = 1;
    for (int i = 0; i < c.texts; i++) most = cu[i + 1] - cu[i] > most ? cu[i + 1] - cu[i] : most;
    if (byte() % 2) relate(isa, &c, most + byte() % 2);
    /* Rows of bfloat16 are read as words, so their stride is even. */
    c.qkv_stride = 3 * width + 2 * (byte() % 3), c.out_stride = width + byte() % 5;
    const int tokens = cu[c.texts];
    const size_t in = tokens ? (size_t)(tokens - 1) * c.qkv_stride + 3 * width : 0,
                 y = tokens ? (size_t)(tokens - 1) * c.out_stride + width : 0;
    const char *qkv = c.half ? room(in * 2, 4) : (char *)floats(in);
    if (c.half) {
        const uint16_t *from = stored(FI_BF16, in);
        memcpy((char *)qkv, from, in * 2);
    }
    const plan p = team_plan(1);
    const int text = number(0, c.texts - 1);
    float *out[3];
    for (int i = 0; i < 3; i++) { /* alone, by a team, and one of the texts */
        fi_attention_call mine = c;
        mine.qkv = qkv;
        size_t begin = 0, count = y;
        if (i == 2) {
            const int length = cu[text + 1] - cu[text];
            int32_t *one = room(2 * sizeof *one, sizeof *one);
            one[0] = 0, one[1] = length;
            mine.cu_seqlens = one, mine.texts = 1;
            if (keys) mine.keys = keys + text;
            mine.qkv = qkv + (size_t)cu[text] * c.qkv_stride * (c.half ? 2 : 4);
            begin = (size_t)cu[text] * c.out_stride, count = length ? (size_t)(length - 1) * c.out_stride + width : 0;
        }
        mine.out = out[i] = room(count * sizeof **out, sizeof **out);
        void *workspace = aligned(isa->attention_workspace(&mine, i == 1 ? p.asked : 1), i ? 0xff : 0x7f);
        job j = {isa, run_attention, NULL, &mine, workspace, i == 1 ? p.repeats : 1};
        run_on(&j, i == 1 ? p.size : 1);
        same("attention", isa, out[i], out[0] + begin, count);
    }
    c.qkv = qkv, c.out = out[0];
    const int team = isa->attention_team(&c, p.asked);
    team_of(team, p.asked, "attention_team", isa);
    c.window = c.causal = 0;
    team_of(team, isa->attention_team(&c, p.asked), "attention_team of a window", isa); /* fewer pairs repay no more threads */
}

/* The result of a value in an array is that of the value alone. */
static void try_arrays(const fi_isa *isa) {
    void (*const functions[])(const float *, float *, size_t) = {isa->gelu, isa->tanh, isa->erf, isa->exp};
    const int which = byte() % 4;
    const size_t count = number(0, 200);
    const float *x = floats(count);
    float *out = byte() % 2 ? copy(x, count * sizeof *x, sizeof *x) : room(count * sizeof *x, sizeof *x), one;
    functions[which](byte() % 2 ? x : memcpy(out, x, count * sizeof *x), out, count);
    for (size_t i = 0; i < count; i++) {
        functions[which](x + i, &one, 1);
        same("gelu, tanh, erf or exp", isa, &one, out + i, 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const kernels[])(const fi_isa *) = {try_fff,       try_fff,    try_gemm,   try_gemm,       try_norm,   try_embed,
                                                      try_attention, try_arrays, try_rotate, try_norm_heads, try_search, try_blocks};
    const fi_isa *isas[16];
    int usable = 0;
    for (int i = 0; fi_isas[i]; i++)
        if (fi_isas[i]->usable()) isas[usable++] = fi_isas[i];
    at = data, end = data + size;
    const int kernel = byte() % (int)(sizeof kernels / sizeof *kernels), isa = byte() % usable;
    special = byte() % 8 == 0;
    seed = (uint64_t)number(0, 65535);
    kernels[kernel](isas[isa]);
    forget();
    return 0;
}

#ifndef LIBFUZZER
static void one_file(const char *name) {
    static uint8_t bytes[4096];
    FILE *file = fopen(name, "rb");
    if (!file) {
        perror(name);
        exit(1);
    }
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    LLVMFuzzerTestOneInput(bytes, size);
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "kernels SECONDS MOST_TEAM [FILE ...]\n");
        return 2;
    }
    most_team = atoi(arguments[2]);
    for (int i = 3; i < count; i++) one_file(arguments[i]);
    const time_t start = time(NULL), last = start + atoi(arguments[1]);
    uint64_t state = ((uint64_t)start << 22 ^ (uint64_t)getpid()) * 2654435761u + 1;
    long runs = 0;
    enum { SIZE = 96 };
    /* The file is mapped, so it holds the bytes whatever ends the process. */
    const int file = open("crash-kernels", O_RDWR | O_CREAT | O_TRUNC, 0666);
    uint8_t *bytes = file < 0 || ftruncate(file, SIZE) ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) {
        perror("crash-kernels");
        return 1;
    }
    for (; time(NULL) < last; runs++) {
        for (int i = 0; i < SIZE; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            bytes[i] = (uint8_t)(state >> 56);
        }
        LLVMFuzzerTestOneInput(bytes, SIZE);
    }
    remove("crash-kernels");
    printf("%ld random cases and %d files: no difference\n", runs, count - 3);
    return 0;
}
#endif
