"""PyTorch in the process and on the stream of a GPU benchmark: its settings, its work in CUDA graphs, and tensors of CuPy arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastinfer.bench.gpu_timing import Call, Work


@contextlib.contextmanager
def settings(stream: Any, dtype: str) -> Iterator[None]:
    """PyTorch on a CuPy stream, without gradients, with TF32 for "tf32" alone."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
        yield


def torch_dtype(name: str) -> Any:
    """The dtype of PyTorch that a dtype of the benchmark is stored in."""
    import torch

    return getattr(torch, "float32" if name == "tf32" else name)


def torch_work(stream: Any, dtype: str, calls: Sequence[Call]) -> Work:
    """Work of PyTorch; calls return the tensor that they compute."""
    import torch

    last: dict[str, Any] = {}

    def run(call: Call) -> None:
        with settings(stream, dtype):
            last["out"] = call()

    def capture(launch: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        with settings(stream, dtype):
            graph.capture_begin()
            try:
                launch()
            finally:
                graph.capture_end()

        def replay() -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
                graph.replay()

        return replay

    def result() -> np.ndarray:
        torch.cuda.synchronize()
        return last["out"].float().cpu().numpy()

    return Work(stream, [functools.partial(run, call) for call in calls], capture, result)


def tensors(stream: Any, dtype: str, inputs: Sequence[Any], arrays: Sequence[np.ndarray]) -> tuple[list, list]:
    """(x, weights) of each set as PyTorch has them; the weights lie at different addresses."""
    import torch

    stream.synchronize()
    kind = torch_dtype(dtype)
    xs = [torch.from_dlpack(x).to(kind) for x in inputs]
    weights = [[torch.from_numpy(a).cuda().to(kind) for a in arrays] for _ in inputs]
    torch.cuda.synchronize()
    return xs, weights
