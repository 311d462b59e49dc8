"""The GPU backend: NVIDIA GPUs through CuPy, kernels of src/cuda, and cuBLASLt.

In the order in which one builds on another: device, shared, cache, compiler, launch, kernels, memory, weights, plan, cublaslt, tuning,
session, ops.
"""
