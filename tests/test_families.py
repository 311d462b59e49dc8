"""Families of encoders in the layout that transformers writes, small and with random weights: every head gives what transformers gives."""

import json

import backends
import numpy as np
import pytest
from models import load_tool
from numpy.testing import assert_allclose

import fastinfer
from fastinfer.batch import PackedBatch

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

SIZES = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 80, "vocab_size": 120}
LENGTHS = (1, 2, 7, 40, 90)

# Prefix of the classes of transformers, settings beyond SIZES, and the heads whose classes it has.
ALL = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
FAMILIES = {
    "mpnet": ("MPNet", {"max_position_embeddings": 130, "relative_attention_num_buckets": 32}, ALL),
    "electra": ("Electra", {"max_position_embeddings": 128, "embedding_size": 24, "type_vocab_size": 2}, ALL),
    "electra as wide as its embeddings": ("Electra", {"max_position_embeddings": 128, "embedding_size": 48}, ALL[:3]),
    "ernie": ("Ernie", {"max_position_embeddings": 128, "use_task_id": True, "task_type_vocab_size": 3}, ALL),
    "data2vec": ("Data2VecText", {"max_position_embeddings": 130}, ALL),
    "pre-norm roberta": ("RobertaPreLayerNorm", {"max_position_embeddings": 130}, ALL),
    "bert with relu": ("Bert", {"max_position_embeddings": 128, "hidden_act": "relu"}, ALL[:2]),
    "bert with gelu_new": ("Bert", {"max_position_embeddings": 128, "hidden_act": "gelu_new"}, ALL[:2]),
    "nomic": ("NomicBert", {"max_position_embeddings": 128}, ALL[:4]),
    "gte": ("Gte", {"max_position_embeddings": 128, "type_vocab_size": 2}, ALL[:4]),
    "jina-v3": ("JinaEmbeddingsV3", {"max_position_embeddings": 128}, ALL[:4]),
    "qwen3": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 24}, ALL[:1]),
    "qwen2": ("Qwen2", {"num_key_value_heads": 3}, ALL[:1]),
    "mistral with a window": ("Mistral", {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 9}, ALL[:1]),
    "t5": ("T5", {"d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 3, "num_heads": 4}, ("EncoderModel",)),
    "t5 v1.1": (
        "T5",
        {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 3, "feed_forward_proj": "gated-gelu"},
        ("EncoderModel",),
    ),
    "modernbert": ("ModernBert", {"max_position_embeddings": 128, "local_attention": 16, "pad_token_id": 0}, ALL),
    "modernbert with biases": (
        "ModernBert",
        {"max_position_embeddings": 128, "local_attention": 16, "pad_token_id": 0, "norm_bias": True, "attention_bias": True}
        | {"mlp_bias": True, "classifier_bias": True, "classifier_pooling": "mean"},
        ALL[:3],
    ),
    "deberta-v3": (
        "DebertaV2",
        {"max_position_embeddings": 128, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
        ALL,
    ),
    "deberta-v2 with maps of its own": (
        "DebertaV2",
        {"max_position_embeddings": 128, "relative_attention": True, "position_buckets": 32, "pos_att_type": ["c2p"]}
        | {"share_att_key": False, "position_biased_input": True, "type_vocab_size": 2, "max_relative_positions": 100},
        ALL[:2],
    ),
}
CASES = [(family, head) for family, (_, _, heads) in FAMILIES.items() for head in heads]
DECODERS = ("Qwen3", "Qwen2", "Mistral")  # they load as parts of sentence-transformers folders alone
SPECIAL = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}


def made(family, head, folder, seed=0):
    """A random model of transformers, saved in `folder`. No weight is a default: norms and biases are random, too."""
    prefix, settings, _ = FAMILIES[family]
    if not hasattr(transformers, f"{prefix}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {prefix}")
    settings = {**SIZES, "pad_token_id": 1, "num_labels": 2 if "Question" in head else 5, **SPECIAL, **settings}
    config = getattr(transformers, f"{prefix}Config")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, prefix + head)(config).eval()
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0))
    model.save_pretrained(folder)
    if prefix in DECODERS:
        types = ("Transformer", "Pooling")
        modules = [
            {"idx": i, "name": str(i), "path": ["", "1_Pooling"][i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(types)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": SIZES["hidden_size"], "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return model


def theirs(model, ids):
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]))
    if hasattr(out, "start_logits"):
        return np.stack([out.start_logits[0].numpy(), out.end_logits[0].numpy()], -1)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0].numpy()


def ours(model, batch, head):
    """A list of results, one per text, as theirs() gives them."""
    if head.endswith("Model"):
        return model.hidden_states(batch)
    task = {"ForMaskedLM": "fill_mask", "ForSequenceClassification": "classify", "ForTokenClassification": "tag"}.get(head, "answer")
    return model.logits(batch, task=task, positions="all")


@pytest.mark.parametrize(("family", "head"), CASES)
def test_a_family_gives_what_transformers_gives(family, head, tmp_path):
    model = made(family, head, tmp_path)
    loaded = fastinfer.load(tmp_path, device="numpy")
    rng = np.random.default_rng(7)
    texts = [rng.integers(2, SIZES["vocab_size"], n).tolist() for n in LENGTHS]
    got = ours(loaded, PackedBatch.from_ids(texts), head)
    for ids, result in zip(texts, got, strict=True):
        want = theirs(model, ids)
        assert_allclose(result, want, rtol=0, atol=1e-4 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("device", backends.COMPILED)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_give_what_transformers_gives(family, device, tmp_path):
    """In float32; and a text alone, in a batch, with one thread and with three has the same bits in every dtype."""
    model = made(family, FAMILIES[family][2][0], tmp_path, seed=1)
    rng = np.random.default_rng(8)
    texts = [rng.integers(2, SIZES["vocab_size"], n).tolist() for n in LENGTHS]
    for dtype in ("float32", "bfloat16", "int8"):
        loaded = fastinfer.load(tmp_path, device=device, dtype=dtype)
        together = loaded.hidden_states(PackedBatch.from_ids(texts), threads=3)
        for ids, result in zip(texts, together, strict=True):
            if dtype == "float32":  # lower precisions are far from these answers, since random weights amplify each rounding
                want = theirs(model, ids)
                assert_allclose(result, want, rtol=0, atol=1e-4 * max(1, np.abs(want).max()))
            assert np.isfinite(result).all()
            np.testing.assert_array_equal(loaded.hidden_states(PackedBatch.from_ids([ids]), threads=1)[0], result)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_training_form_gives_what_transformers_gives(family, tmp_path):
    model = made(family, FAMILIES[family][2][0], tmp_path, seed=3)
    encoder = load_tool("training.encoder").load(tmp_path).eval()
    rng = np.random.default_rng(9)
    texts = [rng.integers(2, SIZES["vocab_size"], n).tolist() for n in LENGTHS]
    ids = torch.tensor([text + [0] * (max(LENGTHS) - len(text)) for text in texts])
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        states = encoder(ids, mask)[-1]
    for text, found, there in zip(texts, states, mask, strict=True):
        want = theirs(model, text)
        assert_allclose(found[there], want, rtol=0, atol=1e-4 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_saved_and_loaded_in_the_own_format(family, tmp_path):
    head = FAMILIES[family][2][:2][-1]
    made(family, head, tmp_path / "theirs", seed=2)
    loaded = fastinfer.load(tmp_path / "theirs", device="numpy")
    fastinfer.checkpoint.save(tmp_path / "ours", *fastinfer.checkpoint.load(tmp_path / "theirs"))
    again = fastinfer.load(tmp_path / "ours", device="numpy")
    batch = PackedBatch.from_ids([[5, 9, 3], [7] * 30])
    for first, second in zip(ours(loaded, batch, head), ours(again, batch, head), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("modernbert", "sliding_window", 5),
        ("nomic", "n_embd", 64),
        ("mpnet", "is_causal", True),
        ("pre-norm roberta", "is_decoder", True),
        ("t5", "dense_act_fn", "gelu_new"),
        ("t5 v1.1", "is_gated_act", False),
        ("qwen3", "use_sliding_window", True),
        ("gte", "logn_attention_scale", True),
        ("deberta-v3", "conv_kernel_size", 3),
    ],
)
def test_settings_that_contradict_or_need_more_are_refused_by_name(family, key, value, tmp_path):
    made(family, FAMILIES[family][2][0], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(fastinfer.ConfigError, match=f"{key}|{'hidden_size' if key == 'n_embd' else key}"):
        fastinfer.load(tmp_path, device="numpy")
