/* The comparison of arXiv 2311.10770 (its levels 1 and 2 of BLAS), rebuilt with a correct FFF for the benchmark. */
#ifndef FI_LADDER_H
#define FI_LADDER_H

#include <stddef.h>

/* BLAS routines with the arguments of Fortran: pointers throughout. */
typedef float (*fi_sdot)(int *n, float *x, int *incx, float *y, int *incy);
typedef void (*fi_saxpy)(int *n, float *a, float *x, int *incx, float *y, int *incy);
typedef void (*fi_sgemv)(char *trans, int *m, int *n, float *alpha, float *a, int *lda, float *x, int *incx, float *beta, float *y,
                         int *incy);
typedef void (*fi_gelu)(const float *x, float *out, size_t count);

typedef struct {
    fi_sdot dot;
    fi_saxpy axpy;
    fi_sgemv gemv;
    const float *x;     /* (T, D) */
    const float *w_in;  /* (neurons, D): the in-weights of a dense layer, or of the nodes of one full tree */
    const float *b_in;  /* (neurons,) */
    const float *w_out; /* (neurons, D) */
    float *out;         /* (T, D), overwritten */
    int tokens, hidden, neurons;
} fi_ladder_call;

enum { FI_DENSE_1, FI_DENSE_2, FI_FFF_1, FI_FFF_2 };

/* Run one rung of the comparison on all tokens of the call. z (neurons,) is scratch space. */
void fi_ladder(const fi_ladder_call *, int rung, fi_gelu gelu, float *z);

#endif
