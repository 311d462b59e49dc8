"""The description of the machine that numbers were measured on, and the peak rates of its CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from typing import Any

import numpy as np

from .cases import FFFCase


def describe_cpu(ops: Any) -> dict[str, Any]:
    """Date, CPU, threads and libraries of a measurement with the CPU backend `ops`."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "isa": ops.isa,
        "threads": ops.threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": importlib.metadata.version("scipy") if importlib.util.find_spec("scipy") else None,
        "blas": f"{blas.get('name')} {blas.get('version')}",
    }


def describe_gpu(ops: Any) -> dict[str, Any]:
    """Date, GPU, driver and libraries of a measurement with the GPU backend `ops`."""
    runtime = ops.cupy.cuda.runtime
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": runtime.getDeviceProperties(ops.number)["name"].decode(),
        "driver": "{}.{}".format(*divmod(runtime.driverGetVersion() // 10, 100)),
        "cuda": "{}.{}".format(*divmod(runtime.runtimeGetVersion() // 10, 100)),
        "cupy": ops.cupy.__version__,
        "python": platform.python_version(),
    }


class Roofline:
    """The peak rates of the CPU with one ISA and number of threads, measured once: FLOP per second, and reads per working set."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.flops: float = max(ops.kernels.probe_fma(1 << 22, ops.threads) for _ in range(5))
        self._reads: dict[int, float] = {}

    def read(self, nbytes: float) -> float:
        """Bytes per second when the threads together read a working set of `nbytes` in order, again and again."""
        size = 1 << max(15, int(np.ceil(np.log2(max(nbytes, 1)))))
        if size not in self._reads:
            data = np.ones(size // 4, np.float32)
            self._reads[size] = max(self._ops.kernels.probe_read(data, max(1, (1 << 29) // size), self._ops.threads) for _ in range(3))
        return self._reads[size]

    def fff_seconds(self, case: FFFCase, itemsize: int, distinct: int) -> tuple[float, str]:
        """(the least seconds of a layer, the name of the bound that gives them).

        itemsize  bytes of a value in a tree's row
        distinct  the number of distinct neurons that the tokens visit

        The time is the largest of three. Multiply-adds run at the FMA rate. Distinct rows, x and y are read at the rate of a working
        set of that size. A single tree also loads x and both rows of every visited node at L1's rate. With more trees, register
        tiles share these loads.
        """
        visited = case.tokens * case.used
        once = (2 * itemsize * distinct + 8 * case.tokens) * case.hidden
        bounds = {"FMA": 4.0 * visited * case.hidden / self.flops, f"{once / 1e6:.1f} MB once": once / self.read(once)}
        if case.trees == 1 and case.leaf == 1:
            fastest = max(self.read(size) for size in (16 << 10, 32 << 10, 64 << 10))  # loop overhead slows short sets
            bounds["L1 loads"] = visited * case.hidden * (4 + 2 * itemsize) / fastest
        name = max(bounds, key=lambda k: bounds[k])
        return bounds[name], name
