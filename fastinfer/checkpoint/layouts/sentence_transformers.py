"""Folders of sentence-transformers: modules around a transformer, prompts, similarity, and the scores of cross-encoders.

The rules are those of sentence-transformers 6. A setting that changes an answer is read or refused by name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ...activations import Activation
from ...config import Classify, Embed, Pooling, Project, Prompt, Unit
from ...embedding import PROMPTS, Similarity
from ...errors import ConfigError, listed, short
from ..tensor import Tensor
from .retrieval import sparse_head, stanford_head, token_head
from .settings import read_object, read_options
from .source import Source
from .tokenizer import sentence_options

__all__ = ["Module", "add_tasks", "body_of", "read_modules"]

AROUND = "config_sentence_transformers.json"
PACKAGE = "sentence_transformers."
# Keys of model_kwargs and config_kwargs that do not change what a model computes.
HARMLESS = {"add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype", "trust_remote_code"}
HARMLESS |= {"unpad_inputs", "use_memory_efficient_attention", "use_safetensors"}
# Settings of a Transformer that change texts or vectors unless they are empty.
EMPTY = ("processing_kwargs", "tokenizer_name_or_path")
LENGTHS = ("query_length", "document_length", "query_expansion")
LATE = ("MultiVectorEncoder", "ColBERT")
# {model_type: (transformer_task, output of the model, its name for later modules)} of a Transformer that is used as it is.
TRANSFORMERS = {
    "SentenceTransformer": ("feature-extraction", "last_hidden_state", "token_embeddings"),
    "CrossEncoder": ("sequence-classification", "logits", "scores"),
    "SparseEncoder": ("fill-mask", "logits", "token_embeddings"),
    **dict.fromkeys(LATE, ("feature-extraction", "last_hidden_state", "token_embeddings")),
}
# Ours by the names that a Pooling module has for them, and by its older switches, in the order in which it joins their vectors.
POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "sqrtmean",
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
}
LONGEST_PATH = 60  # characters, of at most 4 bytes: file systems take names of 255 bytes
SWITCHES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
# Activations by the last part of the names that PyTorch has for them.
ACTIVATIONS: dict[str, Activation | None] = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
OUTPUTS: dict[str, Literal["identity", "sigmoid"]] = {"Identity": "identity", "Sigmoid": "sigmoid"}


class Module(NamedTuple):
    """An entry of modules.json: the last part of its type (of one that is not of sentence-transformers, the whole), and its folder."""

    kind: str
    folder: Path


def read_modules(root: Path) -> list[Module]:
    """The modules of a folder in their order; an empty list for a folder without modules.json."""
    path = root / "modules.json"
    if not path.exists():
        return []
    found = []
    for entry in read_object(path, list):
        kind = entry.get("type")
        if not isinstance(kind, str):
            raise ConfigError(f"{path}: a module's type is {short(kind)}, expected a string such as {PACKAGE}models.Pooling")
        found.append(Module(kind.rpartition(".")[2] if kind.startswith(PACKAGE) else kind, _inside(root, entry.get("path", ""))))
    return found


def body_of(root: Path) -> Path:
    """The folder of the transformer itself: `root`, or the one that an older modules.json names, such as 0_Transformer."""
    modules = read_modules(root)
    return modules[0].folder if modules and modules[0].kind == "Transformer" else root


def _inside(root: Path, path: Any) -> Path:
    """The folder of a module, from its path in modules.json. Links are followed, because hub caches consist of them."""
    fits = isinstance(path, str) and path.isprintable() and len(path) <= LONGEST_PATH
    if not isinstance(path, str) or not fits or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(f"{root / 'modules.json'}: a module's path is {short(path)}, expected one inside the folder, such as '1_Pooling'")
    return root / path


def add_tasks(s: Source, made: dict[str, Tensor], tasks: dict[str, Any], hidden: int, most: int, pooling: Pooling = "mean") -> None:
    """Add to `tasks` the embed head that the modules around a transformer make, with its tensors to `made`, and set how classes are scored.

    tasks    {name: head} of the transformer itself
    hidden   columns of its states
    most     the most tokens of a text
    pooling  of a transformer without heads and without modules
    """
    if "HF_ColBERT" in (s.data.get("architectures") or ()):
        tasks["embed_tokens"] = stanford_head(s, made, most)
        return
    modules = read_modules(s.root)
    around = read_options(s.root / AROUND) if modules else {}
    kind = around.get("model_type", "ColBERT" if any(m.kind.startswith("pylate.") for m in modules) else "SentenceTransformer")
    if not isinstance(kind, str) or kind not in TRANSFORMERS:
        raise _refuse(s.root / AROUND, "model_type", kind, " and ".join(TRANSFORMERS))
    if modules:
        _check_transformer(s, modules, kind in LATE, *TRANSFORMERS[kind])
    if modules and kind == "SentenceTransformer":
        tasks["embed"] = _embed(s, made, modules[1:], around, hidden)
    elif modules and kind == "SparseEncoder":
        tasks["embed_sparse"] = sparse_head(s, [(m.kind, m.folder) for m in modules], around, tasks)
    elif modules and kind in LATE:
        tasks["embed_tokens"] = token_head(s, made, [(m.kind, m.folder) for m in modules], around, most)
    elif not tasks:
        tasks["embed"] = Embed(pooling, False)
    if kind == "CrossEncoder":
        _check_cross_encoder(s, modules, around, tasks)
    if "classify" in tasks:
        tasks["classify"] = _scored(s, tasks["classify"], around if kind == "CrossEncoder" else None)


def _check_transformer(s: Source, modules: list[Module], late: bool, task: str, output: str, name: str) -> None:
    """Raise ConfigError unless a Transformer comes first and only there, and its settings leave texts and states as they are.

    late  the head of a late interaction model reads the lengths and the expansion of queries
    """
    kinds = [module.kind.replace("MLMTransformer", "Transformer") if task == "fill-mask" else module.kind for module in modules]
    if kinds[0] != "Transformer" or "Transformer" in kinds[1:]:
        raise ConfigError(f"{s.root / 'modules.json'} lists {', '.join(map(short, kinds))}, expected a Transformer first, and only one")
    options, path = sentence_options(s.folder)
    for key, value in (("transformer_task", task), ("module_output_name", name)):
        if options.get(key) not in (None, value):
            raise _refuse(path, key, options[key], value)
    for key in EMPTY if late else EMPTY + LENGTHS:
        if options.get(key):
            raise _refuse(path, key, options[key], "an empty one")
    for key in ("model_kwargs", "model_args", "config_kwargs", "config_args"):  # tokenizer.py reads those of the tokenizer
        given = options.get(key) or {}
        if not isinstance(given, dict) or not given.keys() <= HARMLESS:
            odd = next(k for k in given if k not in HARMLESS) if isinstance(given, dict) else given
            raise _refuse(path, key, odd, ", ".join(sorted(HARMLESS)))
    ways = options.get("modality_config") or {}
    way = ways.get("text", {}) if isinstance(ways, dict) else None
    if not isinstance(way, dict) or ways.keys() - {"text"} or way.get("method_output_name", output) != output:
        raise _refuse(path, "modality_config", ways, f"text with {output}")


# --- embedders -------------------------------------------------------------------------------------


def _embed(s: Source, made: dict[str, Tensor], modules: list[Module], around: dict[str, Any], hidden: int) -> Embed:
    """The embed head of the modules after the transformer; the tensors of its linear layers are added to `made`."""
    path = s.root / "modules.json"
    if not modules or modules[0].kind != "Pooling":
        found = short(modules[0].kind) if modules else "nothing"
        raise ConfigError(
            f"{path}: after the Transformer comes {found}, expected a Pooling: without one, a text has a vector for each token"
        )
    pooling, include_prompt = _pooling(modules[0].folder / "config.json")
    layers: list[Project | Unit] = []
    for module in modules[1:]:
        if module.kind == "Dense":
            layers.append(_dense(s, made, module.folder, len(layers)))
        elif module.kind == "Normalize":
            _check_keys_of_module(module.folder, read_options(module.folder / "config.json"))
            layers.append(Unit())
        elif module.kind != "Dropout":
            supported = "Transformer, Pooling, Dense, Normalize and Dropout"
            raise ConfigError(f"{path}: module {short(module.kind)} is not supported, only {supported}")
    normalize = bool(layers) and isinstance(layers[-1], Unit)
    while layers and isinstance(layers[-1], Unit):
        layers.pop()
    head = Embed(pooling, normalize, tuple(layers), similarity=_similarity(s, around), prompts=_prompts(s, around))
    return dataclasses.replace(
        head, dim=_dim(s, around, head.widths(hidden)[-1]), default_prompt=around.get("default_prompt_name"), include_prompt=include_prompt
    )


def _pooling(path: Path) -> tuple[Pooling | tuple[Pooling, ...], bool]:
    """(kinds of pooling, whether prompts are pooled) that a Pooling module's config.json turns on, by name or by the older switches."""
    options = read_object(path, dict)
    prefix = "pooling_mode_"
    switches = {key.removeprefix(prefix): on for key, on in options.items() if key.startswith(prefix)}
    odd = [name for name, on in switches.items() if not isinstance(on, bool) or (on and name not in SWITCHES)]
    if odd:
        raise _refuse(path, prefix + odd[0], switches[odd[0]], f"{', '.join(SWITCHES)}, each true or false")
    names = options.get("pooling_mode")
    if names is None:
        names = [way for way, name in zip(POOLINGS, SWITCHES, strict=True) if switches.get(name)] or ["mean"]
    names = names if isinstance(names, list) else [names]
    if not names or not all(isinstance(name, str) and name in POOLINGS for name in names):
        raise ConfigError(f"{path}: pooling {listed(map(short, names), ' + ') or 'none'} is not supported, only {', '.join(POOLINGS)}")
    include_prompt = options.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise _refuse(path, "include_prompt", include_prompt, "true or false")
    kinds = tuple(POOLINGS[name] for name in names)
    return kinds[0] if len(kinds) == 1 else kinds, include_prompt


def _dense(s: Source, made: dict[str, Tensor], folder: Path, i: int) -> Project:
    """Layer `i` of an embed head from the folder of a Dense module; its tensors are added to `made`."""
    path = folder / "config.json"
    options = read_object(path, dict)
    _check_keys_of_module(folder, options)
    if options.get("use_residual", False) is not False:
        raise _refuse(path, "use_residual", options["use_residual"], "false")
    bias = options.get("bias", True)
    if not isinstance(bias, bool):
        raise _refuse(path, "bias", bias, "true or false")
    activation = _activation(path, "activation_function", options.get("activation_function", "torch.nn.Tanh"), ACTIVATIONS)
    part = Source(options, s.read(folder), folder)
    weight = part.get("linear.weight")
    made[f"tasks.embed.layers.{i}.weight"] = weight
    if bias:
        made[f"tasks.embed.layers.{i}.bias"] = part.vector("linear.bias")
    part.check()
    sizes = tuple(part.number(options, key, 1) for key in ("out_features", "in_features"))
    if weight.data.shape != sizes:
        raise ConfigError(f"{path}: out_features and in_features are {sizes}, but linear.weight is {weight.data.shape}")
    return Project(sizes[0], bias, activation)


def _check_keys_of_module(folder: Path, options: dict[str, Any]) -> None:
    """Raise ConfigError unless a module reads and writes the vector of a text."""
    for key in ("module_input_name", "module_output_name"):
        if options.get(key) not in (None, "sentence_embedding"):
            raise _refuse(folder / "config.json", key, options[key], "sentence_embedding")


def _activation(path: Path, key: str, name: Any, known: dict[str, Any]) -> Any:
    """The value in `known` for the name of a class of PyTorch, such as torch.nn.modules.activation.Tanh."""
    last = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.nn.") else None
    if last not in known:
        raise _refuse(path, key, name, ", ".join(known) + " of torch.nn")
    return known[last]


def _dim(s: Source, around: dict[str, Any], width: int) -> int | None:
    """The numbers that truncate_dim keeps of a vector of `width`; None: all."""
    dim = around.get("truncate_dim")
    if dim is None:
        return None
    if type(dim) is not int or dim < 1:
        raise _refuse(s.root / AROUND, "truncate_dim", dim, "null and integers from 1")
    return dim if dim < width else None


def _similarity(s: Source, around: dict[str, Any]) -> Similarity:
    name = around.get("similarity_fn_name")
    if name is not None and name not in get_args(Similarity):
        raise _refuse(s.root / AROUND, "similarity_fn_name", name, ", ".join(get_args(Similarity)))
    return name or "cosine"


def _prompts(s: Source, around: dict[str, Any]) -> tuple[Prompt, ...]:
    """The prompts of a model; those without text, which every model has, are left out. A default that is not among them is refused."""
    path, prompts, default = s.root / AROUND, around.get("prompts") or {}, around.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise _refuse(path, "prompts", prompts, "an object of names and texts")
    found = tuple(Prompt(name, text or "") for name, text in prompts.items() if text or name not in PROMPTS)
    if default is not None and default not in (*PROMPTS, *prompts):
        raise _refuse(path, "default_prompt_name", default, f"the name of a prompt: {listed(map(short, prompts)) or 'none is there'}")
    return found


# --- cross-encoders --------------------------------------------------------------------------------


def _check_cross_encoder(s: Source, modules: list[Module], around: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Raise ConfigError unless a cross-encoder is a classifier of transformers, without further modules or a prompt."""
    if modules[1:] or "classify" not in tasks:
        what = f"module {short(modules[1].kind)}" if modules[1:] else "a model without classes"
        raise ConfigError(f"{s.root / 'modules.json'}: {what} is not supported in a cross-encoder, only a Transformer that classifies")
    prompts = {prompt.name: prompt.text for prompt in _prompts(s, around)}
    if prompts.get(around.get("default_prompt_name") or ""):
        raise _refuse(s.root / AROUND, "default_prompt_name", around["default_prompt_name"], "null in a cross-encoder")


def _scored(s: Source, head: Classify, around: dict[str, Any] | None) -> Classify:
    """The head with the scores that CrossEncoder.predict gives, if the files say that it is a cross-encoder.

    around  the settings of a cross-encoder with modules, or None
    """
    path, own = s.folder / "config.json", s.data.get("sentence_transformers")
    if own is not None and not isinstance(own, dict):
        raise _refuse(path, "sentence_transformers", own, "an object")
    named = [
        (s.root / AROUND, "activation_fn", (around or {}).get("activation_fn")),
        (path, "sentence_transformers.activation_fn", (own or {}).get("activation_fn")),
        (path, "sbert_ce_default_activation_function", s.data.get("sbert_ce_default_activation_function")),
    ]
    output: Literal["identity", "sigmoid"] = "sigmoid" if len(head.labels) == 1 else "identity"
    for where, key, name in named:
        if name is not None:
            output = _activation(where, key, name, OUTPUTS)
            break
    else:
        if around is None and own is None:
            return head
    return dataclasses.replace(head, output=output)


def _refuse(path: Path, what: str, value: Any, supported: str) -> ConfigError:
    """The error for a setting `what` in file `path` whose value is not supported."""
    return ConfigError(f"{path}: {what} {short(value)} is not supported, only {supported}")
