"""The benchmarks of `fastinfer bench`, with rivals that are not dependencies beside it: PyTorch, onnxruntime and, for whole models,
OpenVINO, CTranslate2, sentence-transformers and fastembed.

    pip install -r tools/requirements.txt onnx onnxruntime
    pip install transformers onnxscript openvino nncf ctranslate2 sentence-transformers fastembed   # for: model
    python tools/bench.py cmm --tokens 1,128,4096

Options are those of `fastinfer bench`. Rivals that are not installed are left out, and the header says so.
"""

import sys

from rivals import cpu, gpu

from fastinfer.bench import command

if __name__ == "__main__":
    options = command.parse(sys.argv[1:])
    rivals = (gpu if options.device.startswith("cuda") else cpu).installed()
    for name, why in rivals.left_out.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    command.run(options, rivals)
