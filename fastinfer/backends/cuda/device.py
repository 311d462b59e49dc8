"""The GPUs of this machine, their limits, and the reason why none can be used."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from ...checkpoint.spec import tensors
from ...config import Config
from ...errors import BackendError
from .shared import MAX_HIDDEN


def why_not() -> str | None:
    """None if a GPU can be used here, else the reason. CuPy is imported only if a driver exists."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    try:
        import cupy
    except ImportError:
        return "CuPy is missing; pip install 'fastinfer[cuda]' (CUDA 13) or 'fastinfer[cuda12]'"
    try:
        cupy.cuda.runtime.getDeviceCount()  # this raises also when no GPU exists
    except cupy.cuda.runtime.CUDARuntimeError as error:
        version = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return f"CuPy finds no GPU to use: {error} (is the driver too old for CUDA {version}, or does CUDA_VISIBLE_DEVICES hide all GPUs?)"
    return None


def names() -> list[str]:
    """A line per GPU: name, compute capability, memory."""
    import cupy

    found = [cupy.cuda.runtime.getDeviceProperties(i) for i in range(cupy.cuda.runtime.getDeviceCount())]
    return [f"{p['name'].decode()}, sm_{p['major']}{p['minor']}, {p['totalGlobalMem'] / 2**30:.0f} GiB" for p in found]


def device_number(name: str) -> int:
    """N for "cuda:N", 0 for "cuda". Raises BackendError if this machine does not have that GPU."""
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    number = name.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= count:
        raise BackendError(
            f"device {name!r} was asked for, but this machine has {count} GPU{'s' * (count > 1)}: cuda:0 to cuda:{count - 1}"
        )
    return int(number)


class Limits(NamedTuple):
    """The limits of one GPU.

    capability     the compute capability, 90 for 9.0
    processors     the number of multiprocessors
    shared_memory  bytes of shared memory that a block may ask for
    starts_early   whether a kernel may start while the one before it still runs
    """

    capability: int
    processors: int
    shared_memory: int
    starts_early: bool

    @property
    def architecture(self) -> str:
        """NVRTC's name for this GPU, such as "sm_80" or "sm_90a"."""
        return f"sm_{self.capability}" + ("a" if self.capability == 90 else "")


def limits(cupy: Any, number: int) -> Limits:
    """The limits of GPU `number`."""
    device = cupy.cuda.Device(number)
    capability, attributes = int(device.compute_capability), device.attributes
    # Graphs capture early starts from CUDA 12.3 on.
    early = capability >= 90 and cupy.cuda.runtime.driverGetVersion() >= 12030
    return Limits(capability, attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"], early)


def check_sizes(hidden: int, heads: int, act: str, able: Limits, device: str) -> None:
    """Raise BackendError for sizes that the kernels do not take, and for a dtype in which the GPU does not compute."""
    if heads and (hidden % 8 or hidden // heads % 8 or hidden // heads > 128):
        raise BackendError(
            f"hidden is {hidden} and heads {heads}, but the GPU backend needs a head size that is a multiple of 8 "
            "up to 128: use device 'cpu'"
        )
    if hidden > MAX_HIDDEN:
        raise BackendError(f"hidden is {hidden}, but the GPU backend takes at most {MAX_HIDDEN}: use device 'cpu'")
    if act == "bfloat16" and able.capability < 80:
        raise BackendError(f"bfloat16 needs a GPU of compute capability 8.0, {device} has {able.capability}: use float16 or float32")


def check_config(config: Config) -> None:
    """Raise BackendError for a model that has what the kernels do not compute."""
    lacking = {
        "norm.kind is 'rms'": config.norm.kind == "rms",
        "head_norms is true": config.head_norms,
        f"head_size is {config.head_size}": config.heads * config.width_of_head != config.hidden,
    }
    for setting in (name for name, there in lacking.items() if there):
        raise BackendError(f"{setting}, which the GPU backend does not compute: use device 'cpu'")
    normed = {name: spec.shape[0] for name, spec in tensors(config).items() if name.endswith("norm.weight")}
    for name, width in {"embedding.word": config.embedding_width or config.hidden, **normed}.items():
        if width % 8 or width > MAX_HIDDEN:
            raise BackendError(
                f"{name} has {width} columns, but the GPU backend needs a multiple of 8, at most {MAX_HIDDEN}: use device 'cpu'"
            )


def check_places(ids: np.ndarray, skip: int | None) -> None:
    """Raise BackendError if ids (T,) hold `skip`, the id of a token that takes no position; None: no token is such."""
    if skip is not None and (ids == skip).any():
        raise BackendError(f"a GPU does not compute texts that contain the padding token, id {skip}: use device 'cpu'")
