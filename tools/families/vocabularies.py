"""Tokenizers of the published kinds, trained here on a few sentences, with the files that their publishers ship."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .texts import CORPUS

SIZE = 320  # tokens of a vocabulary: enough for pieces of several characters
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
# What Qwen's tokenizers take as a word: a contraction, letters, one digit, other signs, line ends, blanks.
QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Vocabulary(NamedTuple):
    """A tokenizer and what else its publisher writes: tokenizer_config.json, special_tokens_map.json, and files of the vocabulary."""

    raw: Tokenizer
    config: dict[str, Any]
    special: dict[str, str]
    files: tuple[str, ...]

    def write(self, folder: Path, cuts: int = 0) -> None:
        """Write tokenizer.json, its settings and the files of the vocabulary into a folder. cuts: its own number of tokens, 0 for none."""
        raw = Tokenizer.from_str(self.raw.to_str())
        if cuts:
            raw.enable_truncation(cuts)
            raw.enable_padding(length=cuts)
        raw.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config | self.special))
        (folder / "special_tokens_map.json").write_text(json.dumps(self.special))
        ordered = [token for token, _ in sorted(self.raw.get_vocab().items(), key=lambda item: item[1])]
        if "vocab.txt" in self.files:
            (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered))
        if "merges.txt" in self.files:
            model = json.loads(self.raw.to_str())["model"]
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in merges))
            (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(ordered)}, ensure_ascii=False))

    def id_of(self, role: str) -> int | None:
        """The id of the token of a role, such as "pad"; None for a role that the vocabulary does not have."""
        return self.raw.token_to_id(self.special[f"{role}_token"]) if f"{role}_token" in self.special else None


@functools.cache
def vocabulary(kind: str) -> Vocabulary:
    """The vocabulary of a kind: a key of KINDS."""
    return KINDS[kind]()


def _frame(raw: Tokenizer, single: str, pair: str) -> None:
    """Set the post-processor that puts special tokens around a text and a pair."""
    names = {word.partition(":")[0] for word in f"{single} {pair}".split() if not word.startswith("$")}
    special = [(name, raw.token_to_id(name)) for name in sorted(names)]
    raw.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _trained(raw: Tokenizer, trainer: Any, late: Iterable[str] = ()) -> Tokenizer:
    """`raw`, trained on the corpus; the tokens `late` come after its vocabulary, as publishers have their mask tokens."""
    trainer.show_progress = False
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens([AddedToken(token, lstrip=True, special=True) for token in late])
    return raw


# --- WordPiece ---


def _wordpiece(lower: bool, first: list[str], unknown: str, late: tuple[str, ...] = ()) -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token=unknown))
    raw.normalizer = normalizers.BertNormalizer(lowercase=lower)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return _trained(raw, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=first), late)


def _bert(lower: bool = True, kind: str = "BertTokenizer") -> Vocabulary:
    raw = _wordpiece(lower, ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[UNK]")
    _frame(raw, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
    config = {
        "do_lower_case": lower,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": 64,
        "tokenizer_class": kind,
    }
    return Vocabulary(raw, config, BERT, ("vocab.txt",))


def _mpnet() -> Vocabulary:
    raw = _wordpiece(True, ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"], "[UNK]", ("<mask>",))
    _frame(raw, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    config = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None, "model_max_length": 64}
    return Vocabulary(raw, config | {"tokenizer_class": "MPNetTokenizer"}, ROBERTA | {"unk_token": "[UNK]"}, ("vocab.txt",))


# --- byte-level BPE ---


def _bytes(first: list[str], late: tuple[str, ...] = (), normalizer: Any = None, words: str = "") -> Tokenizer:
    raw = Tokenizer(models.BPE())
    if normalizer:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)
    if words:
        raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), raw.pre_tokenizer])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(raw, trainers.BpeTrainer(vocab_size=SIZE + 80, special_tokens=first, initial_alphabet=alphabet), late)


def _roberta() -> Vocabulary:
    raw = _bytes(["<s>", "<pad>", "</s>", "<unk>"], ("<mask>",))
    ids = {token: raw.token_to_id(token) for token in ("<s>", "</s>")}
    raw.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False)
    config = {"add_prefix_space": False, "model_max_length": 64, "tokenizer_class": "RobertaTokenizer"}
    return Vocabulary(raw, config, ROBERTA, ("vocab.json", "merges.txt"))


def _modernbert() -> Vocabulary:
    raw = _bytes([], ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), normalizers.NFC())
    _frame(raw, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0")
    config = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast"}
    return Vocabulary(raw, config, BERT, ())


def _qwen() -> Vocabulary:
    raw = _bytes([], ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), normalizers.NFC(), QWEN_WORDS)
    ends = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", raw.token_to_id("<|endoftext|>"))]
    )
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), ends])
    config = {"add_prefix_space": False, "model_max_length": 131072, "padding_side": "left", "tokenizer_class": "Qwen2Tokenizer"}
    return Vocabulary(raw, config, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("vocab.json", "merges.txt"))


def _mistral() -> Vocabulary:
    raw = _sentence_bpe(["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))
    _frame(raw, "<s> $A </s>", "<s> $A </s> <s>:1 $B:1 </s>:1")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return Vocabulary(raw, {"model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast"}, special, ())


def _gpt2() -> Vocabulary:
    raw = _bytes([], ("<|endoftext|>",))
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"}
    return Vocabulary(raw, config, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"), ("vocab.json", "merges.txt"))


# --- sentencepiece ---


def _unigram(first: list[str], unknown: str, late: tuple[str, ...], split: bool, normalizer: Any = None) -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    if normalizer:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if split else space
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    return _trained(raw, trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=first, unk_token=unknown), late)


def _xlmr(kind: str = "XLMRobertaTokenizer") -> Vocabulary:
    raw = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>", ("<mask>",), split=True)
    _frame(raw, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return Vocabulary(raw, {"model_max_length": 64, "tokenizer_class": kind}, ROBERTA, ())


def _camembert() -> Vocabulary:
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    raw = _unigram(first, "<unk>", ("<mask>",), split=True)
    _frame(raw, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return Vocabulary(raw, {"model_max_length": 64, "tokenizer_class": "CamembertTokenizer"}, ROBERTA, ())


def _deberta() -> Vocabulary:
    blanks = normalizers.Sequence([normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)])
    raw = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[UNK]", ("[MASK]",), split=False, normalizer=blanks)
    _frame(raw, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
    config = {"do_lower_case": False, "split_by_punct": False, "model_max_length": 64, "tokenizer_class": "DebertaV2Tokenizer"}
    return Vocabulary(raw, config, BERT | {"bos_token": "[CLS]", "eos_token": "[SEP]"}, ())


def _t5() -> Vocabulary:
    raw = _unigram(["<pad>", "</s>", "<unk>"], "<unk>", (), split=True)
    _frame(raw, "$A </s>", "$A </s> $B </s>")
    config = {"extra_ids": 0, "additional_special_tokens": [], "model_max_length": 64, "tokenizer_class": "T5Tokenizer"}
    return Vocabulary(raw, config, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, ())


def _sentence_bpe(first: list[str], normalizer: Any) -> Tokenizer:
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizer
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = [*first, *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training alone: published files have none
    raw = _trained(raw, trainers.BpeTrainer(vocab_size=SIZE + len(first), special_tokens=first))
    raw.pre_tokenizer = None
    return raw


def _gemma() -> Vocabulary:
    raw = _sentence_bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], normalizers.Replace(" ", "▁"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _frame(raw, "<bos> $A <eos>", "<bos> $A <eos> <bos>:1 $B:1 <eos>:1")
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    config = {"add_bos_token": True, "add_eos_token": True, "model_max_length": 2048, "tokenizer_class": "GemmaTokenizer"}
    return Vocabulary(raw, config, special, ())


KINDS = {
    "bert": _bert,
    "bert, cased": functools.partial(_bert, lower=False),
    "distilbert": functools.partial(_bert, kind="DistilBertTokenizer"),
    "mpnet": _mpnet,
    "roberta": _roberta,
    "xlm-r": _xlmr,
    "xlm-r, fast class": functools.partial(_xlmr, kind="PreTrainedTokenizerFast"),
    "camembert": _camembert,
    "deberta": _deberta,
    "t5": _t5,
    "modernbert": _modernbert,
    "qwen": _qwen,
    "gemma": _gemma,
    "gpt2": _gpt2,
    "mistral": _mistral,
}
