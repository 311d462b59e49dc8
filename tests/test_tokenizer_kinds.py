"""Tokenizers of Hugging Face folders give the ids and token types of transformers, whichever files they are read from."""

import json
import re
import struct
import warnings

import pytest
from conftest import make_config
from lines import lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Lowercase

import fastinfer
from fastinfer.checkpoint.layouts.sentencepiece import read_sentencepiece
from fastinfer.checkpoint.layouts.tokenizer import find_tokenizer, token_limit
from fastinfer.errors import CheckpointError, ConfigError
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
        assert [(e.ids, e.type_ids) for e in raw.encode_batch_fast(ours)] == [(e.ids, e.type_ids) for e in got]
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


# --- what cannot be ---


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, "tokenizer_class BertJapaneseTokenizer splits Japanese words with MeCab"),
        ({}, {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "tokenise with transformers, and pass ids"),
        ({"model_type": "roberta"}, {"tokenizer_class": "PhobertTokenizer"}, "PhobertTokenizer splits syllables"),
        ({}, {"tokenizer_class": "SmilesTokenizer"}, "no tokenizer.json, and its tokenizer_class SmilesTokenizer cannot be built"),
        ({"model_type": "modernbert"}, {}, "no tokenizer.json, and its tokenizer_class None cannot be built"),
        ({"model_type": "roberta"}, {}, "neither tokenizer.json nor vocab.json and merges.txt: add the missing file"),
        ({"model_type": "xlm-roberta"}, {}, "neither tokenizer.json nor sentencepiece.bpe.model"),
        ({}, {"split_special_tokens": True}, "split_special_tokens in tokenizer_config.json is not supported"),
        ({}, {"cls_token": None}, "its vocabulary has no cls token"),
    ],
)
def test_a_class_that_cannot_be_built_says_why(config, settings, said, trained, tmp_path):
    """The model still loads, for callers that pass ids, and knows the ids of its special tokens."""
    raw = trained["WordPiece"]
    config = {"model_type": "bert", **config}
    write(tmp_path, config, {"vocab.txt": vocab_txt(raw), "tokenizer_config.json": settings})
    found = find_tokenizer(tmp_path, config, raw.get_vocab_size())
    assert found.file is None
    assert said in found.about
    assert (found.ids.pad, found.ids.mask, found.ids.sep) == (0, 4, 3)


def test_a_vocabulary_of_another_kind_than_the_class(trained, tmp_path):
    write(tmp_path, {}, {"tokenizer.json": trained["BPE"].to_str()})
    found = find_tokenizer(tmp_path, {"model_type": "bert"}, 4000)
    assert found.file is None
    assert "has a 'BPE' model, but tokenizer_class BertTokenizer means WordPiece: if tokenizer.json is right, write" in found.about


TOKEN = "expected a token: a string, or an object with its content"
WRONG = {
    "class": ({"tokenizer_config.json": {"tokenizer_class": 3}}, "tokenizer_class is 3, expected the name of a class"),
    "flag": ({"tokenizer_config.json": {"do_lower_case": "yes"}}, "do_lower_case is 'yes', expected true or false"),
    "accents": ({"tokenizer_config.json": {"strip_accents": 1}}, "strip_accents is 1, expected one of None, True, False"),
    "side": ({"tokenizer_config.json": {"truncation_side": "up"}}, "truncation_side is 'up', expected one of 'left', 'right'"),
    "inputs": ({"tokenizer_config.json": {"model_input_names": "ids"}}, "model_input_names is 'ids', expected a list of names"),
    "name": ({"tokenizer_config.json": {"cls_token": 3}}, f"tokenizer_config.json: cls_token is 3, {TOKEN}"),
    "empty name": ({"special_tokens_map.json": {"cls_token": {"content": ""}}}, f"cls_token is {{'content': ''}}, {TOKEN}"),
    "flag of a name": ({"special_tokens_map.json": {"cls_token": {"content": "[CLS]", "lstrip": 1}}}, "lstrip of '[CLS]' is 1, expected"),
    "extra": ({"tokenizer_config.json": {"extra_special_tokens": 3}}, "extra_special_tokens is 3, expected a list of tokens"),
    "decoder": ({"tokenizer_config.json": {"added_tokens_decoder": []}}, r"added_tokens_decoder is [], expected an object"),
    "decoder's id": ({"tokenizer_config.json": {"added_tokens_decoder": {"x": "a"}}}, "has the id 'x', expected an integer from 0"),
    "added": ({"added_tokens.json": {"a": "b"}}, "added_tokens.json: 'a' has the id 'b', expected an integer from 0"),
    "added list": ({"added_tokens.json": []}, "added_tokens.json holds a list, expected an object"),
    "given": ({"sentence_bert_config.json": {"tokenizer_args": {"cls_token": "x"}}}, "tokenizer_args has 'cls_token', expected an object"),
    "not given": ({"sentence_bert_config.json": {"processor_kwargs": [1]}}, "processor_kwargs has [1], expected an object with model_max"),
    "lower": ({"sentence_bert_config.json": {"do_lower_case": 1}}, "sentence_bert_config.json: do_lower_case is 1, expected true or false"),
    "stored tokens": (
        {"tokenizer.json": {"model": {"vocab": {}}, "added_tokens": ["a"]}},
        "added_tokens is ['a'], expected a list of objects",
    ),
    "stored ids": ({"tokenizer.json": {"model": {"vocab": {"a": "b"}}}}, "the vocabulary gives 'a' the id 'b', expected 0 to 4099"),
    "stored list": ({"tokenizer.json": {"model": {"type": "WordPiece", "vocab": [3]}}}, "the vocab of its model is [3], which a"),
}


@pytest.mark.parametrize(("files", "said"), WRONG.values(), ids=WRONG)
def test_wrong_values_are_named(files, said, trained, tmp_path):
    write(tmp_path, {}, {"vocab.txt": vocab_txt(trained["WordPiece"]), **files})
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(said)):
        find_tokenizer(tmp_path, {"model_type": "bert"}, 4100)


def test_merges_of_other_than_two_pieces(trained, tmp_path):
    write(tmp_path, {}, {"vocab.json": {"a": 0, "b": 1, "ab": 2}, "merges.txt": "#version: 0.2\na b\na b c\n"})
    with pytest.raises(CheckpointError, match=r"merges\.txt: line 3 is 'a b c', expected two pieces with a space between them"):
        find_tokenizer(tmp_path, {"model_type": "roberta"}, 10)


# --- sentencepiece files ---


def field(number, value):
    """A field of a message of protocol buffers: an int, bytes, or a float."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    key = number << 3 | (0 if isinstance(value, int) else 2)
    return varint(key) + (varint(value) if isinstance(value, int) else varint(len(value)) + value)


def varint(number):
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def piece(text, score, *kind):
    return field(1, field(1, text.encode()) + field(2, score) + b"".join(field(3, k) for k in kind))


PIECES = piece("<unk>", 0.0, 2) + piece("▁a", -1.5) + piece("é", -2.0, 1)


def test_a_sentencepiece_model_by_hand(tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(PIECES + field(2, field(40, 0) + field(3, 1)) + field(3, field(1, b"nfkc") + field(2, b"map")) + field(9, b"x"))
    found = read_sentencepiece(path, 3)
    assert found.pieces == [("<unk>", 0.0, 2), ("▁a", -1.5, 1), ("é", -2.0, 1)]
    assert (found.unknown, found.charsmap) == (0, b"map")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has 0 pieces"),
        (PIECES[:-1], "is not a sentencepiece model: a field of 11 bytes has 10 left"),
        (b"\x0a", "is not a sentencepiece model"),
        (b"\xff" * 11, "a number has more than 10 bytes"),
        (field(1, b"\x0b"), "a field has the type 3, expected 0, 1, 2 or 5"),
        (field(1, 7), "a field holds the number 7, expected bytes"),
        (field(1, field(1, b"\xff")), "'utf-8' codec can't decode"),
        (field(1, field(1, b"a") + field(2, b"ab")), "unpack requires a buffer of 4 bytes"),
        (piece("a", float("nan")), "the piece 'a' has the score nan"),
        (piece("a", 0.0) * 8, "more than 7 pieces, but the model's vocabulary is 3"),
        (PIECES + field(2, field(40, 3)), "gives unknown ones the id 3, expected one of its pieces"),
        (PIECES + field(2, field(40, b"x")), "a field holds 1 bytes, expected a number"),
        (PIECES + field(2, field(3, 2)), "is a BPE model, expected Unigram"),
        (PIECES + field(2, field(3, 9)), "is a 9 model, expected Unigram"),
        (b"x" * (1 << 21), r"has 2097152 bytes, expected at most"),
    ],
)
def test_broken_sentencepiece_models(data, said, tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        read_sentencepiece(path, 3)


# --- settings of sentence-transformers, and limits ---


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_texts_are_lower_cased_as_sentence_transformers_does_it(kind, transformers, trained, tmp_path):
    """It puts Lowercase before the normalizer, and special tokens are still found in the text as it is."""
    raw, model = trained[kind], "bert" if kind == "WordPiece" else "xlm-roberta"
    settings = {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, {"model_type": model}, {"tokenizer.json": raw.to_str(), "tokenizer_config.json": settings})
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path)
    before = [Lowercase()] + ([plain.backend_tokenizer.normalizer] if plain.backend_tokenizer.normalizer else [])
    plain.backend_tokenizer.normalizer = normalizers.Sequence(before)
    (tmp_path / "sentence_roberta_config.json").write_text('{"do_lower_case": true}')
    found = find_tokenizer(tmp_path, {"model_type": model}, raw.get_vocab_size())
    got = open_tokenizer(found.file, raw.get_vocab_size()).encode_batch(lines())
    assert [encoding.ids for encoding in got] == plain(lines())["input_ids"]


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 30),
        ({"tokenizer_config.json": {"model_max_length": 20}}, 20),
        ({"tokenizer_config.json": {"max_len": 20}}, 20),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, 30),
        ({"tokenizer_config.json": {"model_max_length": 10}, "sentence_xlm-roberta_config.json": {"max_seq_length": 20}}, 20),
        ({"tokenizer_config.json": {"model_max_length": 10}, "sentence_distilbert_config.json": {"max_seq_length": None}}, 10),
        ({"sentence_bert_config.json": {"max_seq_length": 20, "tokenizer_args": {"model_max_length": 9, "padding_side": "left"}}}, 9),
        ({"sentence_bert_config.json": {}, "sentence_albert_config.json": {"max_seq_length": 99}}, 30),
        ({"sentence_bert_config.json": {"max_seq_length": 9}, "sentence_albert_config.json": {"max_seq_length": 8}}, 9),
    ],
)
def test_limits(files, limit, tmp_path):
    assert token_limit(write(tmp_path, {}, files), 30) == limit


def test_settings_that_sentence_transformers_passes_win(trained, tmp_path):
    files = {"vocab.txt": vocab_txt(trained["WordPiece"]), "tokenizer_config.json": {"do_lower_case": True}}
    files["sentence_bert_config.json"] = {"processor_kwargs": {"do_lower_case": False, "truncation_side": "left"}}
    found = find_tokenizer(write(tmp_path, {}, files), {"model_type": "bert"}, trained["WordPiece"].get_vocab_size())
    assert found.file.data["normalizer"]["lowercase"] is False
    assert found.file.keeps_end


@pytest.mark.parametrize("value", [0, -1, True, "7", [7], float("nan")])
def test_wrong_limits(value, tmp_path):
    write(tmp_path, {}, {"sentence_bert_config.json": {"max_seq_length": value}})
    with pytest.raises(ConfigError, match=r"sentence_bert_config\.json: max_seq_length is .*, expected a number of tokens from 1"):
        token_limit(tmp_path, 30)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "tokenizer.json"])
def test_texts_lose_their_beginning_where_the_settings_say_so(where, transformers, trained, tmp_path):
    raw = Tokenizer.from_str(trained["WordPiece"].to_str())
    if where == "tokenizer.json":
        raw.enable_truncation(7, direction="left")
    settings = {"truncation_side": "left"} if where == "tokenizer_config.json" else {}
    write(tmp_path, {"model_type": "bert"}, {"tokenizer.json": raw.to_str(), "tokenizer_config.json": settings})
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    config = make_config(vocabulary=raw.get_vocab_size() + ROOM)
    tokenizer = fastinfer.tokenizer.Tokenizer(find_tokenizer(tmp_path, {"model_type": "bert"}, config.vocabulary).file, config)
    texts = [" ".join(lines()[i : i + 4]) for i in range(0, 200, 4)] + ["word " * 5000, "a b", ""]
    pairs = list(zip(texts, texts[::-1], strict=True))
    with pytest.warns(fastinfer.tokenizer.TruncationWarning):
        got = tokenizer.encode([*texts, *pairs])
    cut = {"truncation": True, "max_length": 32}
    want = oracle(texts, **cut)["input_ids"] + oracle(texts, texts[::-1], **cut)["input_ids"]
    assert [list(encoding.ids) for encoding in got] == want
