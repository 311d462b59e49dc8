"""Checkpoints of other tools: how each is recognised, its config, and the names of its tensors here.

Only renaming, transposing, concatenating and dropping happen, so load() opens these folders directly, and
tools/convert.py writes them in this project's format. What would need another op is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Tensor
from .config import (
    FFF,
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIZE,
    Answer,
    Classify,
    Config,
    Dense,
    Embed,
    FillMask,
    HeadLayer,
    Ids,
    Norm,
    Pooling,
    Positions,
    Stored,
    Tag,
    Tasks,
    read_json,
    vocabulary_bytes,
)
from .errors import CheckpointError, ConfigError, listed, short
from .files import read_file

__all__ = ["RECOGNISED", "read_options", "read_vocabulary", "special_tokens", "translate"]

RECOGNISED = """\
  fastinfer: config.json with format_version
  crammedBERT: config.json with model_type crammedBERT and arch; dense or FFF, masked language model or classifier
  Hugging Face BERT: model_type bert; BertModel, BertForMaskedLM, ForSequenceClassification, ForTokenClassification,
    ForQuestionAnswering, ForPreTraining; sentence-transformers folders around it
  RoBERTa family: model_type roberta, xlm-roberta or camembert, the same heads
  DistilBERT: model_type distilbert, the same heads"""

SPECIAL_TOKENS = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}
# Where a sentence-transformers folder keeps the most tokens of a text; the first that says so counts.
TOKEN_LIMITS = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))


def translate(data: Any, stored: Mapping[str, Tensor], folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """A foreign config.json's object and tensors as (Config, tensors by the names of this format).

    Raises CheckpointError for a layout that is not recognised (listing those that are), for missing or
    unknown tensors; ConfigError for an architecture that is recognised and not supported.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind is None and isinstance(data, dict) and "hidden_size" in data and any("attention.self.query" in name for name in stored):
        kind = "bert"  # files older than model_type
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise CheckpointError(f"{folder}: a checkpoint with model_type {short(kind)} is not recognised. Recognised are:\n{RECOGNISED}")
    source = _Source(data, stored, folder)
    try:
        return reader(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: a {kind} config lacks {error}, or has it as another type") from None


class _Source:
    """A foreign checkpoint being read: its config, and its tensors, each taken once; what lacks or is left is told at the end."""

    def __init__(self, data: dict, stored: Mapping[str, Tensor], folder: Path) -> None:
        self.data, self.folder = data, folder
        self.stored = {_modern(name): tensor for name, tensor in stored.items()}
        self.taken: set[str] = set()
        self.problems: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def get(self, name: str, ndim: int = 2) -> Tensor:
        """The tensor `name`; where there is none such, an empty one, and config() tells why."""
        self.taken.add(name)
        tensor = self.stored.get(name)
        if tensor is None:
            self.problems.append(f"missing  {name}")
        elif tensor.dtype not in ("float32", "float16", "bfloat16"):
            self.problems.append(f"dtype    {name} is {tensor.dtype}, expected float32, float16 or bfloat16")
        elif tensor.data.ndim != ndim:
            self.problems.append(f"shape    {name} is {tensor.data.shape}, expected {ndim} dimension{'s' * (ndim > 1)}")
        else:
            return tensor
        return Tensor(np.empty((0,) * ndim, np.float32), "float32")

    def vector(self, name: str) -> Tensor:
        """A bias or a norm's weight: float32 whatever the file holds."""
        return self.get(name, ndim=1).to("float32")

    def number(self, at: Mapping[str, Any], key: str, low: int, high: int = MAX_SIZE, *, kind: Any = int, default: Any = None) -> Any:
        """at[key], an integer (or a number, where kind is float) from low to high; bounded before anything is computed from it."""
        value = at.get(key, default)
        if type(value) not in (int, kind) or not low <= value <= high:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"{self.folder / 'config.json'}: {key} is {short(value)}, expected {what} from {low} to {high}")
        return kind(value)

    def drop(self, *endings: str) -> None:
        """Leave out the tensors whose names end so."""
        self.taken |= {name for name in self.stored if name.endswith(endings)}

    def labels(self, count: int) -> tuple[str, ...]:
        """The names of `count` classes: id2label where it fits, else LABEL_i."""
        names = self.data.get("id2label")
        found = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
        keys = [str(i) for i in range(count)]
        if found.keys() == set(keys) and len(set(found.values())) == count:
            return tuple(found[k] for k in keys)
        return tuple(f"LABEL_{i}" for i in range(count))

    def config(self, **fields: Any) -> Config:
        """The Config, once all tensors are taken. Raises CheckpointError listing every one that is missing, misshapen or unknown."""
        unknown = sorted(set(self.stored) - self.taken)
        if self.problems or unknown:
            lines = self.problems + [f"unknown  {name} {self.stored[name].data.shape}" for name in unknown]
            count = f"{len(lines)} tensor{'s' * (len(lines) > 1)}"
            raise CheckpointError(f"{self.folder}: {count} not as its config.json says:\n  " + listed(lines, "\n  "))
        try:
            return Config(**fields)
        except ConfigError as error:
            raise ConfigError(f"{self.folder / 'config.json'}: {error}") from None


def _modern(name: str) -> str:
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _refuse(source: _Source, what: str, value: Any, supported: str) -> ConfigError:
    return ConfigError(f"{source.folder / 'config.json'}: {what} {short(value)} is not supported, only {supported}")


def _stack(parts: Iterable[Tensor]) -> Tensor:
    """Tensors of one dtype on top of each other."""
    parts = list(parts)
    if len({t.data.shape[1:] for t in parts}) > 1:
        return parts[0]  # misshapen: the format's own check names it
    if len({t.dtype for t in parts}) > 1:
        parts = [t.to("float32") for t in parts]
    stacked = Tensor(np.concatenate([t.data for t in parts]), parts[0].dtype)
    for part in parts:
        part.release()
    return stacked


def _stored(made: dict[str, Tensor]) -> Stored:
    """The stored dtypes of translated tensors, made uniform per family: float32 where a family mixes them."""
    families = {
        "embeddings": [n for n in made if n in ("embedding.word", "embedding.position", "embedding.token_type")],
        "trees": [n for n in made if n.endswith(".nodes")],
    }
    special = {n for names in families.values() for n in names}
    families["matrices"] = [n for n, t in made.items() if n not in special and t.data.ndim == 2 and n.endswith(".weight")]
    dtypes = {}
    for family, names in families.items():
        kinds = {made[n].dtype for n in names}
        dtypes[family] = kinds.pop() if len(kinds) == 1 else "float32"
        for n in names:
            made[n] = made[n].to(dtypes[family])
    return Stored(**dtypes)


# --- Hugging Face ----------------------------------------------------------------------------------


def _bert(s: _Source) -> tuple[Config, dict[str, Tensor]]:
    return _hugging_face(s, "bert.", first_position=0)


def _roberta(s: _Source) -> tuple[Config, dict[str, Tensor]]:
    # RoBERTa numbers positions from padding_idx + 1; the rows before are never used.
    return _hugging_face(s, "roberta.", first_position=s.number(s.data, "pad_token_id", 0, default=1) + 1)


def _hugging_face(s: _Source, prefix: str, first_position: int) -> tuple[Config, dict[str, Tensor]]:
    c = s.data
    if c.get("hidden_act", "gelu") != "gelu":
        raise _refuse(s, "hidden_act", c["hidden_act"], "the exact gelu")
    if (c.get("position_embedding_type") or "absolute") != "absolute":
        raise _refuse(s, "position_embedding_type", c["position_embedding_type"], "absolute")
    if c.get("is_decoder") or c.get("add_cross_attention"):
        raise _refuse(s, "is_decoder or add_cross_attention", True, "encoders")
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = prefix if f"{prefix}embeddings.word_embeddings.weight" in s else ""
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": _rows(s.get(f"{body}embeddings.position_embeddings.weight"), first_position),
        "embedding.token_type": s.get(f"{body}embeddings.token_type_embeddings.weight"),
        **_norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids", "embeddings.token_type_ids", "seq_relationship.weight", "seq_relationship.bias")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= _attention(s, ours, [f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")], f"{theirs}.attention.output.dense")
        made |= _norm(s, f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm")
        made |= _dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
        made |= _norm(s, f"{ours}.ffn.norm", f"{theirs}.output.LayerNorm")
    pooler = f"{body}pooler.dense" if f"{body}pooler.dense.weight" in s else None

    tasks: dict[str, Any] = {}
    names = " ".join(c.get("architectures") or ())
    if "cls.predictions.transform.dense.weight" in s:
        tasks["fill_mask"] = _fill_mask(
            s,
            made,
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            ["cls.predictions.decoder.bias", "cls.predictions.bias"],
        )
    elif "lm_head.dense.weight" in s:
        tasks["fill_mask"] = _fill_mask(
            s,
            made,
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder.weight",
            ["lm_head.decoder.bias", "lm_head.bias"],
        )
    elif "classifier.out_proj.weight" in s:
        tasks["classify"] = _classify(s, made, [("classifier.dense", "tanh")], "classifier.out_proj")
    elif "classifier.weight" in s and pooler and "TokenClassification" not in names:
        tasks["classify"] = _classify(s, made, [(pooler, "tanh")], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = _tag(s, made)
    if "qa_outputs.weight" in s:
        made |= _linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    s.drop(f"{body}pooler.dense.weight", f"{body}pooler.dense.bias")

    return _finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        width=s.number(c, "intermediate_size", 1),
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        token_types=len(made["embedding.token_type"].data),
    )


def _distilbert(s: _Source) -> tuple[Config, dict[str, Tensor]]:
    c = s.data
    if c.get("activation", "gelu") != "gelu":
        raise _refuse(s, "activation", c["activation"], "the exact gelu")
    layers = s.number(c, "n_layers", 1, MAX_LAYERS)
    body = "distilbert." if "distilbert.embeddings.word_embeddings.weight" in s else ""
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": s.get(f"{body}embeddings.position_embeddings.weight"),
        **_norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids")
    for i in range(layers):
        theirs, ours = f"{body}transformer.layer.{i}", f"layers.{i}"
        made |= _attention(s, ours, [f"{theirs}.attention.{n}_lin" for n in "qkv"], f"{theirs}.attention.out_lin")
        made |= _norm(s, f"{ours}.attention.norm", f"{theirs}.sa_layer_norm")
        made |= _dense(s, ours, f"{theirs}.ffn.lin1", f"{theirs}.ffn.lin2")
        made |= _norm(s, f"{ours}.ffn.norm", f"{theirs}.output_layer_norm")
    tasks: dict[str, Any] = {}
    if "vocab_transform.weight" in s:
        tasks["fill_mask"] = _fill_mask(s, made, "vocab_transform", "vocab_layer_norm", "vocab_projector.weight", ["vocab_projector.bias"])
    elif "pre_classifier.weight" in s:
        tasks["classify"] = _classify(s, made, [("pre_classifier", "relu")], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = _tag(s, made)
    if "qa_outputs.weight" in s:
        made |= _linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    return _finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "dim", 1),
        layers=layers,
        heads=s.number(c, "n_heads", 1),
        width=s.number(c, "hidden_dim", 1),
        eps=1e-12,
        token_types=0,
    )


def _finish(
    s: _Source,
    made: dict[str, Tensor],
    tasks: dict[str, Any],
    *,
    hidden: int,
    layers: int,
    heads: int,
    width: int,
    eps: float,
    token_types: int,
) -> tuple[Config, dict[str, Tensor]]:
    positions = len(made["embedding.position"].data)
    pooling, normalize, limit = _sentence_transformers(s.folder)
    if pooling or not tasks:
        tasks["embed"] = Embed(pooling or "mean", normalize)
    return (
        s.config(
            hidden=hidden,
            layers=layers,
            heads=heads,
            vocabulary=len(made["embedding.word"].data),
            norm=Norm("post", eps),
            positions=Positions("learned", positions),
            ffn=(Dense(width),) * layers,
            max_tokens=min(limit or positions, positions),
            tasks=Tasks(**tasks),
            token_types=token_types,
            ids=_special_ids(s, len(made["embedding.word"].data)),
            stored=_stored(made),
        ),
        made,
    )


def _norm(s: _Source, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": s.vector(f"{theirs}.weight"), f"{ours}.bias": s.vector(f"{theirs}.bias")}


def _linear(s: _Source, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": s.get(f"{theirs}.weight"), f"{ours}.bias": s.vector(f"{theirs}.bias")}


def _attention(s: _Source, ours: str, qkv: list[str], out: str) -> dict[str, Tensor]:
    return {
        f"{ours}.attention.qkv.weight": _stack(s.get(f"{n}.weight") for n in qkv),
        f"{ours}.attention.qkv.bias": _stack(s.vector(f"{n}.bias") for n in qkv),
        **_linear(s, f"{ours}.attention.out", out),
    }


def _dense(s: _Source, ours: str, first: str, second: str) -> dict[str, Tensor]:
    return {
        **_linear(s, f"{ours}.ffn.dense_in", first),
        f"{ours}.ffn.dense_out.weight": s.get(f"{second}.weight"),
        f"{ours}.ffn.b_out": s.vector(f"{second}.bias"),
    }


def _rows(table: Tensor, first: int) -> Tensor:
    return Tensor(table.data[first:], table.dtype) if first else table


def _fill_mask(s: _Source, made: dict[str, Tensor], transform: str, norm: str, decoder: str, biases: list[str]) -> FillMask:
    """The head of a masked language model; of two biases the first is what the decoder adds, and most often both are one."""
    made |= _linear(s, "tasks.fill_mask.transform", transform)
    made |= _norm(s, "tasks.fill_mask.norm", norm)
    bias = next((b for b in biases if b in s), None)
    if bias:
        made["tasks.fill_mask.bias"] = s.vector(bias)
    s.drop(*biases)
    tied = _tied(s, made, decoder)
    return FillMask(transform=True, tied=tied, bias=bias is not None)


def _tied(s: _Source, made: dict[str, Tensor], decoder: str) -> bool:
    """Whether the decoder is the word embedding; if not, it becomes a tensor of its own."""
    if decoder not in s and s.data.get("tie_word_embeddings", True):
        return True
    weight = s.get(decoder)
    word = made["embedding.word"]
    if weight.data.shape == word.data.shape and weight.dtype == word.dtype and np.array_equal(weight.data, word.data):
        return True
    made["tasks.fill_mask.decoder.weight"] = weight
    return False


def _classify(s: _Source, made: dict[str, Tensor], layers: list[tuple[str, Any]], last: str) -> Classify:
    widths = []
    for i, (theirs, activation) in enumerate(layers):
        made |= _linear(s, f"tasks.classify.layers.{i}", theirs)
        widths.append(HeadLayer(max(1, len(made[f"tasks.classify.layers.{i}.weight"].data)), activation))
    made |= _linear(s, "tasks.classify.out", last)
    labels = s.labels(max(1, len(made["tasks.classify.out.weight"].data)))
    kind = s.data.get("problem_type")
    output: Any = (
        "sigmoid" if kind == "multi_label_classification" else "identity" if len(labels) == 1 or kind == "regression" else "softmax"
    )
    return Classify(labels, output, "cls", tuple(widths))


def _tag(s: _Source, made: dict[str, Tensor]) -> Tag:
    made |= _linear(s, "tasks.tag.out", "classifier")
    labels = s.labels(max(1, len(made["tasks.tag.out.weight"].data)))
    return Tag(labels, "bio" if all(label == "O" or label[:2] in ("B-", "I-") for label in labels) else "io")


def _sentence_transformers(folder: Path) -> tuple[Pooling | None, bool, int | None]:
    """(pooling, normalize, most tokens) as a sentence-transformers folder keeps them, or (None, False, None)."""
    if not (folder / "modules.json").exists():
        return None, False, None
    pooling: Pooling | None = None
    normalize = False
    for module in _read(folder / "modules.json", list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(_inside(folder, module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(
                f"{folder / 'modules.json'}: module {short(module.get('type'))} is not supported, only Transformer, Pooling and Normalize"
            )
    limits = [read_options(folder / file).get(key) for file, key in TOKEN_LIMITS]
    return pooling, normalize, next((limit for limit in limits if limit is not None), None)


def _inside(folder: Path, path: Any) -> Path:
    """The folder of a module, of which modules.json says the path below its own. Links are followed: caches are made of them."""
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(
            f"{folder / 'modules.json'}: a module's path is {short(path)}, expected one inside the folder, such as '1_Pooling'"
        )
    return folder / path


def _pooling(path: Path) -> Pooling:
    """The one way of pooling that a Pooling module's config.json turns on: as a name, or, in older files, by a switch per way."""
    options = _read(path, dict)
    ways: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "max": "max", "max_tokens": "max"}
    prefix = "pooling_mode_"
    chosen = options.get("pooling_mode") or [k.removeprefix(prefix) for k, on in options.items() if k.startswith(prefix) and on is True]
    chosen = [chosen] if isinstance(chosen, str) else chosen
    if len(chosen) != 1 or chosen[0] not in ways:
        raise ConfigError(f"{path}: pooling {listed(map(short, chosen), ' + ') or 'none'} is not supported, only one of mean, cls and max")
    return ways[chosen[0]]


def _special_ids(s: _Source, vocabulary: int) -> Ids:
    """Ids of special tokens: by name from tokenizer.json or vocab.txt, the names as the tokenizer's settings or habit have them."""
    if (s.folder / "tokenizer.json").exists():
        tokens = _read(s.folder / "tokenizer.json", dict, vocabulary_bytes(vocabulary)).get("added_tokens") or ()
        known = {t.get("content"): t.get("id") for t in tokens}
    elif (s.folder / "vocab.txt").exists():
        known = {token: i for i, token in enumerate(read_vocabulary(s.folder / "vocab.txt", vocabulary))}
    else:
        known = {}
    named = special_tokens(s.folder)
    return Ids(**{key: next((known[n] for n in names if n in known), None) for key, names in named.items()})


def special_tokens(folder: Path) -> dict[str, list[str]]:
    """{"pad", "mask", "cls", "sep": what the token may be called}: as the tokenizer's settings name it, then by habit."""
    named = read_options(folder / "tokenizer_config.json") | read_options(folder / "special_tokens_map.json")
    found = {}
    for key, habits in SPECIAL_TOKENS.items():
        name = named.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        found[key] = [n for n in (name, *habits) if isinstance(n, str)]
    return found


def read_vocabulary(path: Path, most: int) -> list[str]:
    """The tokens of a vocab.txt, one a line, of a model that has `most`. Raises CheckpointError naming the file."""
    try:
        text = read_file(path, vocabulary_bytes(most)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read as a vocabulary, one token a line: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def read_options(path: Path) -> dict:
    """A JSON object of settings; empty where there is no such file."""
    return _read(path, dict) if path.exists() else {}


def _read(path: Path, kind: type, limit: int = MAX_JSON_BYTES) -> Any:
    """A JSON file that holds an object, or a list of objects."""
    value = read_json(path, limit)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, dict) for v in value)):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected {'a list of objects' if kind is list else 'an object'}")
    return value


# --- crammedBERT -----------------------------------------------------------------------------------


def _crammed(s: _Source) -> tuple[Config, dict[str, Tensor]]:
    c = s.data["arch"]
    embedding, attention = c["embedding"], c["attention"]
    expected: list[tuple[str, Any, Any]] = [
        ("arch.norm", c["norm"], "LayerNorm"),
        ("arch.norm_scheme", c["norm_scheme"], "pre"),
        ("arch.nonlin", c["nonlin"], "GELU"),
        ("arch.use_bias", c.get("use_bias", False), False),
        ("arch.ffn_layer_frequency", c.get("ffn_layer_frequency", 1), 1),
        ("arch.skip_head_transform", c.get("skip_head_transform", True), True),
        ("arch.embedding.pos_embedding", embedding["pos_embedding"], "scaled-sinusoidal"),
        ("arch.embedding.embedding_dim", embedding["embedding_dim"], c["hidden_size"]),
        ("arch.attention.type", attention["type"], "self-attention"),
        ("arch.attention.causal_attention", attention.get("causal_attention", False), False),
        ("arch.attention.rotary_embedding", attention.get("rotary_embedding", False), False),
        ("arch.attention.qkv_bias", attention.get("qkv_bias", False), False),
        ("arch.attention.skip_output_projection", attention.get("skip_output_projection", False), False),
        ("arch.attention.sequence_op", attention.get("sequence_op", "torch-softmax"), "torch-softmax"),
    ]
    wrong = [f"{name} is {short(got)}, only {want!r} is supported" for name, got, want in expected if got != want]
    if wrong:
        raise ConfigError(f"{s.folder / 'config.json'}: this crammedBERT needs what fastinfer does not have:\n  " + "\n  ".join(wrong))
    hidden, layers = s.number(c, "hidden_size", 1), s.number(c, "num_transformer_layers", 1, MAX_LAYERS)
    heads, positions = s.number(attention, "num_attention_heads", 1), s.number(embedding, "max_seq_length", 1, MAX_POSITIONS)
    kind, width = c.get("intermed_type", "ff"), s.number(c, "intermed_size", 1)
    if kind not in ("ff", "fff"):
        raise _refuse(s, "arch.intermed_type", kind, "ff and fff")
    feedforward: Dense | FFF = (
        FFF(width, s.number(c, "intermed_depth", 0, MAX_DEPTH)) if kind == "fff" else Dense(width, bias_in=False, bias_out=False)
    )
    made = {
        "embedding.word": s.get("encoder.embedding.word_embedding.weight"),
        "embedding.position_scale": s.vector("encoder.embedding.pos_embedding.scale_factor"),
    }
    if embedding.get("normalization", False):
        made |= _norm(s, "embedding.norm", "encoder.embedding.norm")
    if c.get("final_norm", False):
        made |= _norm(s, "final_norm", "encoder.final_norm")
    for i in range(layers):
        theirs, ours = f"encoder.layers.{i}", f"layers.{i}"
        made |= _norm(s, f"{ours}.attention.norm", f"{theirs}.norm1")
        made |= _norm(s, f"{ours}.ffn.norm", f"{theirs}.norm2")
        made[f"{ours}.attention.qkv.weight"] = _unweave(s.get(f"{theirs}.attn.self_attention.query_key_value.weight"), heads)
        factor = f"{theirs}.attn.self_attention.norm_factor"
        if factor in s:
            s.drop(factor)
            got, want = s.stored[factor].float32(), (hidden / heads) ** -0.5
            if not np.allclose(got, want, rtol=0.005, atol=0):  # it may have been rounded to bfloat16
                raise _refuse(s, factor, got.tolist(), f"1/sqrt(head size) = {want:g}")
        made[f"{ours}.attention.out.weight"] = s.get(f"{theirs}.attn.dense.weight")
        if isinstance(feedforward, FFF):
            made[f"{ours}.ffn.nodes"] = _nodes(s, feedforward, f"{theirs}.ffn")
            made[f"{ours}.ffn.b_in"] = _shaped(s.vector(f"{theirs}.ffn.linear_in.bias"), (feedforward.trees, feedforward.count))
        else:
            made[f"{ours}.ffn.dense_in.weight"] = s.get(f"{theirs}.ffn.dense_in.weight")
            made[f"{ours}.ffn.dense_out.weight"] = s.get(f"{theirs}.ffn.dense_out.weight")

    tasks: dict[str, Any] = {}
    if "head.weight" in s:
        tasks["classify"] = _crammed_classifier(s, made, c["classification_head"])
    elif "decoder.weight" in s or c.get("tie_weights", False):
        bias = "decoder.bias" in s
        if bias:
            made["tasks.fill_mask.bias"] = s.vector("decoder.bias")
        tasks["fill_mask"] = FillMask(transform=False, tied=_tied(s, made, "decoder.weight"), bias=bias)
    s.drop("position_ids")
    config = s.config(
        hidden=hidden,
        layers=layers,
        heads=heads,
        vocabulary=s.number(embedding, "vocab_size", 1),
        norm=Norm("pre", s.number(c, "norm_eps", 0, 1, kind=float)),
        positions=Positions("scaled-sinusoidal", positions),
        ffn=(feedforward,) * layers,
        max_tokens=positions,
        tasks=Tasks(**tasks),
        embedding_norm=bool(embedding.get("normalization", False)),
        final_norm=bool(c.get("final_norm", False)),
        ids=_special_ids(s, len(made["embedding.word"].data)),
        attention_bias=False,
        stored=_stored(made),
    )
    return config, made


def _crammed_classifier(s: _Source, made: dict[str, Tensor], head: dict) -> Classify:
    poolers: dict[str, Pooling] = {"zero_index": "cls", "avg": "mean", "max": "max", "lse": "lse"}
    if head["pooler"] not in poolers:
        raise _refuse(s, "arch.classification_head.pooler", head["pooler"], ", ".join(poolers))
    layers: list[tuple[str, Any]] = []
    if head.get("include_ff_layer", True):
        activations = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
        if head["nonlin"] not in activations:
            raise _refuse(s, "arch.classification_head.nonlin", head["nonlin"], ", ".join(activations))
        layers = [("pooler.dense", activations[head["nonlin"]])]
    made_head = _classify(s, made, layers, "head")
    return Classify(made_head.labels, made_head.output, poolers[head["pooler"]], made_head.layers)


def _unweave(weight: Tensor, heads: int) -> Tensor:
    """Rows per head [q, k, v] to all of q, all of k, all of v."""
    rows = len(weight.data)
    if not rows or rows % (3 * heads):
        return weight
    blocks = weight.data.reshape(heads, 3, rows // (3 * heads), -1)
    return Tensor(np.ascontiguousarray(blocks.transpose(1, 0, 2, 3)).reshape(rows, -1), weight.dtype)


def _nodes(s: _Source, feedforward: FFF, theirs: str) -> Tensor:
    """linear_in (P * N, D) and linear_out (D, P * N) as nodes (P, N, 2, D)."""
    w_in, w_out = s.get(f"{theirs}.linear_in.weight"), s.get(f"{theirs}.linear_out.weight")
    if w_in.data.shape != w_out.data.T.shape or len(w_in.data) != feedforward.total:
        return w_in  # misshapen: the format's own check names it
    both = np.stack([w_in.data, w_out.to(w_in.dtype).data.T], axis=1)
    return Tensor(both.reshape(feedforward.trees, feedforward.count, 2, -1), w_in.dtype)


def _shaped(vector: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(vector.data.reshape(shape), vector.dtype) if vector.data.size == np.prod(shape) else vector


READERS = {
    "crammedBERT": _crammed,
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "distilbert": _distilbert,
}
