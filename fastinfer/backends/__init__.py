"""The choice of a backend, and the reasons why one cannot run here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, BackendWarning, near, short, warn

if TYPE_CHECKING:
    from .reference import Reference

__all__ = ["COMPUTE_DTYPES", "available", "get", "gpus", "set_team"]

AUTO = ("cuda", "cpu", "numpy")  # "auto" takes the first of these that can run
REBUILD = "install fastinfer again with pip's --force-reinstall --no-deps --no-cache-dir"  # pip keeps a wheel without the module
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def get(device: str = "auto", *, dtype: str | None = None, threads: int | None = None) -> Reference:
    """The backend for `device`: "auto", "cpu", "cpu:ISA", "cuda", "cuda:N" or "numpy".

    dtype    the dtype of computing; None: the stored dtype decides. "float16" becomes "float32" with a BackendWarning where no GPU is used
    threads  most threads per call, but never more than the CPUs that this process may use; None: as many as these

    Raises BackendError, which names the devices that can run here.
    """
    from .reference import Reference, check_threads

    check_threads(threads)
    if not isinstance(device, str):
        raise BackendError(f"device is {short(device)}, expected a string such as 'cpu' or 'numpy'")
    if not (dtype is None or (isinstance(dtype, str) and dtype in COMPUTE_DTYPES)):
        hint = near(dtype, COMPUTE_DTYPES)
        raise BackendError(f"dtype is {short(dtype)}, expected one of {', '.join(COMPUTE_DTYPES)}, or None{hint}")
    kind, _, rest = device.partition(":")
    if kind == "auto" and not rest:
        why_not: dict[str, Callable[[], str | None]] = {"cuda": _why_no_cuda, "cpu": _why_no_cpu, "numpy": lambda: None}
        kind = next(name for name in AUTO if why_not[name]() is None)
        if kind == "numpy":
            warn(BackendWarning(f"computing with NumPy, many times slower than the compiled kernels: {_why_no_cpu()}"))
    if kind == "numpy" and not rest:
        backend: Any = Reference
        arguments: dict[str, Any] = {}
    elif kind == "cpu":
        why = _why_no_cpu()
        if why:
            raise _cannot(device, why)
        from .cpu import CPU, isas
        from .threads import choose_by_environment

        choose_by_environment()
        if rest and rest not in isas():
            raise _cannot(device, f"this CPU has no ISA {short(rest)}" + near(rest, isas()))
        backend, arguments = CPU, {"isa": rest or None, "threads": threads}
    elif kind == "cuda":
        why = _why_no_cuda()
        if why:
            raise _cannot(device, why)
        from .cuda.device import device_number
        from .cuda.ops import CUDA

        backend, arguments = CUDA, {"number": device_number(device)}
    else:
        raise _cannot(device, "no such device; expected auto, cpu, cpu:ISA, cuda, cuda:N or numpy" + near(device, ("auto", *available())))
    if dtype == "float16" and kind != "cuda":
        warn(BackendWarning(f"dtype 'float16' needs a GPU, and device {short(device)} is none here: float32 is computed instead"))
        dtype = "float32"
    if dtype not in (None, *backend.dtypes):
        raise BackendError(f"dtype {dtype!r} was asked for, but device {short(device)} computes in {', '.join(backend.dtypes)}")
    made: Reference = backend(**arguments) if backend is Reference else backend(**arguments, dtype=dtype)
    return made


def available() -> dict[str, str | None]:
    """{device: None if it can run here, else the reason why it cannot}."""
    found: dict[str, str | None] = {"numpy": None, "cpu": _why_no_cpu(), "cuda": _why_no_cuda()}
    if found["cpu"] is None:
        from .cpu import isas

        found |= {f"cpu:{isa}": None for isa in isas()}
    return found


def gpus() -> list[str]:
    """A line per GPU that can be used here: its name, compute capability and memory."""
    if _why_no_cuda() is not None:
        return []
    from .cuda.device import names

    return names()


def set_team(name: str) -> None:
    """Choose the threads that compute on the CPU in this process, from the next call on. Answers keep their bits.

    name  "own": fastinfer's, as at the start; "openmp": those of the OpenMP library that the process has loaded, else the system's

    The environment variable FASTINFER_TEAM names the team of a process that does not call this. A fork computes on its own team.
    Raises BackendError where the team cannot run here.
    """
    why = _why_no_cpu()
    if why:
        raise BackendError(f"a team was asked for, but {why}")
    from .threads import choose

    choose(name)


def _why_no_cpu() -> str | None:
    """None if the CPU backend can run here, else the reason."""
    try:
        from .. import _cpu  # noqa: F401
    except ImportError as error:
        if importlib.util.find_spec("fastinfer._cpu") is not None:
            return f"the compiled module cannot be imported ({error}). Please {REBUILD}"
        return f"the compiled module is missing: fastinfer was built without a C compiler, or not at all. Install one, then {REBUILD}"
    return None


def _why_no_cuda() -> str | None:
    """None if the GPU backend can run here, else the reason."""
    from .cuda.device import why_not

    return why_not()


def _cannot(device: str, why: str) -> BackendError:
    """The error for a device that cannot run here; it names those that can."""
    usable = [name for name, reason in available().items() if reason is None]
    return BackendError(f"device {short(device)} was asked for but cannot run: {why}\n  Available here: {', '.join(usable)}.")
