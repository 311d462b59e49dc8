"""The kernels' sources. NVRTC compiles them at first use, and the result is kept on the disk."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import BackendError
from .cache import cached
from .shared import defines

PROGRAM = "kernels.cu"  # it includes the others


def sources() -> dict[str, str]:
    """{name: text} of each file of src/cuda."""
    folder = resources.files("fastinfer") / "cuda"  # installed
    if not folder.is_dir():
        folder = Path(__file__).parents[3] / "src" / "cuda"  # a source tree
    files = sorted((file for file in folder.iterdir() if file.name.endswith((".cu", ".cuh"))), key=lambda file: file.name)
    return {file.name: file.read_text() for file in files}


def compiler() -> Any:
    """CuPy's module for NVRTC. Raises BackendError if the library cannot be loaded."""
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # each way of finding a library raises its own error
        raise BackendError(
            f"NVRTC, which compiles the kernels, cannot be loaded: {error}\n  pip install 'fastinfer[cuda]' brings it."
        ) from error
    return nvrtc


def compile_kernels(architecture: str, options: tuple[str, ...], more: str = "", kind: str = "cubin") -> tuple[bytes, str]:
    """(program, "cubin" or "ptx") of the kernels for an architecture such as "sm_90a". This needs NVRTC, but not a GPU.

    more  source text to compile after the kernels
    kind  "cubin" or "ptx"; for a GPU newer than the compiler it is always "ptx", which the driver compiles further

    Raises BackendError with the compiler's messages, which name file and line.
    """
    nvrtc = compiler()
    newest = max(nvrtc.getSupportedArchs())
    if int(architecture.removeprefix("sm_").rstrip("a")) > newest:
        architecture, kind = f"sm_{newest}", "ptx"
    target = architecture if kind == "cubin" else architecture.replace("sm_", "compute_")
    files = sources()
    main = files.pop(PROGRAM) + more
    program = nvrtc.createProgram(main, PROGRAM, [text.encode() for text in files.values()], [name.encode() for name in files])
    try:
        nvrtc.compileProgram(program, (f"-arch={target}", "--std=c++17", *defines(), *options))
        return (nvrtc.getCUBIN if kind == "cubin" else nvrtc.getPTX)(program), kind
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip().replace("\n", "\n  ")
        raise BackendError(f"NVRTC cannot compile the GPU kernels for {target}: {error}\n  {log}") from error
    finally:
        nvrtc.destroyProgram(program)


def cached_kernels(architecture: str, options: tuple[str, ...]) -> Path:
    """The file with the compiled kernels. It is made at first use and kept in the folder of cache.py."""
    made_from = sources(), defines(), architecture, options, compiler().getVersion()
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]
    return cached(key, lambda: compile_kernels(architecture, options))
