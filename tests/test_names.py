"""Tensors by other names: prefixes of wrappers, surplus tensors, heads that are left out. What is left out is said once."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

import fastinfer
from fastinfer import checkpoint, cli
from fastinfer.checkpoint.layouts import names
from fastinfer.errors import CheckpointError, CheckpointWarning

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import seeds

GOLDEN = Path(__file__).parent / "data" / "golden"


def save(folder, arrays, config=seeds.BERT, **files):
    """A folder with these tensors; files: {name of a JSON file: its value}."""
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    for name, value in ({"config": config} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def body_and_head(arrays, body, head):
    """The tensors of a BERT with a classifier, with a prefix for the body's names and one for the head's."""
    return {(head if name.startswith("classifier") else body) + name: array for name, array in arrays.items()}


def same(found, wanted):
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    for name, tensor in wanted[1].items():
        assert_array_equal(found[1][name].data, tensor.data)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("bert.", ""),
        ("module.bert.", "module."),
        ("module.", "module."),
        ("module.", ""),
        ("auto_model.", ""),
        ("0.auto_model.", None),
        ("model.", ""),
        ("model.bert.", "model."),
        ("_orig_mod.model.bert.", "_orig_mod."),
        ("_orig_mod.module.bert.", "_orig_mod.module."),
        ("base_model.model.bert.", "base_model.model."),
        ("base_model.model.", "base_model.model."),
        ("encoder.", ""),
        ("encoder.bert.", ""),
        ("roberta.", ""),
    ],
)
def test_prefixes(body, head, tmp_path):
    plain = checkpoint.load(save(tmp_path / "plain", seeds.bert()))
    assert plain[0].tasks.names == ("classify",)
    other = save(tmp_path / "other", body_and_head(seeds.bert(), body, head or ""))
    if head is None:
        with pytest.raises(CheckpointError, match=r"missing  embeddings\.word_embeddings\.weight"):
            checkpoint.load(other)
    else:
        same(checkpoint.load(other), plain)


def test_prefixes_of_a_layout_whose_own_names_begin_with_one(tmp_path):
    """crammedBERT's names begin with "encoder." themselves."""
    source = GOLDEN / "crammedbert-1x5-cls"
    shutil.copytree(source, tmp_path / "other")
    save_file({f"module.{n}": w for n, w in load_file(source / "model.safetensors").items()}, tmp_path / "other" / "model.safetensors")
    same(checkpoint.load(tmp_path / "other"), checkpoint.load(source))


def test_two_tensors_of_one_name(tmp_path):
    arrays = body_and_head(seeds.bert(), "bert.", "")
    folder = save(tmp_path / "x", arrays | {"bert.classifier.bias": arrays["classifier.bias"].copy()})
    with pytest.raises(CheckpointError, match=r"x: two tensors are called 'classifier\.bias', one of them with a prefix of 'bert\.'"):
        checkpoint.load(folder)


def test_two_bodies_keep_their_names(tmp_path):
    arrays = {f"{side}.{name}": array.copy() for name, array in seeds.bert().items() for side in ("query_model", "document_model")}
    with pytest.raises(CheckpointError, match=r"missing  embeddings\.word_embeddings\.weight"):
        checkpoint.load(save(tmp_path, arrays))


def test_bare_names():
    assert list(names.candidates("module.bert.encoder.layer.0.x")) == [
        "module.bert.encoder.layer.0.x",
        "bert.encoder.layer.0.x",
        "encoder.layer.0.x",
        "layer.0.x",
    ]
    assert names.bare_name("base_model.model.bert.encoder.layer.0.x", {"encoder.layer.0.x": 0}) == "encoder.layer.0.x"
    assert names.bare_name("base_model.model.score.weight", {}) == "score.weight"
    assert [names.in_body(f"encoder.layer.{n}.x", 2) for n in ("0", "1", "2", "10", "9" * 500, "²")] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert not names.in_body("classifier.weight", 2)


# --- what is left out ------------------------------------------------------------------------------

NSP = {"cls.seq_relationship.weight": (2, 16), "cls.seq_relationship.bias": (2,)}
SURPLUS = {"scorer.weight": (3, 16), "encoder.layer.1.output.dense.bias": (16,), "adapter.scale": ()}


def zeros(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def told(folder):
    """The messages of the warnings of one load; each names the line of the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastinfer.load(folder, device="numpy")
    assert all(isinstance(w.message, CheckpointWarning) and w.filename == __file__ for w in caught)
    return [str(w.message).removeprefix(f"{folder}: ") for w in caught]


def without(arrays, *parts):
    return {name: array for name, array in arrays.items() if not any(part in name for part in parts)}


def test_heads_that_are_left_out_are_said(tmp_path):
    bert = seeds.bert()
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    assert told(save(tmp_path / "uses the pooler", bert)) == []
    assert told(save(tmp_path / "pooler", without(bert, "classifier"))) == ["the pooler is left out"]
    folder = save(tmp_path / "modules", without(bert, "classifier"), modules=modules)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert told(folder) == []
    assert told(save(tmp_path / "nsp", bert | zeros(NSP))) == ["the head for the next sentence is left out"]
    both = save(tmp_path / "both", without(bert, "classifier") | zeros(NSP))
    assert told(both) == ["the head for the next sentence and the pooler are left out"]
    buffers = {"embeddings.position_ids": np.arange(32)[None], "embeddings.token_type_ids": np.zeros((1, 32), np.int64)}
    assert told(save(tmp_path / "buffers", bert | buffers)) == []


def test_surplus_tensors_are_left_out_and_said(tmp_path):
    plain = checkpoint.load(save(tmp_path / "plain", seeds.bert()))
    folder = save(tmp_path / "surplus", seeds.bert() | zeros(SURPLUS))
    said = "('adapter.scale', 'encoder.layer.1.output.dense.bias', 'scorer.weight') is left out"
    assert told(folder) == [f"3 tensors that its layout does not have {said}"]
    same(checkpoint.load(folder), plain)
    half = save(tmp_path / "two heads", seeds.bert() | zeros({"lm_head.dense.bias": (16,)}))
    assert told(half) == ["1 tensor that its layout does not have ('lm_head.dense.bias') is left out"]


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.0.attention.self.distance_embedding.weight", "embeddings.extra.weight", "encoder.relative_attention_bias.weight"],
)
def test_surplus_tensors_of_the_body_are_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match=rf"1 tensor not as its config.json says:\n  unknown  {name} \(2, 2\)"):
        checkpoint.load(save(tmp_path, seeds.bert() | zeros({name: (2, 2)})))


def test_surplus_tensors_of_a_model_with_its_own_code_are_refused(tmp_path):
    config = seeds.BERT | {"auto_map": {"AutoModel": "modeling.Model"}}
    assert told(save(tmp_path / "plain", seeds.bert(), config)) == []
    with pytest.raises(CheckpointError, match=r"unknown  scorer\.weight"):
        checkpoint.load(save(tmp_path / "surplus", seeds.bert() | zeros({"scorer.weight": (3, 16)}), config))


def test_the_command_line_says_it_too(tmp_path, capsys):
    folder = save(tmp_path, seeds.bert() | zeros({"scorer.weight": (3, 16)}))
    assert cli.main(["info", "-m", str(folder)]) == 0
    assert (
        f"fastinfer: warning: {folder}: 1 tensor that its layout does not have ('scorer.weight') is left out\n" in capsys.readouterr().err
    )
