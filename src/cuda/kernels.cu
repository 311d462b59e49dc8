// The GPU kernels of one model: this file lists the others in the order in which they are compiled, as one program.
//
// NVRTC compiles it at run time (backends/cuda/compiler.py says how), with
//   -D ACT_FLOAT | ACT_HALF | ACT_BFLOAT16   the dtype of activations and dense weights (act)
//   -D HIDDEN=D  -D HEADS=H                  every kernel but those of trees; without HEADS, no attention
//   -D HIDDEN=E  -D NARROW                   the kernels of rows whose width is not the model's
//   -D HIDDEN=D  -D HEADS=H  -D SCORES       attention alone, with one or more of -D WINDOW, -D CAUSAL, -D DISTANCES, -D RELATIVE: struct Scores
//   -D HIDDEN=D  -D DEPTH=depth              the kernels of trees walked so deep: loops over levels are unrolled
//   -D ROW_INT8                              rows of trees are int8 with a float32 scale each; else they are act
//   -D STOPS                                 trees are pruned: a table says where a node leads, or that the walk stops
//   -D TREE_KIND=KIND_...                    the activation of trees that is not the GELU
//   -D BLOCKS, -D SILENT                     nodes of trees lead to blocks; they add nothing themselves
//   -D HIDDEN=D  -D LEAVES                   the kernels of blocks
// and with the sizes and numbers that the host's code shares: compiler.SHARED.
// No header of CUDA is included: a machine that only has CuPy has none. Sums are float32 whatever is stored.

#include "numbers.cuh"
#include "tensor_cores.cuh"
#include "rows.cuh"
#ifdef DEPTH
#include "fff.cu"
#ifndef STOPS
#include "fff_few.cu"
#endif
#include "fff_mask.cu"
#elif defined(LEAVES)
#include "fff_blocks.cu"
#else
#ifndef SCORES
#include "pointwise.cu"
#ifndef NARROW
#include "products.cu"
#endif
#endif
#ifdef HEADS
#include "attention.cu"
#endif
#endif
