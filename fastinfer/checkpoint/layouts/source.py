"""Source, a foreign checkpoint being read, and the parts that several layouts share: norms, linear maps and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...activations import Activation
from ...config import MAX_SIZE, Classify, Config, HeadLayer, Ids, Stored, Tag
from ...errors import CheckpointError, CheckpointWarning, ConfigError, listed, short, warn
from ..read import map_folder
from ..tensor import Tensor
from .names import in_body
from .tokenizer import Found, find_tokenizer

__all__ = [
    "Source",
    "activation",
    "classify",
    "halves",
    "linear",
    "norm",
    "refuse",
    "require",
    "special_ids",
    "stack",
    "stored_dtypes",
    "tag",
    "tied",
    "zeros",
]

# Heads that fastinfer does not have, by a part of their tensors' names. Other tensors that readers drop are buffers or copies.
NOT_HERE = {
    "seq_relationship.": "the head for the next sentence",
    "discriminator_predictions.": "the head for replaced tokens",
    "mask_predictions.": "the head of the mask's training",
    "pooler.": "the pooler",
}


class Source:
    """A foreign checkpoint being read. It records which tensors were taken, so that config() can report missing and unknown ones.

    data    the object in its config.json
    stored  its tensors by the names of names.bare()
    folder  holds config.json and the tensors
    root    the folder that was opened: `folder`, or one around it
    read    a function from another folder to its tensors
    """

    def __init__(
        self,
        data: dict[str, Any],
        stored: Mapping[str, Tensor],
        folder: Path,
        root: Path | None = None,
        read: Callable[[Path], dict[str, Tensor]] = map_folder,
    ) -> None:
        self.data, self.folder, self.root, self.read = data, folder, root or folder, read
        self.stored = stored
        self.taken: set[str] = set()
        self.left: set[str] = set()
        self.problems: list[str] = []
        self.tokenizer: Found | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def prefix(self, name: str) -> str:
        """What stands before `name` in the shortest stored name that ends with it: the name of the encoder inside a model with heads."""
        return min((stored.removesuffix(name) for stored in self.stored if stored.endswith(name)), key=len, default="")

    def get(self, name: str, ndim: int = 2) -> Tensor:
        """The tensor `name`. If it is missing or unusable, the result is empty and config() raises the error."""
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
        """A bias or a norm's weight, converted to float32."""
        return self.get(name, ndim=1).to("float32")

    def number(self, at: Mapping[str, Any], key: str, low: int, high: int = MAX_SIZE, *, kind: Any = int, default: Any = None) -> Any:
        """at[key], checked to be an integer (or a number, if kind is float) from low to high. Raises ConfigError."""
        value = at.get(key, default)
        if type(value) not in (int, kind) or not low <= value <= high:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"{self.folder / 'config.json'}: {key} is {short(value)}, expected {what} from {low} to {high}")
        return kind(value)

    def drop(self, *endings: str) -> None:
        """Leave out the tensors whose names have one of these endings, unless they were taken."""
        self.left |= {name for name in self.stored if name.endswith(endings)} - self.taken

    def labels(self, count: int) -> tuple[str, ...]:
        """The names of `count` classes: from id2label if it names exactly these, else LABEL_i.

        Without an id2label, LABEL_i is what transformers says, too. An id2label that does not fit gives a CheckpointWarning.
        """
        names = self.data.get("id2label")
        found = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
        keys = [str(i) for i in range(count)]
        if found.keys() == set(keys) and len(set(found.values())) == count:
            return tuple(found[k] for k in keys)
        if names is not None and not self.problems:  # else the tensors are wrong, which is an error
            had = f"{len(set(found.values()))} different names for {len(found)} classes" if found else short(names)
            wanted = f"expected a name of its own for each of {count}: they are called LABEL_0 and so on"
            warn(CheckpointWarning(f"{self.folder / 'config.json'}: id2label has {had}, {wanted}"))
        return tuple(f"LABEL_{i}" for i in range(count))

    def config(self, **fields: Any) -> Config:
        """Config(**fields), when all tensors were taken. Raises CheckpointError that lists every missing, misshapen or unknown tensor.

        Unknown tensors outside the body are left out, as transformers does, and a CheckpointWarning names them. Where the
        checkpoint brings code of its own (auto_map), they are an error, because that code may use them.
        """
        unknown = sorted(set(self.stored) - self.taken - self.left)
        refused = unknown if self.data.get("auto_map") else [name for name in unknown if in_body(name, fields["layers"])]
        if self.problems or refused:
            raise self._other_tensors(unknown)
        try:
            made = Config(**fields)
        except ConfigError as error:
            raise ConfigError(f"{self.folder / 'config.json'}: {error}") from None
        self._tell(unknown)
        return made

    def check(self) -> None:
        """Raise CheckpointError that lists every missing, misshapen or unknown tensor, unless all were taken."""
        unknown = sorted(set(self.stored) - self.taken)
        if self.problems or unknown:
            raise self._other_tensors(unknown)

    def _other_tensors(self, unknown: list[str]) -> CheckpointError:
        lines = self.problems + [f"unknown  {name} {self.stored[name].data.shape}" for name in unknown]
        count = f"{len(lines)} tensor{'s' * (len(lines) > 1)}"
        return CheckpointError(f"{self.folder}: {count} not as its config.json says:\n  " + listed(lines, "\n  "))

    def _tell(self, unknown: list[str]) -> None:
        """Name what is left out of the model, once."""
        parts = [said for part, said in NOT_HERE.items() if any(part in name for name in self.left)]
        if (self.root / "modules.json").exists() and NOT_HERE["pooler."] in parts:
            parts.remove(NOT_HERE["pooler."])  # the modules say how to pool
        if unknown:
            parts.append(f"{len(unknown)} tensor{'s' * (len(unknown) > 1)} that its layout does not have ({listed(map(short, unknown))})")
        if parts:
            warn(CheckpointWarning(f"{self.folder}: {' and '.join(parts)} {'is' if len(parts) == 1 else 'are'} left out"))


def refuse(source: Source, what: str, value: Any, supported: str) -> ConfigError:
    """The error for a setting `what` whose value is not supported."""
    return ConfigError(f"{source.folder / 'config.json'}: {what} {short(value)} is not supported, only {supported}")


def stack(parts: Iterable[Tensor]) -> Tensor:
    """Tensors concatenated along their rows; parts of different dtypes become float32."""
    parts = list(parts)
    if len({t.data.shape[1:] for t in parts}) > 1:
        return parts[0]  # its shape is wrong, and check() will name it
    if len({t.dtype for t in parts}) > 1:
        parts = [t.to("float32") for t in parts]
    stacked = Tensor(np.concatenate([t.data for t in parts]), parts[0].dtype)
    for part in parts:
        part.release()
    return stacked


def stored_dtypes(made: dict[str, Tensor]) -> Stored:
    """The stored dtype of each family. Where a family mixes dtypes, its tensors in `made` are converted to float32."""
    families = {
        "embeddings": [n for n in made if n in ("embedding.word", "embedding.position", "embedding.token_type")],
        "trees": [n for n in made if n.endswith(".nodes")],
    }
    special = {n for names in families.values() for n in names}
    families["matrices"] = [n for n, t in made.items() if n not in special and t.data.ndim == 2 and n.endswith(".weight")]
    dtypes: dict[str, Any] = {}
    for family, names in families.items():
        kinds = {made[n].dtype for n in names}
        dtypes[family] = kinds.pop() if len(kinds) == 1 else "float32"
        for n in names:
            made[n] = made[n].to(dtypes[family])
    return Stored(**dtypes)


def norm(s: Source, ours: str, theirs: str, bias: bool = True) -> dict[str, Tensor]:
    """The weight and bias of a LayerNorm, renamed from `theirs` to `ours`. bias False: it has none, so it is zeros here."""
    weight = s.vector(f"{theirs}.weight")
    return {f"{ours}.weight": weight, f"{ours}.bias": s.vector(f"{theirs}.bias") if bias else zeros(len(weight.data))}


def linear(s: Source, ours: str, theirs: str, bias: bool = True) -> dict[str, Tensor]:
    """The weight and bias of a linear map, renamed from `theirs` to `ours`. bias False: it has none, so it is zeros here."""
    weight = s.get(f"{theirs}.weight")
    return {f"{ours}.weight": weight, f"{ours}.bias": s.vector(f"{theirs}.bias") if bias else zeros(len(weight.data))}


def zeros(count: int) -> Tensor:
    """A bias of zeros."""
    return Tensor(np.zeros(count, np.float32), "float32")


def halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second half of the rows of a weight or bias."""
    middle = len(weight.data) // 2
    return Tensor(weight.data[:middle], weight.dtype), Tensor(weight.data[middle:], weight.dtype)


# The names of activations in config.json, by those here.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}


def activation(s: Source, key: str, default: str = "gelu") -> Activation:
    """The activation that config.json names under `key`. Raises ConfigError for one that is not supported."""
    name = s.data.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise refuse(s, key, name, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def require(s: Source, **expected: Any) -> None:
    """Raise ConfigError unless each named setting of config.json is absent, null or as expected."""
    for key, want in expected.items():
        got = s.data.get(key)
        if got is not None and got != want:
            raise refuse(s, key, got, repr(want))


def tied(s: Source, made: dict[str, Tensor], decoder: str) -> bool:
    """Whether the decoder is, or equals, the word embedding. If not, it is added to `made` as a tensor of its own."""
    if decoder not in s and s.data.get("tie_word_embeddings", True):
        return True
    weight = s.get(decoder)
    word = made["embedding.word"]
    if weight.data.shape == word.data.shape and weight.dtype == word.dtype and np.array_equal(weight.data, word.data):
        return True
    made["tasks.fill_mask.decoder.weight"] = weight
    return False


def classify(s: Source, made: dict[str, Tensor], layers: list[tuple[str, Any]], last: str) -> Classify:
    """A classifier of the given (name, activation) layers and the linear map `last`; its tensors are added to `made`.

    Its scores are those of transformers' pipeline.
    """
    widths = []
    for i, (theirs, function) in enumerate(layers):
        made |= linear(s, f"tasks.classify.layers.{i}", theirs)
        widths.append(HeadLayer(max(1, len(made[f"tasks.classify.layers.{i}.weight"].data)), function))
    made |= linear(s, "tasks.classify.out", last)
    labels = s.labels(max(1, len(made["tasks.classify.out.weight"].data)))
    kind = s.data.get("problem_type")
    output: Any = "softmax"
    if kind == "regression":
        output = "identity"
    elif kind == "multi_label_classification" or len(labels) == 1:
        output = "sigmoid"
    return Classify(labels, output, "cls", tuple(widths))


def tag(s: Source, made: dict[str, Tensor]) -> Tag:
    """The head that tags tokens; its tensors are added to `made`."""
    made |= linear(s, "tasks.tag.out", "classifier")
    return Tag(s.labels(max(1, len(made["tasks.tag.out.weight"].data))))


def special_ids(s: Source, vocabulary: int) -> Ids:
    """Ids of the special tokens. The folder's tokenizer, which knows them, is kept as s.tokenizer."""
    s.tokenizer = find_tokenizer(s.folder, s.data, vocabulary)
    return s.tokenizer.ids
