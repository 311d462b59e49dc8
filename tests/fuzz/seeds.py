"""Small valid checkpoints, as {file name: bytes}, from which the fuzzer of the loaders starts. Needs neither torch nor transformers."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import io
import json
import math
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import builders  # noqa: E402
from conftest import WORDS, make_config, make_tokenizer  # noqa: E402

import fastinfer  # noqa: E402
from fastinfer import checkpoint, keeping  # noqa: E402
from fastinfer.config import (  # noqa: E402
    FFF,
    Alibi,
    Answer,
    Attention,
    Buckets,
    Dense,
    Disentangled,
    Embed,
    FillMask,
    Gated,
    HeadLayer,
    Norm,
    Positions,
    Project,
    Prompt,
    Stored,
    Tag,
    Tasks,
    Unit,
)
from fastinfer.rows import PRECISIONS  # noqa: E402

HIDDEN = 16
BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "vocab_size": len(WORDS),
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "id2label": {"0": "no", "1": "yes"},
    "problem_type": "single_label_classification",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a safetensors file of float32 arrays."""
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def pickled(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a .bin file, as torch.save writes it, of float32 arrays."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    made, body = io.BytesIO(), b"\x80\x02ccollections\nOrderedDict\n)R("
    with zipfile.ZipFile(made, "w") as file:
        for key, (name, array) in enumerate(arrays.items()):
            strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
            storage = (
                b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + numbers((array.size,))[1:-1] + b"tQ"
            )
            hooks = b"ccollections\nOrderedDict\n)R"
            body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(array.shape) + numbers(strides)
            body += b"\x89" + hooks + b"tR"
            file.writestr(f"archive/data/{key}", array.tobytes())
        file.writestr("archive/data.pkl", body + b"u.")
        file.writestr("archive/byteorder", "little")
    return made.getvalue()


def saved(config, **options) -> dict[str, bytes]:
    """The files of a checkpoint of this format."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, config, builders.weights(config), **options)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def bert() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (32, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    sizes = {f"attention.self.{n}": (HIDDEN, HIDDEN) for n in ("query", "key", "value")}
    sizes |= {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (24, HIDDEN), "output.dense": (HIDDEN, 24)}
    for name, shape in sizes.items():
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
    for name in ("embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"):
        shapes |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    shapes |= {"pooler.dense.weight": (HIDDEN, HIDDEN), "pooler.dense.bias": (HIDDEN,)}
    shapes |= {"classifier.weight": (2, HIDDEN), "classifier.bias": (2,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": len(WORDS), "pad_token_id": 0}
# {model_type: (settings beyond SIZES, {tensor: shape}, {linear map or norm: shape of its weight}, which have biases, too)}
FAMILIES: dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "mpnet": (
        {"num_hidden_layers": 1, "max_position_embeddings": 34, "relative_attention_num_buckets": 8, "hidden_act": "gelu"},
        {
            "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
            "embeddings.position_embeddings.weight": (34, HIDDEN),
            "encoder.relative_attention_bias.weight": (8, 2),
        },
        {f"encoder.layer.0.attention.attn.{part}": (HIDDEN, HIDDEN) for part in "qkvo"}
        | {f"encoder.layer.0.{part}.LayerNorm": (HIDDEN,) for part in ("attention", "output")}
        | {"encoder.layer.0.intermediate.dense": (24, HIDDEN), "encoder.layer.0.output.dense": (HIDDEN, 24)}
        | {"embeddings.LayerNorm": (HIDDEN,)},
    ),
    "modernbert": (
        {"num_hidden_layers": 2, "max_position_embeddings": 32, "local_attention": 4, "hidden_activation": "gelu", "norm_eps": 1e-5}
        | {"layer_types": ["full_attention", "sliding_attention"], "norm_bias": False, "attention_bias": False, "mlp_bias": False}
        | {"rope_parameters": {f"{kind}_attention": {"rope_theta": 1e4, "rope_type": "default"} for kind in ("full", "sliding")}},
        {"embeddings.tok_embeddings.weight": (len(WORDS), HIDDEN), "embeddings.norm.weight": (HIDDEN,), "final_norm.weight": (HIDDEN,)}
        | {f"layers.{i}.attn.Wqkv.weight": (3 * HIDDEN, HIDDEN) for i in range(2)}
        | {f"layers.{i}.attn.Wo.weight": (HIDDEN, HIDDEN) for i in range(2)}
        | {f"layers.{i}.mlp.Wi.weight": (48, HIDDEN) for i in range(2)}
        | {f"layers.{i}.mlp.Wo.weight": (HIDDEN, 24) for i in range(2)}
        | {f"layers.{name}.weight": (HIDDEN,) for name in ("0.mlp_norm", "1.mlp_norm", "1.attn_norm")},
        {},
    ),
    "deberta-v2": (
        {"num_hidden_layers": 1, "max_position_embeddings": 32, "type_vocab_size": 0, "position_biased_input": False}
        | {"relative_attention": True, "position_buckets": 4, "max_relative_positions": -1, "pos_att_type": ["p2c", "c2p"]}
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "layer_norm_eps": 1e-7, "hidden_act": "gelu"},
        {"embeddings.word_embeddings.weight": (len(WORDS), HIDDEN), "encoder.rel_embeddings.weight": (8, HIDDEN)},
        {f"encoder.layer.0.attention.self.{part}_proj": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        | {f"encoder.layer.0.{part}.LayerNorm": (HIDDEN,) for part in ("attention.output", "output")}
        | {"encoder.layer.0.attention.output.dense": (HIDDEN, HIDDEN), "encoder.layer.0.intermediate.dense": (24, HIDDEN)}
        | {"encoder.layer.0.output.dense": (HIDDEN, 24), "embeddings.LayerNorm": (HIDDEN,), "encoder.LayerNorm": (HIDDEN,)},
    ),
    "nomic_bert": (
        {"num_hidden_layers": 1, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "silu"}
        | {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}},
        {"embeddings.word_embeddings.weight": (len(WORDS), HIDDEN), "embeddings.token_type_embeddings.weight": (2, HIDDEN)}
        | {"encoder.layers.0.attn.Wqkv.weight": (3 * HIDDEN, HIDDEN), "encoder.layers.0.attn.out_proj.weight": (HIDDEN, HIDDEN)}
        | {f"encoder.layers.0.mlp.{name}.weight": (24, HIDDEN) for name in ("fc11", "fc12")}
        | {"encoder.layers.0.mlp.fc2.weight": (HIDDEN, 24)},
        dict.fromkeys(("emb_ln", "encoder.layers.0.norm1", "encoder.layers.0.norm2"), (HIDDEN,)),
    ),
}


def of_family(model_type: str) -> dict[str, bytes]:
    """The files of a small model of another family than BERT, with random weights."""
    settings, shapes, maps = FAMILIES[model_type]
    shapes = (
        shapes | {f"{name}.weight": shape for name, shape in maps.items()} | {f"{name}.bias": shape[:1] for name, shape in maps.items()}
    )
    rng = np.random.default_rng(2)
    return {
        "config.json": as_json({"model_type": model_type, **SIZES, **settings}),
        "model.safetensors": pack({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}),
    }


def adapted(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of weights whose names have prefixes, and of an adapter beside them with a head of its own."""
    rng = np.random.default_rng(1)
    at = "base_model.model.bert.encoder.layer.0"
    parts = {f"{at}.attention.self.query.lora_A.weight": (2, HIDDEN), f"{at}.attention.self.query.lora_B.weight": (HIDDEN, 2)}
    parts |= {
        f"{at}.output.dense.base_layer.bias": (HIDDEN,),
        "base_model.model.bert.embeddings.word_embeddings.lora_embedding_A": (2, len(WORDS)),
    }
    parts |= {"base_model.model.bert.embeddings.word_embeddings.lora_embedding_B": (HIDDEN, 2)}
    parts |= {"base_model.model.classifier.weight": (2, HIDDEN), "base_model.model.classifier.bias": (2,)}
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True, "bias": "all", "task_type": "SEQ_CLS"}
    settings |= {"init_lora_weights": True, "rank_pattern": {}, "use_dora": False, "target_modules": ["query", "word_embeddings"]}
    return {
        "model.safetensors": pack({f"module.bert.{name}": array for name, array in arrays.items() if not name.startswith("classifier")}),
        "adapter_model.safetensors": pack({name: rng.normal(size=shape).astype(np.float32) for name, shape in parts.items()}),
        "adapter_config.json": as_json(settings),
    }


def tokenizers() -> dict[str, dict[str, bytes]]:
    """{name: files} of folders whose tokenizers are made of other files than vocab.txt."""
    tokens = {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}, "extra_special_tokens": ["<x>"]}
    pairs = {"a": 4, "b": 5, "ab": 6, "Ġ": 7, "Ġab": 8} | {name: i for i, name in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    entry = {"content": "[MASK]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False, "special": True}

    def field(number: int, value: bytes | int) -> bytes:
        return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value

    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "▁a": 1, "b": 1, "ada": 4, "▁": 1, "[UNK]": 2, "[CLS]": 3, "[SEP]": 3}
    pieces = [
        field(1, text.encode()) + b"\x15" + struct.pack("<f", -i / 7) + field(3, kind) for i, (text, kind) in enumerate(kinds.items())
    ]
    model = b"".join(field(1, piece) for piece in pieces) + field(2, field(3, 1)) + field(3, field(1, b"nfkc"))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids"], "truncation_side": "left"}
    return {
        "merges": {
            "config.json": as_json({"model_type": "roberta"}),
            "vocab.json": as_json(pairs),
            "merges.txt": "#version: 0.2\na b\nĠ ab\n".encode(),
            "tokenizer_config.json": as_json(
                {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, "trim_offsets": True} | tokens
            ),
        },
        "pieces": {
            "config.json": as_json({"model_type": "xlm-roberta", "tokenizer_class": "XLMRobertaTokenizer"}),
            "sentencepiece.bpe.model": model,
            "special_tokens_map.json": as_json({"mask_token": "<mask>", "cls_token": {"content": "<s>", "lstrip": False}}),
            "added_tokens.json": as_json({"<new>": 11, "ada": 5}),
        },
        "spm": {
            "config.json": as_json({"model_type": "deberta-v2"}),
            "spm.model": model,
            "tokenizer_config.json": as_json({"do_lower_case": True, "split_by_punct": True, "added_tokens_decoder": {"10": entry}}),
        },
        "plain": {
            "config.json": as_json({"model_type": "modernbert"}),
            "tokenizer.json": make_tokenizer().to_str().encode(),
            "tokenizer_config.json": as_json(plain | {"added_tokens_decoder": {"4": entry, "21": entry | {"content": "<y>"}}}),
            "sentence_roberta_config.json": as_json({"do_lower_case": True}),
        },
    }


def as_json(value) -> bytes:
    return json.dumps(value).encode()


TEXTS = ["ada lived in london.", "é", "who?"]  # the first two are answered in the seed "resume"
MADE = {"model": "one", "top_k": 3}


def index(ours: dict[str, bytes], precision: str) -> dict[str, bytes]:
    """The files of an index with this precision. Of float32, its ids are integers and it has no texts."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ours.items():
            (Path(folder) / name).write_bytes(content)
        model = fastinfer.load(folder, device="numpy")
        made = fastinfer.Index(model, precision=precision, keep_texts=precision != "float32")
        if precision == "float32":
            made.add(np.random.default_rng(0).normal(size=(70, made.dim)).astype(np.float32))
        else:
            made.add([*TEXTS, "ada"], ["a", "b", "é", "d"])
        made.save(folder)
        return {"index.npz": (Path(folder) / "index.npz").read_bytes()}


def inputs() -> dict[str, dict[str, bytes]]:
    """The seeds of texts, of an interrupted run and of data sets."""
    table = [("text", "pair", "label"), *((text, 'a "pair",\nof two', "yes") for text in TEXTS)]
    objects = [dict(zip(table[0], row, strict=True)) | {"id": i, "score": 0.5} for i, row in enumerate(table[1:])]
    made, tsv = io.StringIO(), "".join("\t".join(row).replace("\n", " ") + "\n" for row in table)
    csv.writer(made).writerows(table)
    lines = "".join(json.dumps(value) + "\n" for value in objects).encode()
    texts = {"t.txt": b"one\ttwo\nthree\tfour\n", "t.csv": made.getvalue().encode(), "t.tsv": tsv.encode(), "t.jsonl": lines}
    texts |= {"t.json": as_json([*objects, "a", ["b", "c"]]), "z.jsonl.gz": gzip.compress(lines, mtime=0)}
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        packed = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(objects), packed)
        texts["t.parquet"] = packed.getvalue()
    answers = "".join(json.dumps({"text": text, "n": len(text)}, ensure_ascii=False) + "\n" for text in TEXTS[:2]).encode()
    known = keeping.Texts()
    known.add(TEXTS[:2])
    state = {"texts": known.count, "digest": known.digest, "bytes": len(answers), "made": MADE}
    article = "= Rice =\nBoil the grains of rice for about twelve minutes in a pot. " + "Drain them well and let them rest. " * 6 + "\n"
    data = {name.replace("t.", "d."): texts[name] for name in ("t.csv", "t.tsv", "t.jsonl")}
    data |= {"d.json": as_json({"test": [["a text", "yes"], ["another", "no"]]}), "d.conll": b"Ada\tB-x\nlived\tO\n\nParis B-x\n"}
    data["d.txt"] = (article + article.replace("Rice", "Beans")).encode()
    return {"texts": texts, "resume": {"out.jsonl.part": answers + b'{"te', "out.jsonl.part.json": as_json(state)}, "data": data}


def make() -> dict[str, dict[str, bytes]]:
    """{name of a seed: its files}."""
    tokenizer = {"tokenizer.json": make_tokenizer().to_str().encode()}
    arrays = bert()
    golden = TESTS / "data" / "golden" / "crammedbert-1x5-cls"
    around = {
        "modules.json": as_json(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
            ]
        ),
        "1_Pooling/config.json": as_json(
            {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
        ),
        "sentence_bert_config.json": as_json({"max_seq_length": 16, "do_lower_case": False}),
        "special_tokens_map.json": as_json({"cls_token": "[CLS]", "mask_token": {"content": "[MASK]", "lstrip": False}}),
        "tokenizer_config.json": as_json({"model_max_length": 512, "do_lower_case": True, "tokenizer_class": "BertTokenizer"}),
    }
    config = {"config.json": as_json(BERT)}
    kinds = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
    modules = [{"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    sentences = {
        "modules.json": as_json(modules),
        "1_Pooling/config.json": as_json({"pooling_mode": ["mean", "lasttoken"], "include_prompt": False}),
        "2_Dense/config.json": as_json(
            {"in_features": 2 * HIDDEN, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
        ),
        "2_Dense/model.safetensors": pack({"linear.weight": np.ones((6, 2 * HIDDEN), np.float32), "linear.bias": np.zeros(6, np.float32)}),
        "config_sentence_transformers.json": as_json(
            {"prompts": {"query": "is ", "task": "of "}, "default_prompt_name": "task", "similarity_fn_name": "dot", "truncate_dim": 4}
        ),
    }
    head = Embed(
        ("mean", "cls"), True, (Project(6, True, "tanh"), Unit(), Project(5, False)), 3, "manhattan", (Prompt("a", "b "),), "a", False
    )
    ours = saved(make_config()) | tokenizer
    return {
        "ours": ours,
        **{f"index-{precision}": index(ours, precision) for precision in PRECISIONS},
        **inputs(),
        "int8": saved(builders.tiny(ffn=(FFF(2, 2, dense=3, children=True, nodes=6),), stored=Stored("int8", "float16", "int8"))),
        "shards": saved(
            builders.tiny(layers=2, ffn=(Dense(4), FFF(1, 3)), positions=Positions("scaled-sinusoidal", 8), token_types=2),
            max_shard_bytes=2500,
        ),
        "rotary": saved(
            builders.tiny(
                layers=2,
                norm=Norm("pre", 1e-5, first=False),
                positions=Positions("none", 8),
                attention=(Attention(theta=1e4, scale=0.5, window=2), Attention(theta=16e4)),
                ffn=(Gated(4), FFF(1, 3)),
                activation="silu",
                tasks=Tasks(Embed("mean", True), tag=Tag(("O", "B-x"), layers=(HeadLayer(3, "gelu_tanh", norm=True),)), answer=Answer()),
            )
        ),
        "causal": saved(
            builders.tiny(
                norm=Norm("pre", 1e-6, kind="rms"),
                positions=Positions("none", 8),
                attention=(Attention(theta=1e4, causal=True),),
                head_size=16,
                head_norms=True,
                final_norm=True,
            )
        ),
        "buckets": saved(
            builders.tiny(
                distances=Buckets(4, 6),
                embedding_width=6,
                ffn=(Gated(3, bias_in=True, bias_out=True),),
                tasks=Tasks(fill_mask=FillMask(True, activation="relu")),
            )
        ),
        "alibi": saved(builders.tiny(positions=Positions("none", 8), distances=Alibi(), attention=(Attention(window=3),))),
        "disentangled": saved(builders.tiny(positions=Positions("none", 8), distances=Disentangled(2, 5), norm=Norm("post", 1e-7))),
        "bert": config | around | tokenizer | {"model.safetensors": pack(arrays)},
        "sentences": config | around | tokenizer | sentences | {"model.safetensors": pack(arrays)},
        "vectors": saved(make_config(tasks=Tasks(head))) | tokenizer,
        "bin": config | {"pytorch_model.bin": pickled(arrays), "vocab.txt": "\n".join(WORDS).encode(), **around},
        "adapter": config | tokenizer | adapted(arrays),
        **tokenizers(),
        **{model_type: of_family(model_type) for model_type in FAMILIES},
        "crammed": {path.name: path.read_bytes() for path in golden.iterdir() if path.name in ("config.json", "model.safetensors")},
    }


# Components of tokenizers, to be put in the places of others.
CHARSMAP = base64.b64encode((1024).to_bytes(4, "little") + bytes(1024) + b"a\0").decode()
COMPONENTS = [
    {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "bb"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Prepend", "prepend": "_"},
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Fuse", "ByteFallback")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]},
    {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": True}]},
    {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 1, "stop": 1}]},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")),
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "FixedLength", "length": 2},
    {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "MergedWithPrevious", "invert": False},
    {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": True},
    {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    {"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2], "trim_offsets": True, "add_prefix_space": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Strip", "content": "a", "start": 1, "stop": 1},
    {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "<0x61>": 3, "##b": 4, "a##b": 5},
        "merges": [["a", "b"], ["a", "##b"]],
        "dropout": None,
        "unk_token": "a",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
    },
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["da", -2.0], ["▁", -3.0]], "byte_fallback": False},
    {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
]
