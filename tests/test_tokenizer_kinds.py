"""Tokenizers of Hugging Face folders give the ids and token types of transformers, whichever files they are read from."""

import json
import warnings

import pytest
from lines import lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fastinfer.checkpoint.layouts.tokenizer import find_tokenizer
from fastinfer.tokenizer_file import open_tokenizer

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
ROOM = 8  # ids that the model has beyond the vocabulary, for added tokens
PAIRS = 200


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="the oracle needs transformers")


@pytest.fixture(scope="module")
def trained():
    """{kind of model: a tokenizer trained on the lines}."""
    made = {}
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(lines(), trainers.WordPieceTrainer(vocab_size=4000, special_tokens=BERT, show_progress=False))
    made["WordPiece"] = raw
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*FAIRSEQ, "<mask>", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    raw.train_from_iterator(
        lines(), trainers.BpeTrainer(vocab_size=3000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    made["BPE"] = raw
    raw = Tokenizer(models.Unigram())
    raw.normalizer, raw.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = [*FAIRSEQ, "<mask>", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    raw.train_from_iterator(
        lines()[:1000], trainers.UnigramTrainer(vocab_size=3000, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    made["Unigram"] = raw
    return made


def write(folder, config, files):
    """A folder of a model with these files, each a str or an object that becomes JSON."""
    for name, content in {"config.json": config, **files}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def compare(transformers, folder, vocabulary):
    """Assert that the folder's tokenizer equals that of transformers on all lines, and on pairs of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    found = find_tokenizer(folder, config, vocabulary)
    assert found.file, found.about
    raw = open_tokenizer(found.file, vocabulary)
    firsts, seconds = lines(), lines()[: -PAIRS - 1 : -1]
    for ours, theirs in (
        (firsts, (firsts,)),
        (list(zip(firsts[:PAIRS], seconds, strict=True)), (firsts[:PAIRS], seconds)),
    ):
        got, want = raw.encode_batch(ours), oracle(*theirs, add_special_tokens=True, return_token_type_ids=None)
        types = want.get("token_type_ids", [[0] * len(ids) for ids in want["input_ids"]])
        for text, mine, ids, type_ids in zip(ours, got, want["input_ids"], types, strict=True):
            assert mine.ids == ids, (text, mine.tokens, oracle.convert_ids_to_tokens(ids))
            assert mine.type_ids == type_ids, text
    for name, id_ in vars(found.ids).items():
        assert getattr(oracle, f"{name}_token_id") in (id_, None), name
    return found


def by_id(raw):
    return sorted(raw.get_vocab(), key=raw.get_vocab().get)


def vocab_txt(raw):
    return "".join(f"{token}\n" for token in by_id(raw))


WORDPIECE = {
    "nothing": {},
    "cased": {"do_lower_case": False},
    "accents": {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    "stripped": {"do_lower_case": False, "strip_accents": True},
    "named": {"tokenizer_class": "BertTokenizerFast", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    "by class": {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False},
    "inputs": {"model_input_names": ["input_ids", "attention_mask"]},
    "other names": {"cls_token": "[MASK]", "sep_token": "[PAD]"},
    "added": {"additional_special_tokens": ["thumbs", "[new]"], "image_token": "flag"},
    "decoder": {
        "added_tokens_decoder": {
            "4": {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True},
            "4001": {"content": "word", "lstrip": False, "rstrip": False, "normalized": True, "single_word": True, "special": False},
        }
    },
}


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("settings", WORDPIECE.values(), ids=WORDPIECE)
def test_wordpiece(file, settings, transformers, trained, tmp_path):
    raw = trained["WordPiece"]
    files = {"tokenizer_config.json": settings, file: vocab_txt(raw) if file == "vocab.txt" else raw.to_str()}
    compare(transformers, write(tmp_path, {"model_type": "bert"}, files), raw.get_vocab_size() + ROOM)


def test_wordpiece_with_older_files(transformers, trained, tmp_path):
    """Names in config.json and special_tokens_map.json, added tokens in added_tokens.json."""
    raw = trained["WordPiece"]
    size = raw.get_vocab_size()
    tokens = {
        "mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": True},
        "sep_token": "[SEP]",
        "additional_special_tokens": ["tab"],
    }
    added = {"[NEW]": size, "ein": size + 1, "Müller": size + 2, "[SEP]": 3}
    files = {"vocab.txt": vocab_txt(raw), "special_tokens_map.json": tokens, "added_tokens.json": added}
    compare(transformers, write(tmp_path, {"model_type": "roberta", "tokenizer_class": "BertTokenizer"}, files), size + ROOM)
    (tmp_path / "added_tokens.json").write_text("{}")
    compare(transformers, tmp_path, size + ROOM)


def mpnet(raw):
    """The trained vocabulary with the names of MPNet's special tokens."""
    names = dict(zip(BERT, ["<pad>", "[UNK]", "<s>", "</s>", "<mask>"], strict=True))
    return "".join(f"{names.get(token, token)}\n" for token in by_id(raw))


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False, "mask_token": "<mask>", "model_input_names": ["token_type_ids"]}])
def test_mpnet(settings, transformers, trained, tmp_path):
    raw = trained["WordPiece"]
    files = {"vocab.txt": mpnet(raw), "tokenizer_config.json": settings}
    compare(transformers, write(tmp_path, {"model_type": "mpnet"}, files), raw.get_vocab_size() + ROOM)


BPE = {
    "nothing": {},
    "prefix": {"add_prefix_space": True, "trim_offsets": False},
    "mask": {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": True}},
}


@pytest.mark.parametrize("kind", ["roberta", "deberta"])
@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("settings", BPE.values(), ids=BPE)
def test_byte_level(kind, file, settings, transformers, trained, tmp_path):
    raw = trained["BPE"]
    stored = json.loads(raw.to_str())
    files = {"tokenizer.json": stored}
    if file == "vocab.json":
        merges = "".join(f"{' '.join(merge)}\n" for merge in stored["model"]["merges"])
        files = {"vocab.json": stored["model"]["vocab"], "merges.txt": "#version: 0.2\n" + merges}
    compare(transformers, write(tmp_path, {"model_type": kind}, files | {"tokenizer_config.json": settings}), raw.get_vocab_size() + ROOM)


UNIGRAM = {
    "nothing": {},
    "prefix": {"add_prefix_space": False},
    "deberta": {"do_lower_case": True, "split_by_punct": True, "model_input_names": ["input_ids"]},
    "extra": {"extra_special_tokens": ["ein"], "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}},
}


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert", "deberta-v2"])
@pytest.mark.parametrize("settings", UNIGRAM.values(), ids=UNIGRAM)
def test_unigram(kind, settings, transformers, trained, tmp_path):
    raw = trained["Unigram"]
    files = {"tokenizer.json": raw.to_str(), "tokenizer_config.json": settings}
    compare(transformers, write(tmp_path, {"model_type": kind}, files), raw.get_vocab_size() + ROOM)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A function from special pieces to the file of a sentencepiece model that was trained on the lines."""
    trainer = pytest.importorskip("sentencepiece", reason="such models are trained, and read by transformers, with sentencepiece")
    pytest.importorskip("google.protobuf", reason="transformers' reader of such models needs protobuf")

    def train(**options):
        path = tmp_path_factory.mktemp("sentencepiece") / "m"
        corpus = [line.replace("\0", " ") for line in lines()[:1000]]
        trainer.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_prefix=str(path),
            vocab_size=2000,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        return path.with_suffix(".model")

    return train


@pytest.mark.parametrize(
    ("kind", "file", "options"),
    [
        ("xlm-roberta", "sentencepiece.bpe.model", {}),
        ("xlm-roberta", "sentencepiece.bpe.model", {"user_defined_symbols": ["tab", "word"], "normalization_rule_name": "identity"}),
        ("camembert", "sentencepiece.bpe.model", {"normalization_rule_name": "nfkc_cf"}),
        ("deberta-v2", "spm.model", {"pad_id": 0, "unk_id": 3, "bos_id": 1, "eos_id": 2, "pad_piece": "[PAD]", "bos_piece": "[CLS]"}),
    ],
)
def test_sentencepiece(kind, file, options, sentencepiece, transformers, tmp_path):
    if kind == "deberta-v2":
        options = options | {"eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    write(tmp_path, {"model_type": kind}, {"added_tokens.json": {"[MASK]": 2000}} if kind == "deberta-v2" else {})
    (tmp_path / file).write_bytes(sentencepiece(**options).read_bytes())
    compare(transformers, tmp_path, 2010)


PLAIN = {
    "nothing": {},
    "ignored": {"do_lower_case": True, "add_prefix_space": True, "strip_accents": False},
    "inputs": {"model_input_names": ["input_ids", "attention_mask"]},
    "added": {"mask_token": "[MASK]", "sep_token": "tab", "extra_special_tokens": ["[new]"]},
    "decoder": {"added_tokens_decoder": {"4": {"content": "[MASK]", "lstrip": True, "special": True}, "1": {"content": "word"}}},
}
POSTS = {
    "bert": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "template": processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]),
    "sequence": processors.Sequence([processors.ByteLevel(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))]),
    "roberta": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "byte level": processors.ByteLevel(),
    "none": None,
}


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
@pytest.mark.parametrize("settings", PLAIN.values(), ids=PLAIN)
def test_a_tokenizer_json_as_it_is(post, settings, transformers, trained, tmp_path):
    """PreTrainedTokenizerFast changes neither the normalizer nor the splitting of words."""
    raw = Tokenizer.from_str(trained["WordPiece"].to_str())
    if post:
        raw.post_processor = post
    files = {"tokenizer.json": raw.to_str(), "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **settings}}
    compare(transformers, write(tmp_path, {"model_type": "bert"}, files), raw.get_vocab_size() + ROOM)


def test_unigram_as_it_is(transformers, trained, tmp_path):
    """The scores are those that the library reads, which differ in their last bit from those in the file."""
    raw = trained["Unigram"]
    files = {"tokenizer.json": raw.to_str(), "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    compare(transformers, write(tmp_path, {"model_type": "xlm-roberta"}, files), raw.get_vocab_size() + ROOM)


def test_a_file_that_agrees_with_its_class_is_not_written_anew(trained, tmp_path):
    raw = Tokenizer.from_str(trained["WordPiece"].to_str())
    raw.post_processor = POSTS["template"]
    raw.decoder = decoders.WordPiece("##")
    files = {"tokenizer.json": raw.to_str(), "tokenizer_config.json": {"do_lower_case": False}}
    found = find_tokenizer(write(tmp_path, {}, files), {"model_type": "bert"}, raw.get_vocab_size())
    assert found.file.text is found.file.stored
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert find_tokenizer(tmp_path, {"model_type": "bert"}, raw.get_vocab_size()).file.stored is None
