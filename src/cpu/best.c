/* The best rows of a query in a search: the rows that one thread keeps, and those of all threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* Order numbers so that the `keep` largest come first, the least of them last of these. 1 <= keep <= count. */
static void select_largest(uint64_t *x, int count, int keep) {
    uint32_t random = 1; /* places of pivots that no order of scores foresees */
    int low = 0, high = count - 1;
    while (low < high) {
        random = random * 1664525u + 1013904223u;
        const uint64_t pivot = x[low + (int)((random >> 8) % (uint32_t)(high - low + 1))];
        int i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const uint64_t other = x[i];
                x[i++] = x[j], x[j--] = other;
            }
        }
        if (keep - 1 <= j) high = j;
        else if (keep - 1 >= i) low = i;
        else return;
    }
}

static float score_of(uint64_t found) {
    const uint32_t ordered = (uint32_t)(found >> 32), bits = ordered >> 31 ? ordered & 0x7fffffffu : ~ordered;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* Leave the `keep` best, and those within `margin` of the last of these. Returns how many are left; *least: what a better one scores. */
static int reduce(uint64_t *found, int count, int keep, float margin, float *least) {
    if (count < keep) return count;
    select_largest(found, count, keep);
    const float bound = score_of(found[keep - 1]) - margin;
    int kept = keep;
    for (int i = keep; i < count; i++)
        if (score_of(found[i]) > bound) found[kept++] = found[i];
    if (bound > *least) *least = bound;
    return kept;
}

void fi_best_begin(fi_best *best, uint64_t *found, float margin, int keep, int room) {
    *best = (fi_best){.found = found, .least = -3.402823466e38f, .margin = margin};
    best->next = 2 * (int64_t)keep + 64 < room ? 2 * keep + 64 : room;
}

void fi_best_reduce(fi_best *best, int keep, int room) {
    best->count = reduce(best->found, best->count, keep, best->margin, &best->least);
    if (best->count > 2 * (int64_t)keep + FI_BEST_ROOM / 2) { /* more are as good as can be kept */
        best->crowded = 1, best->count = 0, best->least = NAN;
        return;
    }
    best->next = 2 * (int64_t)best->count + 64 < room ? 2 * best->count + 64 : room;
}

static int larger_first(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int fi_best_merge(const fi_best *best, int threads, size_t stride, int keep, int64_t *rows) {
    uint64_t *found = (uint64_t *)rows;
    float least = -INFINITY;
    int count = 0;
    for (int t = 0; t < threads; t++) {
        const fi_best *b = best + t * stride;
        if (b->crowded) return -1;
        memcpy(found + count, b->found, (size_t)b->count * sizeof *found);
        count += b->count;
    }
    count = reduce(found, count, keep, best->margin, &least);
    qsort(found, count, sizeof *found, larger_first);
    for (int i = 0; i < count; i++) rows[i] = (int64_t)(uint32_t)~found[i];
    return count;
}
