"""The rivals of tools/rivals compute the right results. The benchmark itself checks those that need a GPU."""

from pathlib import Path

import numpy as np
import oracle
import pytest
from models import load_tool

from fastinfer.bench.cases import FFFCase, dense_weights
from fastinfer.bench.oracle import dense64

torch = pytest.importorskip("torch", reason="tools/rivals needs PyTorch")
cpu, gpu = load_tool("rivals.cpu"), load_tool("rivals.gpu")


def test_batched_fff():
    x, w_in, b_in, w_out = FFFCase(1, 5, 24, 50).build(4)
    nodes, _ = oracle.walk(x, w_in, b_in, 5)
    y = gpu.batched_fff(*(torch.from_numpy(a) for a in (x, w_in[0], b_in[0], w_out[0])))
    np.testing.assert_allclose(y.numpy(), oracle.add_up(x, w_in, b_in, w_out, nodes), rtol=1e-4, atol=2e-5)


def test_dense():
    x = np.random.default_rng(1).standard_normal((7, 16), np.float32)
    weights = dense_weights(16, 40)
    y = gpu.dense(*(torch.from_numpy(a) for a in (x, *weights)))
    np.testing.assert_allclose(y.numpy(), dense64(x, *weights, gelu=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [cpu.torch_dense("float32"), cpu.torch_dense("bfloat16")], ids=["float32", "bfloat16"])
def test_dense_on_the_cpu(make):
    x = np.random.default_rng().standard_normal((7, 16), np.float32)
    weights = dense_weights(16, 40)
    want = dense64(x, *weights, gelu=True)
    assert np.abs(make(*weights, 1)(x) - want).max() < 0.05 * np.abs(want).max()


def test_bert(tmp_path):
    """The split functions of BERT agree with transformers on the CPU."""
    transformers = pytest.importorskip("transformers", reason="the oracle of BERT is transformers")
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    for weight in model.parameters():  # else biases would be 0 and norms 1
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path)
    weights, functions = gpu.Bert.read(tmp_path, 2, "float32", "cpu"), gpu.bert_functions(24, 3, 1e-12)
    ids = torch.randint(0, 50, (2, 9))
    with torch.inference_mode():
        got = gpu.TorchBert(weights, functions, 24, "float32", compiled=False).forward(functions, ids)
        want = model(ids).last_hidden_state
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4, atol=1e-4)


def test_what_is_missing_is_told():
    rivals = gpu.installed()
    if torch.cuda.is_available():
        assert "torch float16" in rivals.dense
    else:
        assert rivals.dense == {}
        assert "without CUDA, or finds no GPU" in rivals.left_out["torch"]
    assert {"dense naive", "fff naive"} <= set(rivals.ladder)


def test_models_of_another_layout_are_left_out(random_model, tmp_path):
    left_out = {}
    assert list(gpu.models({}, Path(random_model), tmp_path, None, lambda name: True, left_out)) == []
    assert "Hugging Face" in left_out["all rivals"]
