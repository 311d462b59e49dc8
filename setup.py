"""Build fastinfer._cpu: a Cython module over C kernels, compiled for the baseline ISA of the architecture.

Each src/cpu/isa_*.c selects its own instruction set by a pragma, so all files are compiled with the same flags on every machine.
FASTINFER_SANITIZE=address builds with the address and undefined-behaviour sanitizers, FASTINFER_SANITIZE=thread with the thread sanitizer.
tools/sanitize.sh makes such a build beside the package and runs tests on it.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
LINK = ["-pthread"]
SANITIZERS = {"address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], "thread": ["-fsanitize=thread"]}
if os.environ.get("FASTINFER_SANITIZE"):
    sanitizers = [*SANITIZERS[os.environ["FASTINFER_SANITIZE"]], "-g", "-w"]
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
