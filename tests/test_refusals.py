"""Folders that fastinfer does not run say what they hold and what to do. What the config.json says is looked at before any weights."""

import json
import re
import sys
from pathlib import Path

import pytest

import fastinfer
from fastinfer import conversion
from fastinfer.errors import CheckpointError, ConfigError, FastinferError

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import seeds

ORIGINAL = "expected model.safetensors or pytorch_model.bin: take it from the repository of the original model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def bert():
    return seeds.make()["bert"]


@pytest.fixture
def folder(tmp_path, bert):
    """A function from changes {file: its content as bytes or as a JSON value, or None for none} to a folder of a BERT with them."""

    def make(changes=(), name="model"):
        for file, content in (bert | dict(changes)).items():
            if content is not None:
                path = tmp_path / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return tmp_path / name

    return make


def refused(path, kind=CheckpointError):
    """The message with which load() and convert refuse a folder, the same for both."""
    with pytest.raises(kind) as error:
        fastinfer.load(path, device="numpy")
    with pytest.raises(kind) as again:
        conversion.convert(path, path.parent / "out")
    assert str(again.value) == str(error.value)
    assert str(path) in str(error.value)
    assert "fastinfer convert" not in str(error.value)
    return str(error.value)


def only(files):
    """The changes that leave a folder with these files alone."""
    return dict.fromkeys(seeds.make()["bert"]) | files


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model-q4_0.gguf", "GGUF weights ('model-q4_0.gguf')"),
        ("model.onnx", "an ONNX model ('model.onnx')"),
        ("onnx/model.onnx", "an ONNX model ('onnx/model.onnx')"),
        ("openvino_model.xml", "an OpenVINO model ('openvino_model.xml')"),
        ("openvino/openvino_model_int8.xml", "an OpenVINO model ('openvino/openvino_model_int8.xml')"),
        ("tf_model.h5", "TensorFlow weights ('tf_model.h5')"),
        ("saved_model.pb", "TensorFlow weights ('saved_model.pb')"),
        ("saved_model/saved_model.pb", "TensorFlow weights ('saved_model/saved_model.pb')"),
        ("bert_model.ckpt.index", "TensorFlow weights ('bert_model.ckpt.index')"),
        ("flax_model.msgpack", "Flax weights ('flax_model.msgpack')"),
        ("rust_model.ot", "weights of rust-bert ('rust_model.ot')"),
    ],
)
def test_other_formats_are_named(file, said, folder):
    assert f"has no weights but {said}, {ORIGINAL}" in refused(folder({"model.safetensors": None, file: b"x"}))
    assert f"has no config.json but {said}; expected config.json" in refused(folder(only({file: b"x"}), "alone"))


def test_a_file_of_another_format(folder):
    path = folder({"model-q4_0.gguf": b"x"}) / "model-q4_0.gguf"
    with pytest.raises(CheckpointError, match=r"is no checkpoint folder \(GGUF weights \('model-q4_0\.gguf'\)\); expected one with"):
        fastinfer.load(path)


def test_several_formats_are_named_together(folder):
    message = refused(folder({"model.safetensors": None, "onnx/model.onnx": b"x", "tf_model.h5": b"x", "flax_model.msgpack": b"x"}))
    assert "an ONNX model ('onnx/model.onnx') and TensorFlow weights ('tf_model.h5') and Flax weights ('flax_model.msgpack')" in message


def test_other_formats_beside_the_weights_do_not_matter(folder):
    assert fastinfer.load(folder({"onnx/model.onnx": b"x", "tf_model.h5": b"x", "model_quantized.gguf": b"x"})).tasks


def test_no_weights_at_all(folder):
    assert f"has no weights, {ORIGINAL}" in refused(folder({"model.safetensors": None}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "falcon", "architectures": ["FalconForCausalLM"]}, "model_type 'falcon', a decoder-only language model"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "model_type 'gpt2', a decoder-only language model"),
        ({"model_type": "gpt_neox"}, "model_type 'gpt_neox', a decoder-only language model"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "model_type 'bart', a model of an encoder and a decoder"),
        (
            {"model_type": "pegasus", "architectures": ["PegasusForConditionalGeneration"]},
            "model_type 'pegasus', a model of an encoder and a decoder",
        ),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "model_type 'vit', a model of images"),
        ({"model_type": "clip", "vision_config": {"hidden_size": 8}}, "model_type 'clip', a model of images"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, "model_type 'wav2vec2', a model of audio"),
        ({"model_type": "whisper", "num_mel_bins": 80}, "model_type 'whisper', a model of audio"),
        ({"model_type": "model2vec", "architectures": ["StaticModel"]}, "model_type 'model2vec', a table of static embeddings"),
        ({"model_type": "something"}, "model_type 'something' is not recognised"),
        ({"model_type": 5, "architectures": 7}, "model_type 5 is not recognised"),
    ],
)
def test_the_architecture_is_looked_at_before_the_weights(config, said, folder):
    """The weights are broken, and what is said is the architecture all the same."""
    for weights in (b"broken", None):
        message = refused(folder({"config.json": config, "model.safetensors": weights}))
        assert f"a checkpoint with {said}" in message
        assert "is not recognised. Recognised are:\n  fastinfer: config.json with format_version" in message


def test_a_decoder_that_does_not_embed(folder):
    message = refused(folder({"config.json": {"model_type": "llama"}, "model.safetensors": b"broken", "modules.json": None}), ConfigError)
    assert "llama is a decoder, and without modules.json its folder does not say how it embeds" in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantised by 'gptq'"),
        ("quantization_config", {"quant_method": "awq"}, "quantised by 'awq'"),
        ("quantization_config", {"load_in_8bit": True}, "quantised by 'bitsandbytes'"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "quantised by 'compressed-tensors'"),
        ("quantization_config", "odd", "quantised by 'odd'"),
    ],
)
def test_quantised_weights_are_refused_by_name(key, value, said, folder):
    message = refused(folder({"config.json": seeds.BERT | {key: value}, "model.safetensors": b"broken"}), ConfigError)
    assert f"{key} says that the weights are {said}" in message
    assert 'load them with dtype="int8"' in message
    assert fastinfer.load(folder({"config.json": seeds.BERT | {key: None}}, "plain")).tasks


def test_diffusers(folder):
    said = "holds a diffusers pipeline (model_index.json), expected a text encoder"
    assert said in refused(folder(only({"model_index.json": {"_class_name": "StableDiffusionPipeline"}})))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_model_name_or_path": "org/base"}, "of its base model, 'org/base': add that model's config.json, model.safetensors"),
        (
            {"base_model_name_or_path": "org/llm", "task_type": "CAUSAL_LM"},
            "of its base model, 'org/llm'; its task_type is CAUSAL_LM, and fastinfer runs encoders",
        ),
        ({}, "of its base model, None"),
        (b"{", "of its base model, None"),
    ],
)
@pytest.mark.parametrize("config", [None, seeds.BERT])
def test_an_adapter_without_its_base(settings, said, config, folder):
    files = {"adapter_config.json": settings, "adapter_model.safetensors": b"x", "config.json": config}
    assert f"holds an adapter (adapter_config.json) without the weights {said}" in refused(folder(only(files)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sentence_transformers.models.StaticEmbedding", "a module StaticEmbedding (modules.json), a table of static embeddings"),
        ("sentence_transformers.sentence_transformer.modules.StaticEmbedding", "a module StaticEmbedding (modules.json)"),
        ("sentence_transformers.models.WordEmbeddings", "a module WordEmbeddings (modules.json), a table of static embeddings"),
        ("sentence_transformers.models.CLIPModel", "a module CLIPModel (modules.json), a model of images"),
    ],
)
def test_modules_without_a_transformer(kind, said, folder):
    modules = [{"idx": 0, "name": "0", "path": "0_First", "type": kind}]
    assert f"begins with {said}" in refused(folder(only({"modules.json": modules, "0_First/model.safetensors": b"x"})))


def test_a_shard_that_is_missing(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {"model.safetensors": None, "model.safetensors.index.json": index, "model-00001-of-00002.safetensors": b"x"}
    said = "model.safetensors.index.json names shards that are missing: 'model-00002-of-00002.safetensors': download them into the folder"
    assert said in refused(folder(files))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 133466304\n"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(file, folder):
    files = {file: POINTER} | ({"model.safetensors": None} if file == "pytorch_model.bin" else {})
    message = refused(folder(files), FastinferError)
    assert re.search(rf"{re.escape(file)} is a git-lfs pointer, not the file itself: run `git lfs pull` in its clone, or download", message)


def test_the_root_of_a_hub_cache_is_opened_by_its_refs(folder, tmp_path, bert):
    root = tmp_path / "models--org--name"
    folder(name=f"models--org--name/snapshots/{COMMIT}")
    other = folder(name="models--org--name/snapshots/" + "f" * 40)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    expected = fastinfer.load(root / "snapshots" / COMMIT, device="numpy").embed("ada")
    (other / "config.json").write_text("{}")
    for path in (root, str(root)):
        assert (fastinfer.load(path, device="numpy").embed("ada") == expected).all()
    assert "made" in conversion.convert(root, tmp_path / "out")
    with pytest.raises(CheckpointError, match=rf"is a repository in a hub cache: open one of its snapshots \(snapshots/{COMMIT}, "):
        fastinfer.checkpoint.load(root)
    for text in ("", "../" + COMMIT, "a" * 40):
        (root / "refs" / "main").write_text(text)
        with pytest.raises(CheckpointError, match=rf"is a repository in a hub cache: open one of its snapshots \(snapshots/{COMMIT}, "):
            fastinfer.load(root)
    (root / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match="open one of its snapshots"):
        fastinfer.load(root)
    with pytest.raises(CheckpointError, match="is a hub cache: open one of its repositories by its name, such as org/name"):
        fastinfer.load(tmp_path)


def test_no_command_for_what_a_command_cannot_mend(folder):
    """A layout whose tensors contradict its config.json: converting would fail in the same way."""
    message = refused(folder({"config.json": seeds.BERT | {"intermediate_size": 25}}))
    assert "layers.0.ffn.dense_in.weight is (24, 16), expected (25, 16)" in message
