"""The tokenizer classes of transformers 5.24 whose tokenizers are made anew from a vocabulary and a few settings.

For these classes transformers takes the vocabulary alone from a tokenizer.json. The normalizer, the splitting of words and the
template follow from the class and tokenizer_config.json. Classes that are not listed here take a tokenizer.json as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError, short
from .added_tokens import Token, read_token
from .vocabularies import Json, read_camembert, read_fairseq, read_merges, read_pieces, read_text

__all__ = ["ALIASES", "KINDS", "MODEL_CLASSES", "PYTHON", "Kind", "Options", "template"]

Placed = tuple[str, int]  # a token and its id


class Options:
    """The settings of tokenizer_config.json, checked when asked for."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def flag(self, key: str, default: bool) -> bool:
        """The setting, true or false. Raises ConfigError."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path}: {key} is {short(value)}, expected true or false")
        return value

    def choice(self, key: str, *choices: str | bool | None) -> str | bool | None:
        """The setting, one of `choices`, by default the first. Raises ConfigError."""
        value = self.values.get(key, choices[0])
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ConfigError(f"{self.path}: {key} is {short(value)}, expected one of {', '.join(map(repr, choices))}")


class Kind(NamedTuple):
    """How a tokenizer of one class is made.

    model   the kind of its vocabulary, as in tokenizer.json
    files   the files with its vocabulary, in a folder without tokenizer.json
    read    their reader (vocabularies.py)
    tokens  its special tokens, by name
    types   whether its model gets token types, where the settings do not say
    parts   from (what the reader gave, options, the special tokens' names) to the parts around the vocabulary
    post    from ({name: (special token, id)}, options) to the post_processor
    extra   further special tokens
    """

    model: str
    files: tuple[str, ...]
    read: Callable[[Path, int, Mapping[str, str]], Json]
    tokens: Mapping[str, Token]
    types: bool
    parts: Callable[[Json, Options, Mapping[str, str]], Json]
    post: Callable[[Mapping[str, Placed], Options], Json]
    extra: tuple[Token, ...] = ()


# --- the parts around a vocabulary ---


def _wordpiece(read: Json, options: Options, names: Mapping[str, str]) -> Json:
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": options.flag("tokenize_chinese_chars", True),
        "strip_accents": options.choice("strip_accents", None, True, False),
        "lowercase": options.flag("do_lower_case", True),
    }
    model = {"unk_token": names.get("unk", "[UNK]"), "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": decoder, "model": model}


def _byte_level(read: Json, options: Options, names: Mapping[str, str]) -> Json:
    part = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model: Json = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    splitter = part | {"add_prefix_space": options.flag("add_prefix_space", False)}
    return {"normalizer": None, "pre_tokenizer": splitter, "decoder": part, "model": model}


def _fairseq(read: Json, options: Options, names: Mapping[str, str]) -> Json:
    spaces = _spaces(options, "never")
    splitter = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaces]}
    model = {"unk_id": 3, "byte_fallback": False}
    return {"normalizer": _precompiled(read.get("normalizer")), "pre_tokenizer": splitter, "decoder": spaces, "model": model}


def _camembert(read: Json, options: Options, names: Mapping[str, str]) -> Json:
    unknown = next((i for i, (piece, _) in enumerate(read["vocab"]) if piece == names.get("unk")), 0)
    return _fairseq(read, options, names) | {"model": {"unk_id": unknown, "byte_fallback": False}}


def _deberta(read: Json, options: Options, names: Mapping[str, str]) -> Json:
    spaces = _spaces(options, "first")
    blank = {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}
    normalizers = [blank, {"type": "NFC"}, {"type": "Strip", "strip_left": False, "strip_right": True}]
    if options.flag("do_lower_case", False):
        normalizers.insert(0, {"type": "Lowercase"})
    splitters = [spaces]
    if options.flag("split_by_punct", False):
        splitters.insert(0, {"type": "Punctuation", "behavior": "Isolated"})
    entry = [names.get("unk"), 0.0]
    unknown = next((i for i, found in enumerate(read["vocab"]) if found == entry), read.get("unk_id", 1))
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters},
        "decoder": spaces,
        "model": {"unk_id": unknown, "byte_fallback": False},
    }


def _spaces(options: Options, otherwise: str) -> Json:
    """The part that marks spaces, which puts one before a text or, if the settings say so, does as `otherwise` says."""
    scheme = "always" if options.flag("add_prefix_space", True) else otherwise
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}


def _precompiled(normalizer: Any) -> Json | None:
    """The map of characters in a tokenizer.json's normalizer."""
    parts = normalizer.get("normalizers") if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" else [normalizer]
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and part.get("type") == "Precompiled":
            return part
    return None


# --- templates ---


def template(before: Placed, between: list[Placed], after: Placed, kind: int) -> Json:
    """The post_processor that puts (token, id) before, between and after texts. kind: the token type of a second text."""

    def special(name: str, type_id: int) -> Json:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    first = [special(before[0], 0), {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": kind}}, special(after[0], kind)]
    return {
        "type": "TemplateProcessing",
        "single": [*first, special(after[0], 0)],
        "pair": [*first, *(special(name, 0) for name, _ in between), *second],
        "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in (before, *between, after)},
    }


def _bert_post(tokens: Mapping[str, Placed], options: Options) -> Json:
    return template(tokens["cls"], [tokens["sep"]], tokens["sep"], 1)


def _two_between(before: str, after: str) -> Callable[[Mapping[str, Placed], Options], Json]:
    return lambda tokens, options: template(tokens[before], [tokens[after]] * 2, tokens[after], 0)


def _roberta_post(tokens: Mapping[str, Placed], options: Options) -> Json:
    flags = {"trim_offsets": options.flag("trim_offsets", True), "add_prefix_space": options.flag("add_prefix_space", False)}
    return {"type": "RobertaProcessing", "sep": list(tokens["sep"]), "cls": list(tokens["cls"])} | flags


def _mpnet_post(tokens: Mapping[str, Placed], options: Options) -> Json:
    return _roberta_post(tokens, Options(options.path, {}))


# --- the classes ---


def _names(names: Mapping[str, str], lstrip: bool = False) -> dict[str, Token]:
    """Special tokens by name. lstrip: whether the mask takes in the space before it."""
    found = {}
    for name, content in names.items():
        found[name] = read_token({"content": content, "lstrip": lstrip and name == "mask", "special": True, "normalized": False}, name)
    return found


_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_DEBERTA = {"bos": "[CLS]", "eos": "[SEP]"} | _BERT
_UNUSED = {name: name for name in ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")}
_TEXT, _MERGES, _PIECES = ("vocab.txt",), ("vocab.json", "merges.txt"), ("sentencepiece.bpe.model",)
_bert = Kind("WordPiece", _TEXT, read_text, _names(_BERT), True, _wordpiece, _bert_post)
_roberta = Kind("BPE", _MERGES, read_merges, _names(_FAIRSEQ), False, _byte_level, _roberta_post)
_xlm_roberta = Kind("Unigram", _PIECES, read_fairseq, _names(_FAIRSEQ), False, _fairseq, _two_between("bos", "eos"))
KINDS = {
    "BertTokenizer": _bert,
    "CamembertTokenizer": _xlm_roberta._replace(
        read=read_camembert, tokens=_names(_FAIRSEQ, lstrip=True), parts=_camembert, extra=tuple(_names(_UNUSED).values())
    ),
    "DebertaTokenizer": _roberta._replace(tokens=_names(_DEBERTA), types=True, post=_two_between("cls", "sep")),
    "DebertaV2Tokenizer": Kind("Unigram", ("spm.model",), read_pieces("spm.model"), _names(_DEBERTA), True, _deberta, _bert_post),
    "DistilBertTokenizer": _bert._replace(types=False),
    "MPNetTokenizer": _bert._replace(tokens=_names(_FAIRSEQ | {"unk": "[UNK]"}, lstrip=True), types=False, post=_mpnet_post),
    "RobertaTokenizer": _roberta,
    "XLMRobertaTokenizer": _xlm_roberta,
}
# Other names of these classes.
ALIASES = {
    "BartTokenizer": "RobertaTokenizer",
    "DPRContextEncoderTokenizer": "BertTokenizer",
    "DPRQuestionEncoderTokenizer": "BertTokenizer",
    "DPRReaderTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "LEDTokenizer": "RobertaTokenizer",
    "LayoutLMTokenizer": "BertTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
    "LxmertTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "MvpTokenizer": "RobertaTokenizer",
    "SqueezeBertTokenizer": "BertTokenizer",
}
# The class of a model (model_type) whose files name none. None: the class that they name does not count either.
MODEL_CLASSES = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "data2vec-text": "RobertaTokenizer",
    "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "dpr": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "gte": "XLMRobertaTokenizer",
    "jina_embeddings_v3": "XLMRobertaTokenizer",
    "megatron-bert": "BertTokenizer",
    "modernbert": None,
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "xlm-roberta-xl": None,
}
# Classes that are Python code and not the tokenizers library, and what that code does.
PYTHON = {
    "BertJapaneseTokenizer": "splits Japanese words with MeCab, Sudachi or Juman++",
    "BertTokenizerLegacy": "splits words",
    "BertweetTokenizer": "rewrites tweets",
    "CanineTokenizer": "makes each character a token",
    "CharacterTokenizer": "makes each character a token",
    "EsmTokenizer": "splits amino acids",
    "FlaubertTokenizer": "splits words with Moses",
    "PhobertTokenizer": "splits syllables of Vietnamese words",
    "RoCBertTokenizer": "adds shapes and sounds of characters",
    "RoFormerTokenizer": "splits Chinese words with jieba",
    "TapasTokenizer": "reads tables",
    "XLMTokenizer": "splits words with Moses",
}
