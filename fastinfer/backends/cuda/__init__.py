"""The GPU backend: NVIDIA GPUs through CuPy, the kernels of src/cuda, and cuBLASLt.

Each module imports only earlier ones of this list: device, shared, cache, compiler, launch, kernels, memory, weights, fff, plan, cublaslt,
tuning, session, ops.
"""
