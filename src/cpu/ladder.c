#include "ladder.h"

#include <string.h>

void fi_ladder(const fi_ladder_call *c, int rung, fi_gelu gelu, float *z) {
    int one = 1, D = c->hidden, W = c->neurons;
    float alpha = 1.0f, zero = 0.0f;
    for (int t = 0; t < c->tokens; t++) {
        float *x = (float *)c->x + (size_t)t * D, *y = c->out + (size_t)t * D; /* BLAS declares x without const, but only reads it */
        memset(y, 0, D * sizeof *y);
        if (rung == FI_DENSE_1) {
            for (int n = 0; n < W; n++) z[n] = c->dot(&D, x, &one, (float *)c->w_in + (size_t)n * D, &one) + c->b_in[n];
            gelu(z, z, W);
            for (int n = 0; n < W; n++) c->axpy(&D, z + n, (float *)c->w_out + (size_t)n * D, &one, y, &one);
        } else if (rung == FI_DENSE_2) {
            memcpy(z, c->b_in, W * sizeof *z);
            c->gemv("T", &D, &W, &alpha, (float *)c->w_in, &D, x, &one, &alpha, z, &one);
            gelu(z, z, W);
            c->gemv("N", &D, &W, &alpha, (float *)c->w_out, &D, z, &one, &zero, y, &one);
        } else {
            for (int n = 0; n < W;) {
                float *in = (float *)c->w_in + (size_t)n * D, *out = (float *)c->w_out + (size_t)n * D, s = c->b_in[n], g;
                if (rung == FI_FFF_1) s += c->dot(&D, x, &one, in, &one);
                else c->gemv("T", &D, &one, &alpha, in, &D, x, &one, &alpha, &s, &one);
                gelu(&s, &g, 1);
                if (rung == FI_FFF_1) c->axpy(&D, &g, out, &one, y, &one);
                else c->gemv("N", &D, &one, &alpha, out, &D, &g, &one, &alpha, y, &one);
                n = 2 * n + 1 + (s > 0);
            }
        }
    }
}
