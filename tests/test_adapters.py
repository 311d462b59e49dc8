"""Adapters beside the weights of their base: merged as peft computes them, or refused by name."""

import json
import sys
import warnings
from pathlib import Path

import builders
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

import fastinfer
from fastinfer import checkpoint
from fastinfer.errors import CheckpointError, CheckpointWarning, ConfigError

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import seeds

SIZES = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
BERT = SIZES | {"max_position_embeddings": 20}
ROBERTA = BERT | {"max_position_embeddings": 22, "pad_token_id": 1, "type_vocab_size": 1}
DISTILBERT = {"vocab_size": 60, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 20}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LABELS = {"id2label": {0: "no", 1: "yes", 2: "so-so"}}


@pytest.fixture(scope="module")
def libraries():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", reason="the oracle needs peft")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers, peft


def shake(torch, model, seed, size):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


# (class of the base, its options, class with the adapter, settings of LoRA, logits or states)
CASES = {
    "plain": ("BertModel", BERT, "BertModel", {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}),
    "all linear maps": ("BertModel", BERT, "BertModel", {"r": 3, "target_modules": ["query", "key", "value", "dense"]}),
    "one rank": ("BertModel", BERT, "BertModel", {"r": 1, "lora_alpha": 0.5, "target_modules": ["key"]}),
    "rslora": ("RobertaModel", ROBERTA, "RobertaModel", {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["query"]}),
    "embeddings": ("BertModel", BERT, "BertModel", {"r": 2, "target_modules": ["word_embeddings", "query"]}),
    "biases": ("BertModel", BERT, "BertModel", {"r": 2, "bias": "all", "target_modules": ["query"]}),
    "biases of its modules": ("BertModel", BERT, "BertModel", {"r": 2, "bias": "lora_only", "target_modules": ["query"]}),
    "a norm as a whole": ("BertModel", BERT, "BertModel", {"r": 2, "target_modules": ["query"], "modules_to_save": ["LayerNorm"]}),
    "fan in": ("BertModel", BERT, "BertModel", {"r": 2, "fan_in_fan_out": True, "target_modules": ["query"]}),
    "distilbert": ("DistilBertModel", DISTILBERT, "DistilBertModel", {"r": 2, "target_modules": ["q_lin", "lin1"]}),
    "a head": (
        "BertForSequenceClassification",
        BERT | LABELS,
        "BertForSequenceClassification",
        {"r": 2, "task_type": "SEQ_CLS", "target_modules": ["query"]},
    ),
    "a head that the base lacks": (
        "BertForPreTraining",
        BERT | LABELS,
        "BertForSequenceClassification",
        {"r": 2, "task_type": "SEQ_CLS", "target_modules": ["query"]},
    ),
    "a head of tags": (
        "BertForPreTraining",
        BERT | LABELS,
        "BertForTokenClassification",
        {"r": 2, "task_type": "TOKEN_CLS", "target_modules": ["query"]},
    ),
    "a head of roberta": (
        "RobertaForMaskedLM",
        ROBERTA | LABELS,
        "RobertaForSequenceClassification",
        {"r": 2, "task_type": "SEQ_CLS", "target_modules": ["query", "dense"], "modules_to_save": ["classifier"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_as_peft_computes(case, libraries, tmp_path):
    torch, transformers, peft = libraries
    base, options, kind, settings = CASES[case]
    plain = getattr(transformers, base)
    model = plain(plain.config_class(**options)).eval()
    shake(torch, model, seed=1, size=0.3)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(getattr(transformers, kind).from_pretrained(tmp_path), peft.LoraConfig(**settings)).eval()
        changed = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
        shake(torch, torch.nn.ParameterList(changed.values()), seed=2, size=1)
        tuned.save_pretrained(tmp_path)
        if kind != base:  # the labels and the head are those of the model with the adapter
            tuned.base_model.model.config.architectures = [base]
            tuned.base_model.model.config.save_pretrained(tmp_path)
    before = {name: tensor.copy() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    ids = np.random.default_rng(3).integers(5, 60, 11)
    with torch.no_grad():
        out = tuned(input_ids=torch.tensor(ids)[None], output_hidden_states=True)
    for device in ("numpy", "cpu"):
        engine = fastinfer.load(tmp_path, device=device, dtype="float32")
        batch = fastinfer.PackedBatch.from_ids([ids])
        assert_allclose(engine.hidden_states(batch)[0], out.hidden_states[-1][0].numpy(), **TOLERANCE)
        if "logits" in out:
            assert engine.tasks == ({"TOKEN_CLS": "tag", "SEQ_CLS": "classify"}[settings["task_type"]],)
            assert_allclose(engine.logits(batch)[0], out.logits[0].numpy(), **TOLERANCE)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert_array_equal(tensor, before[name])
    (tmp_path / "adapter_config.json").unlink()
    without = fastinfer.load(tmp_path, device="numpy").hidden_states(batch)[0]
    assert np.abs(without - out.hidden_states[-1][0].numpy()).max() > 3e-3  # so the adapter was not ignored


def test_the_head_that_goes_is_said(libraries, tmp_path):
    _, transformers, peft = libraries
    model = transformers.BertForPreTraining(transformers.BertConfig(**BERT))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
        peft.get_peft_model(tuned, peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.warns(CheckpointWarning, match=r"the adapter's head takes the place of 'cls\.predictions\.bias', 'cls\.predictions\.trans"):
        checkpoint.load(tmp_path)


# --- without peft ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A function from changes of adapter_config.json, and the adapter's tensors, to a folder with a BERT of zeros and the adapter."""

    def make(tensors, dtype=np.float32, **settings):
        save_file({name: np.zeros_like(w, dtype=dtype) for name, w in seeds.bert().items()}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(seeds.BERT))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["query"]} | settings
        (tmp_path / "adapter_config.json").write_text(json.dumps(whole))
        return tmp_path

    return make


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def pair(r=2, inside=16, outside=16, name=QUERY, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        f"{name}.lora_A.weight": rng.normal(size=(r, inside)).astype(dtype),
        f"{name}.lora_B.weight": rng.normal(size=(outside, r)).astype(dtype),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_arithmetic(dtype, folder):
    parts = pair()
    first, second = parts.values()
    path = folder(parts, dtype)
    qkv = checkpoint.load(path)[1]["layers.0.attention.qkv.weight"]
    assert qkv.dtype == np.dtype(dtype).name
    wanted = (1.5 * (second.astype(np.float64) @ first)).astype(dtype)
    assert_allclose(qkv.data[:16], wanted, rtol=1e-5 if dtype is np.float32 else 1e-3)
    assert not qkv.data[16:].any()


@pytest.mark.parametrize(
    "name", [QUERY.replace("bert.", ""), QUERY.replace("bert.", "roberta."), QUERY.replace("model.bert", "model.auto_model")]
)
def test_names_of_modules_with_other_prefixes(name, folder):
    assert checkpoint.load(folder(pair(name=name)))[1]["layers.0.attention.qkv.weight"].data[:16].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type 'PROMPT_TUNING' is not supported"),
        ({"peft_type": None}, "peft_type None is not supported"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"rank_pattern": {"query": 8}}, r"rank_pattern {'query': 8} is not supported: merge the adapter with peft's merge_and_unload\(\)"),
        ({"alpha_pattern": {"query": 8}, "use_dora": True}, "use_dora True, alpha_pattern {'query': 8} is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base weights"),
        ({"init_lora_weights": ["pissa"]}, r"init_lora_weights \['pissa'\], which changes the base weights"),
        ({"init_lora_weights": 1}, "init_lora_weights 1, which changes the base weights"),
        ({"r": "2"}, "r is '2', expected an integer from 1 to"),
        ({"r": 0}, "r is 0, expected an integer from 1 to"),
        ({"r": True}, "r is True, expected an integer from 1 to"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number below 1e9"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"use_rslora": 1}, "use_rslora is 1, expected true or false"),
    ],
)
def test_settings_that_are_refused(settings, said, folder):
    with pytest.raises(ConfigError, match=rf"adapter_config\.json: .*{said}"):
        checkpoint.load(folder(pair(), **settings))


def test_settings_that_change_nothing(folder):
    plain = checkpoint.load(folder(pair()))[1]["layers.0.attention.qkv.weight"].data
    for settings in (
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "use_dora": False, "rank_pattern": {}, "bias": "none"},
        {"init_lora_weights": False, "fan_in_fan_out": True, "target_parameters": None, "inference_mode": True, "a new setting": False},
    ):
        assert_array_equal(checkpoint.load(folder(pair(), **settings))[1]["layers.0.attention.qkv.weight"].data, plain)


def test_tensors_that_do_not_fit(folder):
    two = pair()
    first, _ = two
    for tensors, said in (
        (pair(r=3), r"the adapter of '.*query' has shapes \(3, 16\) and \(16, 3\), expected a product of shape \(16, 16\) through r=2"),
        (pair(inside=15), r"has shapes \(2, 15\) and \(16, 2\), expected a product of shape"),
        ({first: two[first]}, "has lora_A, expected lora_A and lora_B"),
        (two | {first: two[first].astype(np.int32)}, "has dtypes int32 and float32, for a float32; expected float32, float16, bfloat16"),
        (two | {first: two[first][0]}, r"has shapes \(16,\) and \(16, 2\)"),
        (
            pair(name="base_model.model.encoder.layer.7.attention.self.query"),
            r"changes '.*layer\.7.*query', which the weights beside it do not",
        ),
        (pair(name="base_model.model.bert.embeddings.LayerNorm"), r"expected a product of shape \(16,\) through r=2"),
    ):
        with pytest.raises(CheckpointError, match=said):
            checkpoint.load(folder(tensors))
    for name in (f"{QUERY}.lora_magnitude_vector", f"{QUERY}.lora_B.bias"):
        with pytest.raises(ConfigError, match=r"the adapter has a tensor '.*', which is not supported, only lora_A and lora_B"):
            checkpoint.load(folder(two | {name: np.zeros(16, np.float32)}))


def test_an_adapter_without_its_tensors(folder):
    path = folder(pair())
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights, expected adapter_model\.safetensors or adapter_model\.bin"):
        checkpoint.load(path)


def test_an_adapter_beside_weights_of_this_format(tmp_path):
    builders.save(tmp_path, builders.tiny())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"adapter_config\.json beside weights of this format: put it beside the original's, and convert"
    ):
        fastinfer.load(tmp_path)
