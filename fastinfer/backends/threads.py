"""The team of threads that computes on the CPU: fastinfer's own, or that of the OpenMP library of the process."""

from __future__ import annotations

import ctypes
import os
import re
import sys

from .. import _cpu
from ..errors import BackendError, near, short

TEAMS = ("own", "openmp")
VARIABLE = "FASTINFER_TEAM"
USUAL = "libgomp.so.1"  # gcc's, which Linux systems have
LIBRARY = re.compile(r"(/.*/lib(?:gomp|iomp5|omp)\b[^/]*\.so[^/]*)$")  # gcc's, Intel's and LLVM's, also as wheels rename them
FUNCTIONS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
FORKED = 0x40  # PF_FORKNOEXEC, a flag of Linux in /proc/PID/stat

_chosen = False  # whether a team has been chosen in this process


def choose(name: object, source: str = "team") -> None:
    """Let a team run later calls. Raises BackendError, which names `source`, where it cannot."""
    global _chosen
    if name == "own":
        _cpu.use_own()
    elif name == "openmp":
        _use_openmp(f"{source} is 'openmp', but ")
    else:
        raise BackendError(f"{source} is {short(name)}, expected {' or '.join(TEAMS)}{near(name, TEAMS)}")
    _chosen = True


def choose_by_environment() -> None:
    """Choose the team that FASTINFER_TEAM names, unless one has been chosen. A fork keeps the own team, whatever the variable says."""
    name = os.environ.get(VARIABLE)
    if not _chosen and name and not (name == "openmp" and is_fork()):
        choose(name, VARIABLE)


def describe() -> dict[str, object]:
    """compiled: the names of all teams; chosen: the one that runs calls; openmp: the OpenMP library of the process, if one is loaded."""
    choose_by_environment()
    return {"compiled": list(TEAMS), "chosen": "openmp" if _cpu.uses_openmp() else "own", "openmp": loaded()}


def is_fork() -> bool:
    """Whether this process was forked and has started no other program since, where Linux tells."""
    try:
        with open("/proc/self/stat") as file:
            return bool(int(file.read().rpartition(")")[2].split()[6]) & FORKED)
    except (OSError, ValueError, IndexError):
        return False


def loaded() -> str | None:
    """The path of the OpenMP library that this process has loaded. Linux places the first of several at the highest address."""
    try:
        with open("/proc/self/maps") as file:
            found = [match[1] for line in file if (match := LIBRARY.search(line.rstrip("\n")))]
    except OSError:
        return None
    return found[-1] if found else None


def _use_openmp(but: str) -> None:
    """Let the threads of OpenMP run later calls. Raises BackendError, which begins with `but`, where they cannot."""
    if sys.platform != "linux":
        raise BackendError(f"{but}it is offered on Linux alone: use 'own'")
    if is_fork():
        raise BackendError(
            f"{but}this process was forked, and OpenMP could wait for threads that it lacks: use 'own', or start it by spawn"
        )
    library = _library(but)
    try:
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in FUNCTIONS]
    except AttributeError as error:
        raise BackendError(f"{but}the OpenMP library of this process lacks a function of gcc's ({error}): use 'own'") from None
    _cpu.use_openmp(*addresses)


def _library(but: str) -> ctypes.CDLL:
    """The OpenMP library that this process has loaded, else the system's."""
    try:
        return ctypes.CDLL(loaded() or USUAL)
    except OSError as error:
        raise BackendError(
            f"{but}no OpenMP library can be loaded ({error}): first import the library whose threads are to be used, "
            f"install {USUAL} (Debian: libgomp1), or use 'own'"
        ) from None
