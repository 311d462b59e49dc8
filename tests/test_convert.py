"""Every recognised layout is converted and compared with the model's own PyTorch code. `fastinfer convert` refuses all else."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import backends
import numpy as np
import pytest
from models import load_tool
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file
from scipy.special import erf, logsumexp

import fastinfer
from fastinfer import checkpoint, cli, conversion
from fastinfer.checkpoint import torch_file
from fastinfer.config import Answer, Classify, Embed, FillMask, HeadLayer, Ids, Tag, Tasks
from fastinfer.errors import CheckpointError, CheckpointWarning, ConfigError

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "data" / "golden"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


VOCABULARY, HIDDEN, LAYERS, POSITIONS = 60, 24, 2, 20
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
BERT = SIZES | {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 3, "intermediate_size": 40}
ROBERTA = BERT | {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "layer_norm_eps": 0.01}
DISTILBERT = SIZES | {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": 3, "hidden_dim": 40}
MOODS = {"id2label": {2: "good", 0: "bad", 1: "so-so"}}
NER = {"id2label": {0: "O", 1: "B-place", 2: "I-place"}}
UNTIED = {"tie_word_embeddings": False}
MULTI = {"problem_type": "multi_label_classification"} | MOODS

EMBED = Tasks(embed=Embed("mean", False))
MASKS, MASKS_UNTIED = Tasks(fill_mask=FillMask(True)), Tasks(fill_mask=FillMask(True, tied=False))
TAGS, SPANS = Tasks(tag=Tag(("O", "B-place", "I-place"), "bio")), Tasks(answer=Answer())


def classes(output="softmax", labels=("bad", "so-so", "good"), activation="tanh"):
    return Tasks(classify=Classify(labels, output, "cls", (HeadLayer(HIDDEN, activation),)))


# (class in transformers, its options, the name of its output with the logits, the expected heads)
CASES = [
    ("BertModel", BERT, None, EMBED),
    ("BertForMaskedLM", BERT, "logits", MASKS),
    ("BertForMaskedLM", BERT | UNTIED, "logits", MASKS_UNTIED),
    ("BertForPreTraining", BERT, "prediction_logits", MASKS),
    ("BertForSequenceClassification", BERT | MOODS, "logits", classes()),
    ("BertForSequenceClassification", BERT | MULTI, "logits", classes("sigmoid")),
    ("BertForSequenceClassification", BERT | {"num_labels": 1}, "logits", classes("sigmoid", ("LABEL_0",))),
    ("BertForSequenceClassification", BERT | {"num_labels": 1, "problem_type": "regression"}, "logits", classes("identity", ("LABEL_0",))),
    ("BertForTokenClassification", BERT | NER, "logits", TAGS),
    ("BertForQuestionAnswering", BERT, "spans", SPANS),
    ("RobertaModel", ROBERTA, None, EMBED),
    ("RobertaForMaskedLM", ROBERTA, "logits", MASKS),
    ("RobertaForMaskedLM", ROBERTA | UNTIED, "logits", MASKS_UNTIED),
    ("RobertaForSequenceClassification", ROBERTA | MOODS, "logits", classes()),
    ("RobertaForTokenClassification", ROBERTA | NER, "logits", TAGS),
    ("RobertaForQuestionAnswering", ROBERTA, "spans", SPANS),
    ("XLMRobertaForMaskedLM", ROBERTA, "logits", MASKS),
    ("CamembertForSequenceClassification", ROBERTA | MOODS, "logits", classes()),
    ("DistilBertModel", DISTILBERT, None, EMBED),
    ("DistilBertForMaskedLM", DISTILBERT, "logits", MASKS),
    ("DistilBertForMaskedLM", DISTILBERT | UNTIED, "logits", MASKS_UNTIED),
    ("DistilBertForSequenceClassification", DISTILBERT | MOODS, "logits", classes(activation="relu")),
    ("DistilBertForTokenClassification", DISTILBERT | NER, "logits", TAGS),
    ("DistilBertForQuestionAnswering", DISTILBERT, "spans", SPANS),
]


@pytest.fixture(scope="module")
def random_model():
    """A function from a class's name and options to a tiny transformers model.

    Every parameter is random, because a bias of 0 or a norm of 1 would hide that it is not read.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def make(name, options):
        kind = getattr(transformers, name)
        model = kind(kind.config_class(**options)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    return make


def assert_agrees(folder, model, logits, devices=backends.ALL):
    """Assert that the engine's hidden states and logits equal those of a transformers model, which gets one text at a time."""
    import torch

    rng = np.random.default_rng(1)
    ids = [rng.integers(5, VOCABULARY, n) for n in (1, 5, 12, POSITIONS)]
    two_types = getattr(model.config, "type_vocab_size", 0) == 2
    types = [rng.integers(0, 2, len(row)) for row in ids] if two_types else None
    wanted = []
    for i, row in enumerate(ids):
        inputs = {"token_type_ids": torch.tensor(types[i])[None]} if two_types else {}
        with torch.no_grad():
            out = model(input_ids=torch.tensor(row)[None], output_hidden_states=True, **inputs)
        states = [h[0].numpy() for h in out.hidden_states]
        last = torch.stack([out.start_logits, out.end_logits], -1) if logits == "spans" else out[logits] if logits else None
        wanted.append((states, last if last is None else last[0].numpy()))
    for device in devices:
        engine = fastinfer.load(folder, device=device, dtype="float32")
        batch = fastinfer.PackedBatch.from_ids(ids, types)
        got_states = engine.hidden_states(batch, layers=tuple(range(LAYERS + 1)))
        got_logits = engine.logits(batch, positions="all") if logits else [None] * len(ids)
        for b, (states, last) in enumerate(wanted):
            assert_allclose(np.stack(got_states[b]), np.stack(states), **TOLERANCE)
            if logits:
                assert_allclose(got_logits[b], last, **TOLERANCE)


def rename(folder, change):
    """Rewrite a folder's model.safetensors: change {name: array} -> {name: array}."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def edit(folder, change):
    """Rewrite a folder's config.json: `change` alters the parsed object."""
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


@pytest.fixture
def golden(tmp_path):
    """A function from a golden name to a copy of the authors' files that a test may alter."""

    def copy(name):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        (tmp_path / name / "golden.safetensors").unlink()
        return tmp_path / name

    return copy


# --- Hugging Face ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "logits", "tasks"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_hugging_face(name, options, logits, tasks, random_model, tmp_path):
    model = random_model(name, options)
    model.save_pretrained(tmp_path / "src")
    conversion.convert(tmp_path / "src", tmp_path / "out")
    assert fastinfer.load(tmp_path / "src").config.tasks == tasks
    assert_agrees(tmp_path / "src", model, logits)
    assert_agrees(tmp_path / "out", model, logits, devices=["numpy"])


def old_norm_names(weights):
    return {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w for n, w in weights.items()}


def with_copies(weights):
    """A state as older releases saved it: with tied parameters twice, and a buffer of positions."""
    return weights | {
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].copy(),
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"].copy(),
        "bert.embeddings.position_ids": np.arange(POSITIONS)[None],
    }


def bare_body(weights):
    return {n.removeprefix("bert."): w for n, w in weights.items()}


@pytest.mark.parametrize("change", [old_norm_names, with_copies, bare_body])
def test_other_names_for_the_same(change, random_model, tmp_path):
    model = random_model("BertForMaskedLM", BERT)
    model.save_pretrained(tmp_path)
    rename(tmp_path, change)
    assert fastinfer.load(tmp_path).config.tasks == MASKS
    assert_agrees(tmp_path, model, "logits")


def test_a_config_older_than_model_type(random_model, tmp_path):
    model = random_model("BertForSequenceClassification", BERT | MOODS)
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda c: [c.pop(key, None) for key in ("model_type", "architectures", "dtype", "transformers_version", "id2label")])
    assert fastinfer.load(tmp_path).config.tasks == classes(labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert_agrees(tmp_path, model, "logits")


def test_tags_are_told_from_classes_without_architectures(random_model, tmp_path):
    random_model("BertForTokenClassification", BERT | NER).save_pretrained(tmp_path)
    edit(tmp_path, lambda c: c.pop("architectures"))
    assert fastinfer.load(tmp_path).config.tasks == TAGS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_files_in_half_precision(dtype, random_model, tmp_path):
    import torch

    model = random_model("RobertaForMaskedLM", ROBERTA).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    stored = fastinfer.load(tmp_path).config.stored
    assert (stored.embeddings, stored.matrices) == (dtype, dtype)
    assert_agrees(tmp_path, model.float(), "logits")


@pytest.mark.parametrize("form", ["zip", "legacy", "shards", "bfloat16"])
def test_torch_files(form, random_model, tmp_path):
    import torch

    source, out = tmp_path / "src", tmp_path / "out"
    model = random_model("BertForSequenceClassification", BERT | MOODS)
    if form == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(source)
    (source / "model.safetensors").unlink()
    weights = model.state_dict()
    if form == "shards":
        parts = {"pytorch_model-1.bin": sorted(weights)[::2], "pytorch_model-2.bin": sorted(weights)[1::2]}
        for file, names in parts.items():
            torch.save({n: weights[n] for n in names}, source / file)
        where = {n: file for file, names in parts.items() for n in names}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=form != "legacy")
    assert_agrees(source, model.float(), "logits")
    conversion.convert(source, out)
    assert_agrees(out, model.float(), "logits")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"1": "b", "0": "a", "2": "c"}, ("a", "b", "c")),
        ({"0": "a", "1": "b"}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"0": "a", "1": "a", "2": "c"}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"0": "a", "1": "b", "²": "c"}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ([], ("LABEL_0", "LABEL_1", "LABEL_2")),
        (None, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_labels(labels, expected, golden):
    folder = golden("crammedbert-1x5-cls")
    edit(folder, lambda c: c.update(id2label=labels))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", CheckpointWarning)
        assert fastinfer.load(folder, device="numpy").config.tasks.classify.labels == expected
    told = [str(w.message) for w in given if "id2label has" in str(w.message)]
    assert len(told) == (labels is not None and expected[0] != "a")  # transformers, too, says LABEL_0 where none is given
    assert all("expected a name of its own for each of 3: they are called LABEL_0" in text for text in told)


# --- folders without transformers ------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path):
    """A BertModel folder with zeros, for tests that depend only on names, shapes and settings."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT | {"model_type": "bert"}))
    shapes = {f"embeddings.{n}_embeddings.weight": (rows, 24) for n, rows in (("word", 60), ("position", 20), ("token_type", 2))}
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        linear = {f"attention.self.{n}": (24, 24) for n in ("query", "key", "value")} | {"attention.output.dense": (24, 24)}
        linear |= {"intermediate.dense": (40, 24), "output.dense": (24, 40)}
        shapes |= {f"{at}.{n}.weight": shape for n, shape in linear.items()} | {f"{at}.{n}.bias": shape[:1] for n, shape in linear.items()}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    shapes |= {f"{n}.{part}": (24,) for n in norms for part in ("weight", "bias")}
    save_file({n: np.zeros(shape, np.float32) for n, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def sentence_transformers(folder, pooling, modules, **settings):
    listed = [{"idx": i, "path": f"{i}_{m}" if i else "", "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, value in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_sentence_transformers_settings(bert):
    limits = {"sentence_bert_config": {"max_seq_length": 7}, "tokenizer_config": {"model_max_length": 9}}
    sentence_transformers(bert, {"pooling_mode": "mean"}, ("Transformer", "Pooling", "Normalize"), **limits)
    config = fastinfer.load(bert).config
    assert (config.tasks.embed, config.max_tokens) == (Embed("mean", True), 7)
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert fastinfer.load(bert).config.max_tokens == 9
    (bert / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert fastinfer.load(bert).config.max_tokens == POSITIONS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "mish", "mish"),
        ("position_embedding_type", "relative_key", "relative_key"),
        ("is_decoder", True, "is_decoder"),
        ("hidden_size", "24", "hidden_size is '24'"),
        ("hidden_size", 0, "hidden_size is 0"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("num_hidden_layers", True, "num_hidden_layers is True"),
        ("num_attention_heads", None, "num_attention_heads is None"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("num_attention_heads", 5, "hidden is 24, expected a multiple of heads=5"),
        ("intermediate_size", 2**40, "intermediate_size is"),
        ("layer_norm_eps", "small", "layer_norm_eps is 'small'"),
        ("layer_norm_eps", 10**400, "layer_norm_eps is 1000"),
    ],
)
def test_a_config_that_cannot_be(key, value, message, bert):
    edit(bert, lambda c: c.update({key: value}))
    with pytest.raises(ConfigError, match=message):
        fastinfer.load(bert)


def test_what_an_old_config_leaves_out_is_as_transformers_has_it(bert):
    config = fastinfer.load(bert).config
    assert (config.norm.eps, config.activation, config.token_types) == (1e-12, "gelu", 2)


def test_positions_of_roberta_begin_behind_its_pad(bert):
    edit(bert, lambda c: c.update(model_type="roberta", pad_token_id=-5))
    with pytest.raises(ConfigError, match="pad_token_id is -5"):
        fastinfer.load(bert)


def test_all_tensors_at_fault_are_listed_at_once(bert):
    def spoil(weights):
        del weights["encoder.layer.0.output.dense.bias"]
        weights["encoder.layer.1.output.dense.weight"] = weights["encoder.layer.1.output.dense.weight"].reshape(-1)
        weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"].astype(np.float64)
        return weights | {"adapter.weight": np.zeros((2, 2), np.float32)}

    rename(bert, spoil)
    with pytest.raises(CheckpointError) as caught:
        fastinfer.load(bert)
    message = str(caught.value)
    assert "4 tensors" in message
    assert "missing  encoder.layer.0.output.dense.bias" in message
    assert "shape    encoder.layer.1.output.dense.weight is (960,), expected 2 dimensions" in message
    assert "dtype    embeddings.word_embeddings.weight is F64" in message
    assert "unknown  adapter.weight (2, 2)" in message


def test_a_decoder_that_is_not_tied_must_be_there(bert):
    head = {f"cls.predictions.transform.{n}": (24,) for n in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")}
    head |= {"cls.predictions.transform.dense.weight": (24, 24), "cls.predictions.bias": (60,)}
    rename(bert, lambda w: w | {n: np.zeros(shape, np.float32) for n, shape in head.items()})
    assert fastinfer.load(bert).config.tasks == MASKS
    edit(bert, lambda c: c.update(UNTIED))
    with pytest.raises(CheckpointError, match=r"1 tensor .*\n  missing  cls\.predictions\.decoder\.weight"):
        fastinfer.load(bert)


# --- crammedBERT -----------------------------------------------------------------------------------

REFUSED = [
    ("norm", "RMSNorm"),
    ("norm_scheme", "post"),
    ("nonlin", "ReLU"),
    ("use_bias", True),
    ("ffn_layer_frequency", 2),
    ("skip_head_transform", False),
    ("intermed_type", "moe"),
    ("embedding.pos_embedding", "learned"),
    ("embedding.embedding_dim", 32),
    ("attention.type", "flash"),
    ("attention.causal_attention", True),
    ("attention.rotary_embedding", True),
    ("attention.qkv_bias", True),
    ("attention.skip_output_projection", True),
    ("attention.sequence_op", "cumsum"),
]


@pytest.mark.parametrize(("path", "value"), REFUSED)
def test_crammed_options_are_refused_by_name(path, value, golden):
    folder = golden("crammedbert-4x3-mlm")
    *above, key = path.split(".")

    def change(config):
        at = config["arch"]
        for name in above:
            at = at[name]
        at[key] = value

    edit(folder, change)
    with pytest.raises(ConfigError, match=rf"arch\.{path}.*{value!r}"):
        fastinfer.load(folder)


def test_crammed_without_a_decoder_has_no_head(golden):
    folder = golden("crammedbert-4x3-mlm")
    edit(folder, lambda c: c["arch"].update(tie_weights=False))
    rename(folder, lambda w: {n: t for n, t in w.items() if n != "decoder.weight"})
    assert fastinfer.load(folder).tasks == ()


def test_crammed_sizes_are_checked_before_use(golden):
    folder = golden("crammedbert-4x3-mlm")
    edit(folder, lambda c: c["arch"].update(intermed_depth=10**9))
    with pytest.raises(ConfigError, match="intermed_depth is 1000000000, expected an integer from 0 to 15"):
        fastinfer.load(folder)


def test_crammed_scores_scaled_otherwise_are_refused(golden):
    folder = golden("crammedbert-4x3-mlm")
    rename(folder, lambda w: w | {"encoder.layers.1.attn.self_attention.norm_factor": np.array(1, np.float32)})
    with pytest.raises(ConfigError, match=r"layers\.1\.attn\.self_attention\.norm_factor 1\.0"):
        fastinfer.load(folder)


def unpadded(name):
    """The golden outputs, their masks, and the ids without padding."""
    outputs = load_file(GOLDEN / name / "golden.safetensors")
    masks = outputs["attention_mask"].astype(bool)
    return outputs, masks, fastinfer.PackedBatch.from_ids([row[mask] for row, mask in zip(outputs["input_ids"], masks, strict=True)])


@pytest.mark.parametrize("device", backends.ALL)
def test_crammed_without_intermed_type_is_dense(device, golden):
    folder = golden("crammedbert-dense-mlm")
    edit(folder, lambda c: c["arch"].pop("intermed_type"))
    outputs, masks, batch = unpadded("crammedbert-dense-mlm")
    for b, logits in enumerate(fastinfer.load(folder, device=device, dtype="float32").logits(batch, positions="all")):
        assert_allclose(logits, outputs["mlm_logits"][b][masks[b]], rtol=1e-5, atol=1e-5)


POOLERS = {
    "zero_index": lambda h: h[0],
    "avg": lambda h: h.mean(0),
    "max": lambda h: h.max(0),
    "lse": lambda h: logsumexp(h, axis=0),
}
NONLIN = {"Tanh": np.tanh, "ReLU": lambda a: np.maximum(a, 0), "GELU": lambda a: a * (1 + erf(a / 2**0.5)) / 2, None: None}


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("nonlin", NONLIN)
@pytest.mark.parametrize("pooler", POOLERS)
def test_crammed_classification_heads(pooler, nonlin, device, golden):
    """The heads run on the authors' final hidden states. nonlin None: the head has only its last layer."""
    folder = golden("crammedbert-1x5-cls")
    settings = {"pooler": pooler, "include_ff_layer": nonlin is not None, "nonlin": nonlin}
    edit(folder, lambda c: c["arch"]["classification_head"].update(settings))
    weights = load_file(folder / "model.safetensors")
    if nonlin is None:
        weights = {n: w for n, w in weights.items() if not n.startswith("pooler.")}
        weights["head.weight"] = np.random.default_rng(0).normal(0, 0.2, (3, 64)).astype(np.float32)
        rename(folder, lambda _: weights)
    outputs, masks, batch = unpadded("crammedbert-1x5-cls")
    want = []
    for states, mask in zip(outputs["last_hidden_state"].astype(np.float64), masks, strict=True):
        pooled = POOLERS[pooler](states[mask])
        if nonlin is not None:
            pooled = NONLIN[nonlin](weights["pooler.dense.weight"] @ pooled + weights["pooler.dense.bias"])
        want.append(weights["head.weight"] @ pooled + weights["head.bias"])
    assert_allclose(fastinfer.load(folder, device=device, dtype="float32").logits(batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "value"), [("pooler", "attention"), ("nonlin", "SiLU")])
def test_crammed_heads_are_refused_by_name(key, value, golden):
    folder = golden("crammedbert-1x5-cls")
    edit(folder, lambda c: c["arch"]["classification_head"].update({key: value}))
    with pytest.raises(ConfigError, match=rf"{key} '{value}'"):
        fastinfer.load(folder)


@pytest.mark.parametrize("device", backends.ALL)
def test_crammed_in_half_precision(device, golden):
    folder = golden("crammedbert-4x3-mlm")
    _, _, batch = unpadded("crammedbert-4x3-mlm")
    rename(folder, lambda w: {n: t.astype(np.float16) for n, t in w.items()})
    half = fastinfer.load(folder, device=device, dtype="float32")
    assert (half.config.stored.embeddings, half.config.stored.matrices, half.config.stored.trees) == ("float16",) * 3
    rename(folder, lambda w: {n: t.astype(np.float32) for n, t in w.items()})
    rounded = fastinfer.load(folder, device=device, dtype="float32")
    for got, want in zip(half.logits(batch, positions="all"), rounded.logits(batch, positions="all"), strict=True):
        assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# --- the command ------------------------------------------------------------------------------------


def error(capsys, *arguments):
    """The message of the command on standard error. It must exit with code 1 and print nothing else."""
    assert cli.main(["convert", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastinfer: error: ")
    return err


ROUNDING = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["crammedbert-4x3-mlm", "crammedbert-dense-mlm"])
def test_stored_dtypes(name, dtype, tmp_path):
    source = checkpoint.load(GOLDEN / name)[1]
    conversion.convert(GOLDEN / name, tmp_path / "out", dtype=dtype)
    config, made = checkpoint.load(tmp_path / "out")
    expected = dtype or "float32"
    assert (config.stored.embeddings, config.stored.matrices) == (expected, expected)
    assert made.keys() == source.keys()
    for tensor_name, tensor in made.items():
        got, want = tensor.float32(), source[tensor_name].float32()
        if checkpoint.tensors(config)[tensor_name].family == "vector":
            assert tensor.dtype == "float32"
            assert_array_equal(got, want)
            continue
        assert tensor.dtype == expected
        if expected == "int8":
            bound = np.abs(want).max(-1, keepdims=True) / 127 * 0.501
            assert (np.abs(got - want) <= bound).all()
            assert np.abs(tensor.data).max() == 127
        else:
            assert_allclose(got, want, rtol=ROUNDING[expected], atol=2**-25 if expected == "float16" else 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_converting_again_to_float32_keeps_the_values(dtype, tmp_path):
    conversion.convert(GOLDEN / "crammedbert-4x3-mlm", tmp_path / "small", dtype=dtype)
    conversion.convert(tmp_path / "small", tmp_path / "large", dtype="float32")
    small, large = (checkpoint.load(tmp_path / which)[1] for which in ("small", "large"))
    for name, tensor in large.items():
        assert tensor.dtype == "float32"
        assert_array_equal(tensor.data, small[name].float32())


def test_shards(bert, tmp_path):
    rename(bert, lambda w: w | {"embeddings.word_embeddings.weight": np.ones((50_000, 24), np.float32)})
    conversion.convert(bert, tmp_path / "out", max_shard_mb=1)
    files = sorted(f.name for f in (tmp_path / "out").glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert fastinfer.load(tmp_path / "out").config.vocabulary == 50_000


def test_it_prints_what_it_made(tmp_path, capsys):
    assert cli.main(["convert", str(GOLDEN / "crammedbert-4x3-mlm"), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["tasks"] == "fill_mask"
    assert (rows["layers"], rows["hidden"], rows["heads"], rows["feedforward"]) == ("2", "64", "4", "4x3")
    weights = load_file(GOLDEN / "crammedbert-4x3-mlm" / "model.safetensors")
    not_ours = sum(w.size for n, w in weights.items() if n.endswith("norm_factor") or n == "decoder.weight")
    assert int(rows["parameters"].replace(",", "")) == sum(w.size for w in weights.values()) - not_ours
    assert int(rows["bytes"].replace(",", "")) == fastinfer.load(tmp_path / "out").nbytes
    assert rows["stored"] == "bfloat16"
    assert rows["tokenizer"].startswith("none: ")


def test_where_it_may_write(bert, tmp_path, capsys):
    out = tmp_path / "out"
    assert "is the source itself" in error(capsys, bert, tmp_path / "." / "bert")
    out.write_text("")
    assert "is a file" in error(capsys, bert, out)
    out.unlink()
    out.mkdir()
    conversion.convert(bert, out)
    (out / "tokenizer.json").write_text("that of another model")
    conversion.convert(GOLDEN / "crammedbert-4x3-mlm", out)
    assert fastinfer.load(out).tasks == ("fill_mask",)
    assert not (out / "tokenizer.json").exists()
    before = {f.name: f.read_bytes() for f in bert.iterdir()}
    assert "no fastinfer checkpoint" in error(capsys, out, bert)
    assert {f.name: f.read_bytes() for f in bert.iterdir()} == before


def test_weights_that_are_nan_are_refused(bert, tmp_path, capsys):
    def spoil(weights):
        weights["encoder.layer.1.intermediate.dense.weight"][3, 4] = np.nan
        return weights

    rename(bert, spoil)
    assert "layers.1.ffn.dense_in.weight: 1 of 960" in error(capsys, bert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_float16_are_named(bert, tmp_path, capsys):
    rename(bert, lambda w: w | {"encoder.layer.1.output.dense.weight": np.full((24, 40), 1e5, np.float32)})
    message = error(capsys, bert, tmp_path / "out", "--dtype", "float16")
    assert "layers.1.ffn.dense_out.weight" in message
    assert "100000" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gpt2", None, ["bert"]])
def test_what_is_not_recognised_gets_a_list_of_what_is(kind, bert, tmp_path, capsys):
    edit(bert, lambda c: (c.clear(), c.update(model_type=kind)))
    message = error(capsys, bert, tmp_path / "out")
    for known in ("crammedBERT", "BertForMaskedLM", "roberta", "distilbert"):
        assert known in message


def test_folders_that_lack_something(bert, tmp_path, capsys):
    (bert / "model.safetensors").unlink()
    assert "no weights, expected model.safetensors or pytorch_model.bin" in error(capsys, bert, tmp_path / "out")
    (bert / "config.json").unlink()
    assert "config.json does not exist" in error(capsys, bert, tmp_path / "out")
    assert "nowhere" in error(capsys, tmp_path / "nowhere", tmp_path / "out")


def test_as_a_command(tmp_path):
    run = [sys.executable, "-m", "fastinfer", "convert"]
    good = subprocess.run([*run, GOLDEN / "crammedbert-1x5-cls", tmp_path / "out"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert "classify (3 labels, softmax)" in good.stdout
    bad = subprocess.run([*run, tmp_path, tmp_path / "new"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("fastinfer: error: ")
    assert "Traceback" not in bad.stderr


class Harmful:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_bin_that_would_run_code_is_refused(bert, tmp_path, capsys):
    (bert / "model.safetensors").unlink()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (bert / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful(tmp_path / "harm")}, protocol))
        assert "no file of plain tensors" in error(capsys, bert, tmp_path / "out")
        (bert / "pytorch_model.bin").write_bytes(archive(pickle.dumps({"weight": Harmful(tmp_path / "harm")}, protocol)))
        assert "no file of plain tensors" in error(capsys, bert, tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_a_bin_needs_no_torch(bert, tmp_path):
    """A .bin that torch wrote gives the same checkpoint as a safetensors file, in a process that cannot import torch."""
    torch = pytest.importorskip("torch")
    weights = load_file(bert / "model.safetensors")
    conversion.convert(bert, tmp_path / "first")
    (bert / "model.safetensors").unlink()
    for zipped in (True, False):
        path = bert / "pytorch_model.bin"
        torch.save({name: torch.from_numpy(w) for name, w in weights.items()}, path, _use_new_zipfile_serialization=zipped)
        code = "import sys; sys.modules['torch'] = None; from fastinfer import cli; sys.exit(cli.main(['convert', *sys.argv[1:]]))"
        out = tmp_path / f"second{zipped}"
        subprocess.run([sys.executable, "-c", code, bert, out], check=True)
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "first" / "model.safetensors").read_bytes()


def archive(data, records=(), compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """The bytes of a zip file as torch.save lays it out."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        file.writestr("model/data.pkl", data)
        file.writestr("model/byteorder", byteorder)
        for key, value in dict(records).items():
            file.writestr(f"model/data/{key}", value)
    return made.getvalue()


def saved(value, **options):
    torch = pytest.importorskip("torch")
    made = io.BytesIO()
    torch.save(value, made, **options)
    return made.getvalue()


def test_every_form_of_a_tensor_is_read_as_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.randn(5, 6)
    values = {
        "transposed": whole.T,
        "part": whole[1:3, 2:],
        "steps": whole[::2, ::3],
        "again": whole,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "expanded by one": torch.arange(4).expand(1, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        **{str(dtype): torch.randn(7).mul(50).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8)},
        **{
            str(dtype): torch.randint(0, 99, (3, 2)).to(dtype) for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
        },
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        (tmp_path / "x.bin").write_bytes(saved(torch.nn.Module().state_dict() | values, **options))
        found = torch_file.read(tmp_path / "x.bin")
        assert list(found) == list(values)
        for name, tensor in values.items():
            assert found[name].dtype == str(tensor.dtype).removeprefix("torch.")
            bits = tensor.detach().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.detach()
            assert_array_equal(found[name].data, bits.numpy(), strict=True)


@pytest.mark.parametrize(
    ("value", "message"), [({"state_dict": {}}, "'state_dict', a dict"), ([1], "holds a list"), ({"a": 3}, "'a', a int")]
)
def test_a_bin_of_something_else_is_refused(value, message, bert, tmp_path, capsys):
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(saved(value))
    assert message in error(capsys, bert, tmp_path / "out")


def without(record, raw, content=None):
    """The bytes of a zip file with one record replaced, or left out for None."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            value = content if info.filename.endswith(record) else old.read(info)
            if value is not None:
                new.writestr(info.filename, value)
    return made.getvalue()


def test_sizes_in_a_bin_that_are_not_those_of_its_records(tmp_path):
    """Each would do harm: an empty record reads bytes after it, an expanded tensor takes terabytes, an outside part crashes."""
    torch = pytest.importorskip("torch")
    raw = saved({"a": torch.ones(1000), "b": torch.ones(10)})
    expanded = saved({"a": torch.ones(1).expand(1 << 20, 1 << 20)})
    outside = raw.replace(b"M\xe8\x03\x85", b"M\xe9\x03\x85")  # the size (1000,) becomes 1001, but the storage keeps its count
    assert outside != raw
    old = saved({"a": torch.ones(1000)}, _use_new_zipfile_serialization=False)
    place = old.index((1000).to_bytes(8, "little"))
    for broken, said in (
        (without("data/0", raw, b""), "the record of storage '0' has 0 bytes, expected 4000"),
        (without("data/0", raw, bytes(4004)), "the record of storage '0' has 4004 bytes, expected 4000"),
        (without("data/0", raw), "the record of storage '0' does not exist, expected 4000"),
        (without("data.pkl", raw), "it has 0 records data.pkl, expected one"),
        (without("byteorder", raw, b"big"), "its byte order is not little"),
        (expanded, f"'a' has {1 << 40} values up to place 0 of a storage of 1"),
        (outside, "Bad CRC-32"),
        (
            without("data.pkl", raw, zipfile.ZipFile(io.BytesIO(raw)).read("archive/data.pkl").replace(b"M\xe8\x03\x85", b"M\xe9\x03\x85")),
            "'a' has 1001 values",
        ),
        (raw[:-300], "begins with neither"),
        (old[:place] + (1001).to_bytes(8, "little") + old[place + 8 :], "has 1001 values, expected 1000"),
        (old[:-1], "and 3999 bytes are left"),
        (b"", "no file of plain tensors"),
        (b"\x80\x02", "no file of plain tensors"),
        (archive(pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (archive(b"\x80\x02" + b"]" * (5 << 20) + b"."), "has more than"),
        (archive(b"\x80\x02}()" + b"\x85" * 40 + b"K\x01u."), "a dict whose key is a tuple"),
        (archive(b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R."), "names '__builtin__.eval', which is not run"),
        (archive(b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R."), "with 1 arguments, some of them wrong"),
        (archive(b"\x80\x02h\x05."), "uses a value that it does not have"),
        (archive(b"\x80\x02t."), "lacks a mark"),
        (archive(b"\x80\x02)R."), "uses a value that it does not have"),
        (archive(b"\x80\x02N"), "no file of plain tensors"),
    ):
        (tmp_path / "x.bin").write_bytes(broken)
        with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
            torch_file.read(tmp_path / "x.bin")
        assert str(tmp_path / "x.bin") in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="is no regular file"):
            torch_file.read(path)


# --- tokenizers ------------------------------------------------------------------------------------

BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]"]
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "##do", "cafe", "Café", "!", "中", "-", "x"]


def wordpiece(folder, tokens=WORDPIECE, **settings):
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "text", "tokens"),
    [
        ({}, "UNDOABLE Café!", "un ##do ##able cafe !"),
        ({"tokenizer_class": "BertTokenizer"}, "中x中", "中 x 中"),
        ({"tokenize_chinese_chars": False}, "中x中", "[UNK]"),
        ({"do_lower_case": False}, "Café undo-x UNDO", "Café un ##do - x [UNK]"),
        ({"strip_accents": False}, "café cafe", "[UNK] cafe"),
        ({}, "x [MASK] x", "x [MASK] x"),
    ],
)
def test_a_wordpiece_vocabulary_becomes_a_tokenizer(settings, text, tokens, bert, tmp_path):
    wordpiece(bert, **settings)
    assert "tokenizer    WordPiece, built from vocab.txt" in conversion.convert(bert, tmp_path / "out")
    model = fastinfer.load(tmp_path / "out")
    assert model.config.ids == Ids(pad=0, mask=4, cls=2, sep=3)
    (encoding,) = model.tokenizer.encode([text])
    assert encoding.tokens == ["[CLS]", *tokens.split(), "[SEP]"]
    assert encoding.ids == [WORDPIECE.index(t) for t in encoding.tokens]
    (pair,) = model.tokenizer.encode([("x", "x !")])
    assert pair.tokens == ["[CLS]", "x", "[SEP]", "x", "!", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 1, 1, 1]


def test_special_tokens_by_other_names(bert, tmp_path):
    tokens = ["<s>" if t == "[CLS]" else t for t in WORDPIECE]
    wordpiece(bert, tokens)
    (bert / "special_tokens_map.json").write_text(json.dumps({"cls_token": {"content": "<s>"}}))
    conversion.convert(bert, tmp_path / "out")
    assert fastinfer.load(tmp_path / "out").tokenizer.encode(["x"])[0].tokens == ["<s>", "x", "[SEP]"]


@pytest.mark.parametrize(
    ("tokens", "settings", "reason"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c", "C", "(", ")"], {}, "does not look like WordPiece"),
        (WORDPIECE, {"tokenizer_class": "SmilesTokenizer"}, "SmilesTokenizer"),
        ([*WORDPIECE[4:], *BERT_NAMES, *(f"##{i}" for i in range(VOCABULARY))][:VOCABULARY], {}, "no sep token"),
    ],
)
def test_other_vocabularies_give_no_tokenizer(tokens, settings, reason, bert, tmp_path):
    wordpiece(bert, tokens, **settings)
    about = conversion.convert(bert, tmp_path / "out")
    assert "tokenizer    none: " in about
    assert reason in about
    model = fastinfer.load(tmp_path / "out")
    assert model.tokenizer is None
    assert model.config.ids.mask == tokens.index("[MASK]")


def test_tokenizers_that_cannot_be(bert, tmp_path, capsys):
    wordpiece(bert, do_lower_case="yes")
    assert "do_lower_case is 'yes'" in error(capsys, bert, tmp_path / "out")
    wordpiece(bert, WORDPIECE + [f"x{i}" for i in range(VOCABULARY)])
    assert "belongs to another model" in error(capsys, bert, tmp_path / "out")
    (bert / "vocab.txt").write_bytes(b"\xff\n")
    assert "vocab.txt cannot be read" in error(capsys, bert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_the_source_is_kept(bert, tmp_path):
    wordpiece(bert)
    conversion.convert(bert, tmp_path / "first")
    shutil.copy(tmp_path / "first" / "tokenizer.json", bert)
    (bert / "vocab.txt").unlink()
    assert "tokenizer.json of the source" in conversion.convert(bert, tmp_path / "second")
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (tmp_path / "first" / "tokenizer.json").read_bytes()
    assert fastinfer.load(tmp_path / "second").config.ids == Ids(pad=0, mask=4, cls=2, sep=3)


def test_get_model_makes_the_folders_above(tmp_path, monkeypatch, capsys):
    tool = load_tool("get_model")
    out = tmp_path / "new" / "models" / "one"
    written = []
    monkeypatch.setattr(tool, "download", lambda name, cache: cache / name)
    monkeypatch.setattr(tool, "convert", lambda source, to: written.append((source.parent, to, to.parent.is_dir())))
    monkeypatch.setattr(sys, "argv", ["get_model.py", str(out)])
    assert tool.main() == 0, capsys.readouterr().err
    assert written == [(out.parent / "downloads", out, True)]
