"""The rivals of tools/rivals/gpu.py compute what they are compared with; what needs a GPU is checked by the benchmark itself."""

import numpy as np
import oracle
import pytest
from models import load_tool

from fastinfer.bench import layers as bench
from fastinfer.bench.cases import FFFCase

torch = pytest.importorskip("torch", reason="tools/rivals/gpu.py needs PyTorch")
bench_gpu = load_tool("rivals.gpu")


def test_batched_fff():
    x, w_in, b_in, w_out = FFFCase(1, 5, 24, 50).build(4)
    nodes, _ = oracle.walk(x, w_in, b_in, 5)
    y = bench_gpu.batched_fff(*(torch.from_numpy(a) for a in (x, w_in[0], b_in[0], w_out[0])))
    np.testing.assert_allclose(y.numpy(), oracle.add_up(x, w_in, b_in, w_out, nodes), rtol=1e-4, atol=2e-5)


def test_dense():
    x = np.random.default_rng(1).standard_normal((7, 16), np.float32)
    weights = bench.dense_weights(16, 40)
    y = bench_gpu.dense(*(torch.from_numpy(a) for a in (x, *weights)))
    np.testing.assert_allclose(y.numpy(), bench.dense64(x, *weights, gelu=True), rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_told():
    rivals = bench_gpu.installed()
    if torch.cuda.is_available():
        assert "torch float16" in rivals.dense
    else:
        assert rivals.dense == {}
        assert "without CUDA, or finds no GPU" in bench_gpu.LEFT_OUT["torch"]
    assert {"dense naive", "fff naive"} <= set(rivals.ladder)


def test_models_of_another_layout_are_left_out(random_model, tmp_path):
    left_out = {}
    assert list(bench_gpu.models(bench_gpu.Path(random_model), tmp_path, None, lambda name: True, left_out)) == []
    assert "Hugging Face" in left_out["all rivals"]
