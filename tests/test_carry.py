"""tools/carry.py: models as small files, without what a known model has, and back."""

import builders
import pytest
from conftest import make_config, make_tokenizer
from models import load_tool

from fastinfer import checkpoint
from fastinfer.config import FFF, Stored

carry = load_tool("carry")


def make(folder, seed, stored="float32", layers=2):
    config = make_config(layers=layers, ffn=(FFF(1, 2, 4, bias_out=True),) * layers, stored=Stored(stored, stored, stored))
    checkpoint.save(folder, config, builders.weights(config, seed))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def run(*arguments):
    return carry.main([str(a) for a in arguments])


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_a_model_is_the_same_again(tmp_path, stored):
    model, file = make(tmp_path / "model", 1, stored), tmp_path / "packed"
    assert run("pack", model, file) == 0
    assert run("unpack", file, tmp_path / "again") == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


def test_what_the_known_model_has_is_left_out(tmp_path, capsys):
    known, model, file = make(tmp_path / "known", 1, "int8", layers=1), make(tmp_path / "model", 2, "int8"), tmp_path / "packed"
    config, weights = checkpoint.load(model, copy=True)
    theirs = checkpoint.load(known, copy=True)[1]
    mine = weights | {name: theirs[name] for name in theirs if name.startswith("embedding.")}
    checkpoint.save(model, config, mine)
    assert run("pack", model, file, "--known", known, "--part-mb", "0.005") == 0
    count = sum(name.startswith("embedding.") for name in theirs)
    assert f"{count} of {len(mine)} tensors left out" in capsys.readouterr().out
    parts = sorted(tmp_path.glob("packed.*"))
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) <= 5_000
    assert run("unpack", file, tmp_path / "again", "--known", known) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()

    assert run("unpack", file, tmp_path / "other") == 1
    assert "packed was packed without its tokenizer: name the model that has it with --known" in capsys.readouterr().err
    assert run("unpack", file, tmp_path / "other", "--known", make(tmp_path / "stranger", 3, "int8")) == 1
    assert "has not the tensor that was left out: pack and unpack with the same known model" in capsys.readouterr().err
    parts[-1].unlink()
    assert run("unpack", file, tmp_path / "other", "--known", known) == 1
    assert "packed is not what carry.py pack writes, or parts of it are missing" in capsys.readouterr().err
    assert run("unpack", tmp_path / "none", tmp_path / "other") == 1
    assert "none.0 exists: name what carry.py pack wrote" in capsys.readouterr().err


def test_near_tensors_are_taken_from_the_known_model(tmp_path, capsys):
    known, file = make(tmp_path / "known", 1, "int8"), tmp_path / "packed"
    model = make(tmp_path / "model", 1)  # the same before it was rounded
    assert run("pack", model, file, "--known", known, "--stored", "bfloat16", "--near", "0.02") == 0
    assert run("unpack", file, tmp_path / "again", "--known", known) == 0
    config, weights = checkpoint.load(tmp_path / "again")
    assert config.stored == Stored("int8", "bfloat16", "bfloat16")
    theirs = checkpoint.load(known)[1]
    assert (weights["embedding.word"].data == theirs["embedding.word"].data).all()
    exact = checkpoint.load(model)[1]["layers.1.attention.qkv.weight"]
    assert (weights["layers.1.attention.qkv.weight"].data == exact.to("bfloat16").data).all()
