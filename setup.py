"""Build fastinfer._cpu: a Cython module over C kernels, compiled for the baseline ISA of the architecture.

Each src/cpu/isa_*.c selects its own instruction set by a pragma, so all files are compiled with the same flags on every machine.
The files are compiled side by side. Where nothing can be compiled, the package is built without the module and computes with NumPy.
FASTINFER_SANITIZE=address builds with the address and undefined-behaviour sanitizers, FASTINFER_SANITIZE=thread with the thread sanitizer.
tools/sanitize.sh makes such a build beside the package and runs tests on it.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off"]
# On Arm, gcc orders instructions before it chooses registers: 3 to 6 of the 24 sums of a product then lie on the stack. On x86 it does not.
FLAGS += ["-fno-schedule-insns"]
# Python's own flags ask for 7 MB of debug information, and for warnings, which tests/test_sources.py looks for in the sources.
FLAGS += ["-g0", "-w"]
THREADS = [] if sys.platform == "win32" else ["-pthread"]
SANITIZERS = {"address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], "thread": ["-fsanitize=thread"]}
LINK = []
if os.environ.get("FASTINFER_SANITIZE"):
    LINK = [*SANITIZERS[os.environ["FASTINFER_SANITIZE"]], "-g"]
    FLAGS = [*FLAGS, "-O1", *LINK]


class BuildModule(build_ext):
    """Compiles the files of a module side by side and reports each, or leaves the module out where nothing can be compiled."""

    def build_extensions(self):
        try:
            if self.compiler.compiler_type == "msvc":
                self._take_clang()
            self._try()
        except (CompileError, PlatformError, OSError, subprocess.SubprocessError) as error:
            self.warn(
                "fastinfer is built WITHOUT its compiled module, so it will compute with NumPy, many times slower: a file that includes "
                f"Python.h does not compile here ({error}). Install a C compiler and Python's headers"
            )
            self.extensions = []
            return
        self._one_by_one = self.compiler.compile
        self.compiler.compile = self._compile
        super().build_extensions()

    def _take_clang(self):
        """Compile with LLVM's clang-cl, since the kernels use vectors and attributes of GNU C. Microsoft's linker stays."""
        self.compiler.initialize()
        self.compiler.cc = "clang-cl"
        for extension in self.extensions:
            extension.extra_compile_args = [f"/clang:{flag}" for flag in extension.extra_compile_args]
            # Its runtime library has the functions behind __builtin_cpu_supports.
            asked = ["clang", "--rtlib=compiler-rt", "--print-libgcc-file-name"]
            extension.extra_objects.append(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())

    def _try(self):
        """Compile a file that includes Python.h. Raises what the compiler raises."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text("#include <Python.h>\n#include <stdatomic.h>\n")
            self.compiler.compile([str(probe)], output_dir=folder, include_dirs=self.include_dirs)

    def _compile(self, sources, **options):
        """The object files of `sources`. Translation units of a module do not depend on each other."""
        begin, done = time.monotonic(), 0

        def compile_one(source):
            nonlocal done
            made = self._one_by_one([source], **options)
            done += 1
            self.announce(f"compiled {done} of {len(sources)} files after {time.monotonic() - begin:.0f} s: {source}", logging.INFO)
            return made

        self.announce(f"compiling {len(sources)} files of the kernels, {os.cpu_count()} at a time; this takes about a minute", logging.INFO)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [made for part in pool.map(compile_one, sources) for made in part]


extension = Extension(
    "fastinfer._cpu",
    sources=["src/cpu/_cpu.pyx", *sorted(f for f in glob("src/cpu/*.c") if not f.endswith("_cpu.c"))],
    depends=sorted(glob("src/cpu/*.h") + glob("src/cpu/*.inc")),
    include_dirs=["src/cpu"],
    extra_compile_args=[*FLAGS, *THREADS],
    extra_link_args=[*LINK, *THREADS],
)


def readme():
    """README.md with absolute links, at the tag of this version: the package index shows it alone, without the files beside it."""
    address = re.search(r'^Repository = "(.+)"$', Path("pyproject.toml").read_text("utf-8"), re.M)[1]
    version = re.search(r'^__version__ = "(.+)"$', Path("fastinfer/info.py").read_text("utf-8"), re.M)[1]
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{address}/raw/v{version}/", Path("README.md").read_text("utf-8"))
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\1{address}/blob/v{version}/", text)


setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildModule},
    long_description=readme(),
    long_description_content_type="text/markdown",
)
