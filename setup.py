"""Build fastinfer._cpu: Cython over C kernels, for the baseline ISA.

Each src/cpu/isa_*.c selects its instruction set by itself, so all files are compiled with the same flags everywhere.
FASTINFER_SANITIZE=1 builds with the address and undefined-behaviour sanitizers, for the kernel tests:
  FASTINFER_SANITIZE=1 python setup.py build_ext --inplace
  LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 python -m pytest \\
    tests/test_math.py tests/test_gemm.py tests/test_attention.py tests/test_fff.py tests/test_invariance.py
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
LINK = ["-pthread"]
if os.environ.get("FASTINFER_SANITIZE"):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"]
    FLAGS, LINK = [*FLAGS, "-O1", *sanitizers], [*LINK, *sanitizers]

extension = Extension(
    "fastinfer._cpu",
    sources=["src/cpu/_cpu.pyx", *sorted(f for f in glob("src/cpu/*.c") if not f.endswith("_cpu.c"))],
    depends=sorted(glob("src/cpu/*.h") + glob("src/cpu/*.inc")),
    include_dirs=["src/cpu"],
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
)
setup(ext_modules=cythonize([extension]))
