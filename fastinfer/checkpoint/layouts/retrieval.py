"""Folders of models for retrieval: SPLADE (SparseEncoder of sentence-transformers) and ColBERT (Stanford's, PyLate's, MultiVectorEncoder).

The rules are those of sentence-transformers 6, which opens all of these. A setting that changes an answer is read or refused by name.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...activations import Activation
from ...errors import ConfigError, listed, short
from ...retrieval import EmbedSparse, EmbedTokens, Expansion, Side, TokenLayer
from ...strict_json import vocabulary_bytes
from ..tensor import Tensor
from .settings import read_object, read_options, special_tokens
from .source import Source
from .vocabularies import read_vocabulary

__all__ = ["sparse_head", "stanford_head", "token_head"]

AROUND = "config_sentence_transformers.json"
PYLATE = "ColBERT"
# Activations by the last part of the names that PyTorch has for them.
ACTIVATIONS: dict[str, Activation | None] = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
TRANSFORMER_FILE = "sentence_bert_config.json"


Modules = Sequence[tuple[str, Path]]  # the kind of each module, and its folder


def _refuse(path: Path, key: str, value: Any, supported: str) -> ConfigError:
    return ConfigError(f"{path}: {key} {short(value)} is not supported, only {supported}")


def _option(path: Path, options: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """options[key], or the default where it is missing or null. Raises ConfigError unless it is of the type `kind`."""
    value = options.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise ConfigError(f"{path}: {key} is {short(value)}, expected a value of type {kind.__name__}")
    return value


def _choice(path: Path, options: Mapping[str, Any], key: str, default: str, *known: str) -> Any:
    value = _option(path, options, key, str, default)
    if value not in known:
        raise _refuse(path, key, value, ", ".join(known))
    return value


# --- SPLADE ----------------------------------------------------------------------------------------


def sparse_head(s: Source, modules: Modules, around: dict[str, Any], tasks: dict[str, Any]) -> EmbedSparse:
    """The head of a SparseEncoder: a masked language model and a SpladePooling."""
    path, kinds = s.root / "modules.json", [kind for kind, _ in modules]
    if kinds[:1] not in (["Transformer"], ["MLMTransformer"]) or kinds[1:] != ["SpladePooling"] or "fill_mask" not in tasks:
        supported = "a Transformer that is a masked language model, then a SpladePooling"
        raise _refuse(path, "a sparse encoder of modules", ", ".join(kinds), supported)
    prompts = {name: text for name, text in _option(s.root / AROUND, around, "prompts", dict, {}).items() if text}
    if prompts:
        raise _refuse(s.root / AROUND, "prompts", prompts, "empty ones in a sparse encoder")
    path = modules[1][1] / "config.json"
    options = read_object(path, dict)
    pooling = _choice(path, options, "pooling_strategy", "max", "max", "sum")
    activation = _choice(path, options, "activation_function", "relu", "relu", "log1p_relu")
    similarity = _choice(s.root / AROUND, around, "similarity_fn_name", "dot", "dot", "cosine", "euclidean", "manhattan")
    return EmbedSparse(pooling, activation, similarity, _option(s.root / AROUND, around, "max_active_dims", int, None))


# --- ColBERT ---------------------------------------------------------------------------------------


def stanford_head(s: Source, made: dict[str, Tensor], most: int) -> EmbedTokens:
    """The head of a checkpoint of stanford-futuredata/ColBERT, whose settings are in artifact.metadata.

    The defaults are those of colbert/infra/config/settings.py, the rules those of colbert/modeling.
    """
    path = s.folder / "artifact.metadata"
    options = read_options(path)
    _choice(path, options, "similarity", "cosine", "cosine")
    _choice(path, options, "interaction", "colbert", "colbert")
    known = _known_tokens(s, made)
    query, document = (
        _id_of(path, known, _option(path, options, key, str, name))
        for key, name in (("query_token_id", "[unused0]"), ("doc_token_id", "[unused1]"))
    )
    length = min(_option(path, options, "query_maxlen", int, 32), most)
    expansion = Expansion(length, _mask(s, known), _option(path, options, "attend_to_mask_tokens", bool, False))
    skipped = string.punctuation if _option(path, options, "mask_punctuation", bool, True) else ""
    weight = s.get("linear.weight")
    made["tasks.embed_tokens.layers.0.weight"] = weight
    return EmbedTokens(
        (TokenLayer(max(1, len(weight.data))),),
        Side(marker=query, tokens=length),
        Side(marker=document, tokens=min(_option(path, options, "doc_maxlen", int, 220), most)),
        expansion,
        _ids_of(known, skipped),
    )


def token_head(s: Source, made: dict[str, Tensor], modules: Modules, around: dict[str, Any], most: int) -> EmbedTokens:
    """The head of a folder that PyLate or sentence-transformers wrote: a Transformer, then Dense modules, a mask and scaling."""
    path = s.root / "modules.json"
    known = _known_tokens(s, made)
    layers: list[TokenLayer] = []
    skip: tuple[int, ...] = ()
    normalize = False
    for kind, folder in modules[1:]:
        if kind in ("Dense", "pylate.models.Dense.Dense") and not normalize:
            layers.append(_dense(s, folder, made, len(layers)))
        elif kind == "MultiVectorMask":
            skip = _skipped(folder / "config.json", known)
        elif kind == "Normalize":
            normalize = True
        else:
            raise _refuse(path, "module", kind, "Transformer, Dense before the others, MultiVectorMask and Normalize")
    if around.get("model_type", PYLATE) == PYLATE:
        return _pylate(s, known, tuple(layers), around, most)
    at = modules[0][1] / TRANSFORMER_FILE
    options = read_options(at)
    given = _option(at, options, "query_expansion", dict, None)
    expansion = None
    if given is not None:
        _choice(at, given, "strategy", "", "fixed", "min")
        token = _option(at, given, "token", str, None)
        filler = _mask(s, known) if token is None else _id_of(at, known, token)
        expansion = Expansion(min(_option(at, given, "length", int, 32), most), filler, _option(at, given, "attend", bool, False))
    limits = {side: _option(at, options, f"{side}_length", int, None) for side in ("query", "document")}
    if expansion is not None and given is not None:
        fixed, ceiling = given["strategy"] == "fixed", limits["query"]
        limits["query"] = expansion.tokens if fixed else None if ceiling is None else max(ceiling, expansion.tokens)
    texts = _prompts(s, around)
    query, document = (Side(texts[side], None, limits[side] and min(limits[side], most)) for side in ("query", "document"))
    similarity = _choice(s.root / AROUND, around, "similarity_fn_name", "maxsim", "maxsim", "meanmaxsim")
    return EmbedTokens(tuple(layers), query, document, expansion, skip, normalize, similarity)


def _pylate(s: Source, known: Mapping[str, int], layers: tuple[TokenLayer, ...], around: dict[str, Any], most: int) -> EmbedTokens:
    """The head of a folder of lightonai/pylate, with the defaults of its ColBERT class. It always scales and skips."""
    path, texts = s.root / AROUND, _prompts(s, around)
    _choice(path, around, "similarity_fn_name", "MaxSim", "MaxSim", "maxsim", "cosine")  # it compares by MaxSim, whatever the name
    sides = []
    for name, marker, length in (("query", "[Q] ", 32), ("document", "[D] ", 180)):
        prefix = _option(path, around, f"{name}_prefix", str, marker)
        limit = min(_option(path, around, f"{name}_length", int, length), most)
        sides.append(Side(texts[name].removeprefix(prefix), _id_of(path, known, prefix) if prefix else None, limit))
    expansion = None
    if _option(path, around, "do_query_expansion", bool, True):
        attend = _option(path, around, "attend_to_expansion_tokens", bool, False)
        expansion = Expansion(sides[0].tokens or most, _mask(s, known), attend)
    return EmbedTokens(layers, sides[0], sides[1], expansion, _words_skipped(path, around, known, string.punctuation))


def _prompts(s: Source, around: dict[str, Any]) -> dict[str, str]:
    """{"query" and "document": the text of its prompt, or an empty one}."""
    prompts = _option(s.root / AROUND, around, "prompts", dict, {})
    return {side: _option(s.root / AROUND, prompts, side, str, "") for side in ("query", "document")}


def _dense(s: Source, folder: Path, made: dict[str, Tensor], i: int) -> TokenLayer:
    """Layer `i` from the folder of a Dense module; its tensors are added to `made`."""
    path = folder / "config.json"
    options = read_object(path, dict)
    if _option(path, options, "use_residual", bool, False):
        raise _refuse(path, "use_residual", True, "false")
    for key in ("module_input_name", "module_output_name"):
        _choice(path, options, key, "token_embeddings", "token_embeddings")
    bias, name = _option(path, options, "bias", bool, True), _option(path, options, "activation_function", str, "torch.nn.Tanh")
    last = name.rpartition(".")[2] if name.startswith("torch.nn.") else None
    if last not in ACTIVATIONS:
        raise _refuse(path, "activation_function", name, ", ".join(ACTIVATIONS) + " of torch.nn")
    part = Source(options, s.read(folder), folder)
    weight = made[f"tasks.embed_tokens.layers.{i}.weight"] = part.get("linear.weight")
    if bias:
        made[f"tasks.embed_tokens.layers.{i}.bias"] = part.vector("linear.bias")
    part.check()
    sizes = tuple(part.number(options, key, 1) for key in ("out_features", "in_features"))
    if weight.data.shape != sizes:
        raise ConfigError(f"{path}: out_features and in_features are {sizes}, but linear.weight is {weight.data.shape}")
    return TokenLayer(sizes[0], bias, ACTIVATIONS[last])


def _skipped(path: Path, known: Mapping[str, int]) -> tuple[int, ...]:
    """The ids that a MultiVectorMask leaves out of documents."""
    options = read_object(path, dict)
    if options.get("skiplist_tasks") not in (None, "document", ["document"]):
        raise _refuse(path, "skiplist_tasks", options["skiplist_tasks"], '["document"]')
    if options.get("keep_only_token_ids"):
        raise _refuse(path, "keep_only_token_ids", options["keep_only_token_ids"], "null")
    return _words_skipped(path, options, known, "")


def _words_skipped(path: Path, options: Mapping[str, Any], known: Mapping[str, int], default: str) -> tuple[int, ...]:
    words = _option(path, options, "skiplist_words", list, list(default))
    if not all(isinstance(word, str) for word in words):
        raise _refuse(path, "skiplist_words", words, "a list of tokens")
    return _ids_of(known, words)


# --- tokens ----------------------------------------------------------------------------------------


def _known_tokens(s: Source, made: Mapping[str, Tensor]) -> dict[str, int]:
    """{token: id} of tokenizer.json, else vocab.txt."""
    most = len(made["embedding.word"].data)
    if not (s.folder / "tokenizer.json").exists():
        path = s.folder / "vocab.txt"
        return {token: i for i, token in enumerate(read_vocabulary(path, most))} if path.exists() else {}
    data = read_object(s.folder / "tokenizer.json", dict, vocabulary_bytes(most))
    model, added = data.get("model"), data.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # pairs of a token and its score
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    tokens = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    tokens += [(token.get("content"), token.get("id")) for token in added or () if isinstance(token, dict)]
    return {token: i for token, i in tokens if isinstance(token, str) and type(i) is int and 0 <= i < most}


def _id_of(path: Path, known: Mapping[str, int], token: str) -> int:
    if token not in known:
        raise ConfigError(f"{path}: the token {short(token)} is not in the vocabulary of {path.parent}: it is damaged, or of another model")
    return known[token]


def _ids_of(known: Mapping[str, int], words: Any) -> tuple[int, ...]:
    """The ids of the words that are tokens, ascending; others cannot be skipped."""
    return tuple(sorted({known[word] for word in words if word in known}))


def _mask(s: Source, known: Mapping[str, int]) -> int:
    """The id of the mask token, which fills up queries."""
    names = special_tokens(s.folder)["mask"]
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise ConfigError(f"{s.folder}: queries are filled up with a mask token, but the vocabulary has no {listed(map(short, names))}")
    return found
