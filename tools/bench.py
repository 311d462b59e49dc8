"""The benchmarks of `fastinfer bench`, with the rivals that are not dependencies beside it: PyTorch (oneDNN) and onnxruntime.

    pip install -r tools/requirements.txt onnx onnxruntime
    python tools/bench.py cmm --tokens 1,128,4096

Options are those of `fastinfer bench`; what is not installed is left out, and the header says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from fastinfer import bench

LEFT_OUT: dict[str, str] = {}


def torch_dense(dtype_name: str) -> bench.Rival:
    """torch.nn.functional: linear, exact GELU, linear, in inference mode."""

    def make(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> bench.Run:
        import torch

        torch.set_num_threads(threads)
        dtype = getattr(torch, dtype_name)
        first, bias, second = (torch.from_numpy(a.copy()).to(dtype) for a in (w1, b1, w2))
        functional = torch.nn.functional

        def run(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                middle = functional.gelu(functional.linear(torch.from_numpy(x).to(dtype), first, bias))
                return functional.linear(middle, second).float().numpy()

        return run

    return make


def torch_product(dtype_name: str) -> Callable[[np.ndarray, int], bench.Run]:
    """One linear layer; the input is converted before, so that the product alone is timed."""

    def make(weight: np.ndarray, threads: int) -> bench.Run:
        import torch

        torch.set_num_threads(threads)
        dtype = getattr(torch, dtype_name)
        matrix = torch.from_numpy(weight.copy()).to(dtype)
        inputs: dict[int, torch.Tensor] = {}

        def run(x: np.ndarray) -> None:
            given = inputs.setdefault(id(x), torch.from_numpy(x).to(dtype))
            with torch.inference_mode():
                torch.nn.functional.linear(given, matrix)

        return run

    return make


def onnxruntime_dense(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> bench.Run:
    """MatMul, Add, Gelu (opset 20, exact), MatMul."""
    import onnx
    import onnxruntime

    helper = onnx.helper
    arrays = {"w1": np.ascontiguousarray(w1.T), "b1": b1, "w2": np.ascontiguousarray(w2.T)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Add", ["a", "b1"], ["b"]),
            helper.make_node("Gelu", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "w2"], ["y"]),
        ],
        "dense",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["t", w1.shape[1]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["t", w2.shape[0]])],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else its threads spin into the others' turns
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def installed() -> tuple[dict[str, bench.Rival], dict[str, Callable[[np.ndarray, int], bench.Run]]]:
    """(dense layers, single products) of the rivals that can be imported here."""
    dense: dict[str, bench.Rival] = {}
    products: dict[str, Callable[[np.ndarray, int], bench.Run]] = {}
    try:
        import torch

        dense |= {f"torch {torch.__version__} f32": torch_dense("float32"), f"torch {torch.__version__} bf16": torch_dense("bfloat16")}
        products |= {"torch f32": torch_product("float32"), "torch bf16": torch_product("bfloat16")}
    except ImportError as error:
        LEFT_OUT["torch"] = str(error)
    try:
        import onnx  # noqa: F401
        import onnxruntime

        dense[f"ort {onnxruntime.__version__} f32"] = onnxruntime_dense
    except ImportError as error:
        LEFT_OUT["onnxruntime"] = str(error)
    return dense, products


if __name__ == "__main__":
    dense, products = installed()
    for name, why in LEFT_OUT.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    bench.main(sys.argv[1:], dense=dense, products=products)
