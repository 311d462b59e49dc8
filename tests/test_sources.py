"""The C sources compile without warnings, also for CPUs that the test machines do not have."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "cpu"
# Sizes and indices in the kernels are ints, and pointer arithmetic and sizeof turn them into size_t in every line. This is intended
# where a value cannot be negative, so conversions of sign are allowed. Conversions that may lose a value are written as casts.
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wshadow", "-Werror"]


NEON = sorted(p.name for p in SOURCES.glob("isa_neon*.c"))


def compile_with(compiler, *arguments):
    path = shutil.which(compiler)
    if path is None:
        pytest.skip(f"{compiler} is not on PATH")
    done = subprocess.run([path, *WARNINGS, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("source", sorted(p.name for p in SOURCES.glob("*.c") if p.name != "_cpu.c"))
def test_no_warnings(compiler, source):
    compile_with(compiler, "-fsyntax-only", SOURCES / source)


@pytest.mark.parametrize("compiler", ["musl-gcc", "x86_64-w64-mingw32-gcc"])
@pytest.mark.parametrize("source", ["team.c", "team_openmp.c", "best.c", "ladder.c", "dispatch.c", "isa_portable.c"])
def test_other_systems(compiler, source):
    """Linux with musl, and Windows: what platform.h offers there is enough."""
    compile_with(compiler, "-fsyntax-only", SOURCES / source)


def test_no_warnings_in_the_fuzzer():
    compile_with("gcc", "-fsyntax-only", "-I", SOURCES, Path(__file__).parent / "fuzz" / "kernels.c")


@pytest.mark.parametrize("source", [*NEON, "isa_portable.c", "dispatch.c", "team.c", "team_openmp.c", "best.c"])
def test_compiles_for_aarch64(source, tmp_path):
    # This generates code, because only then are operands checked to be constants.
    compile_with("aarch64-linux-gnu-gcc", "-O1", "-c", SOURCES / source, "-o", tmp_path / "out.o")
    assert (tmp_path / "out.o").stat().st_size > 500
