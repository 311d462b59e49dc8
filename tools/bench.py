"""The benchmarks of `fastinfer bench`, with the rivals that are not dependencies beside it: PyTorch, onnxruntime and, for whole
models, OpenVINO, CTranslate2 and sentence-transformers.

    pip install -r tools/requirements.txt onnx onnxruntime
    pip install transformers onnxscript openvino nncf ctranslate2 sentence-transformers   # for: model
    python tools/bench.py cmm --tokens 1,128,4096

Options are those of `fastinfer bench`; what is not installed is left out, and the header says so.
"""

import sys
from typing import Any

from rivals import cpu, gpu

from fastinfer.bench import layers as bench

if __name__ == "__main__":
    options = bench.parse(sys.argv[1:])
    rivals: dict[str, Any]
    if options.device.startswith("cuda"):
        rivals, left_out = {"gpu": gpu.installed()}, gpu.LEFT_OUT
    else:
        dense, products = cpu.installed()
        rivals, left_out = {"dense": dense, "products": products, "models": cpu.models}, cpu.LEFT_OUT
    for name, why in left_out.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    bench.run(options, **rivals)
