"""Build fastinfer._cpu: Cython over C kernels, for the baseline ISA, with OpenMP where the compiler has it.

Each src/cpu/isa_*.c selects its instruction set by itself, so all files are compiled with the same flags everywhere.
FASTINFER_NO_OPENMP=1 builds without OpenMP on purpose.
"""

import os
import sys
import tempfile
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off"]
PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class Build(build_ext):
    """build_ext that adds OpenMP after a probe, and says loudly when there is none."""

    def build_extensions(self):
        openmp = None if os.environ.get("FASTINFER_NO_OPENMP") else self.openmp_flags()
        if openmp is None:
            print(
                "\n" + "*" * 78 + "\nfastinfer: building WITHOUT OpenMP: every call will run on one thread.\n"
                "Install a compiler with OpenMP (gcc, or clang with libomp) and build again.\n" + "*" * 78 + "\n",
                file=sys.stderr,
                flush=True,
            )
        for extension in self.extensions:
            extension.extra_compile_args = FLAGS + (openmp or [])
            extension.extra_link_args = list(openmp or [])
        super().build_extensions()

    def openmp_flags(self):
        """The flags with which a program that uses OpenMP compiles and links, or None."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=["-fopenmp"])
            except Exception as error:  # distutils raises a different class for each compiler
                print(f"fastinfer: the OpenMP probe failed: {error}", file=sys.stderr)
                return None
        return ["-fopenmp"]


sources = ["src/cpu/_cpu.pyx", *sorted(f for f in glob("src/cpu/*.c") if not f.endswith("_cpu.c"))]
headers = sorted(glob("src/cpu/*.h") + glob("src/cpu/*.inc"))
extension = Extension("fastinfer._cpu", sources, depends=headers, include_dirs=["src/cpu"])
setup(ext_modules=cythonize([extension]), cmdclass={"build_ext": Build})
