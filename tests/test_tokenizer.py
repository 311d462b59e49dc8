"""From text to ids: the effects of tokenizer.json and of the model's limit, and the spans of tokens."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import WORDS, cuts_right, make_config, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

import fastinfer
from fastinfer.errors import CheckpointError, InputError
from fastinfer.tokenizer import SHARED, Tokenizer, TruncationWarning, as_texts
from fastinfer.tokenizer_file import Library, plain

CLS, SEP, MASK = (WORDS.index(w) for w in ("[CLS]", "[SEP]", "[MASK]"))


def make(tmp_path, raw=None, **changes) -> Tokenizer:
    (raw or make_tokenizer()).save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json", make_config(**changes))


def words(tokens) -> str:
    return " ".join(WORDS[i] for i in tokens.ids)


def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path):
    tokenizer = make(tmp_path)
    asked = json.loads((tmp_path / "tokenizer.json").read_text())
    assert asked["padding"]
    assert asked["truncation"]
    short, long = tokenizer.encode(["ada", "paris is the capital of france"])
    assert words(short) == "[CLS] ada [SEP]"
    assert words(long) == "[CLS] paris is the capital of france [SEP]"


def test_pairs_have_token_types(tmp_path):
    tokenizer = make(tmp_path)
    batch = tokenizer.batch(tokenizer.encode([("Ada", "in London"), "Ada"]))
    assert words(batch) == "[CLS] ada [SEP] in london [SEP] [CLS] ada [SEP]"
    assert [t.tolist() for t in batch.split(batch.token_types)] == [[0, 0, 0, 1, 1, 1], [0, 0, 0]]


def test_a_model_of_one_token_type_gets_none(tmp_path):
    tokenizer = make(tmp_path, token_types=1)
    assert tokenizer.batch(tokenizer.encode([("ada", "london")])).token_types is None


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u200b", "\ufeff"])
def test_text_without_words_is_a_text(tmp_path, text):
    assert words(make(tmp_path).encode([text])[0]) == "[CLS] [SEP]"


def test_words_that_are_given(tmp_path):
    """Each token knows its word, also if words have two tokens or none. The limit holds here, too."""
    tokenizer = make(tmp_path, max_tokens=8)
    (encoding,) = tokenizer.encode([["Ada", "friendly", "\u200b", "in.", "london"]], words=True)
    assert words(encoding) == "[CLS] ada friend ##ly in . london [SEP]"
    assert encoding.word_ids == [None, 0, 1, 1, 3, 3, 4, None]
    with pytest.warns(TruncationWarning):
        (cut,) = tokenizer.encode([["ada"] * 9], words=True)
    assert cut.word_ids == [None, 0, 1, 2, 3, 4, 5, None]


def test_text_without_any_token_becomes_one_token(tmp_path):
    raw = make_tokenizer()
    raw.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer = make(tmp_path, raw)
    batch = tokenizer.batch(tokenizer.encode(["", "ada"]))
    assert batch.ids.tolist() == [CLS, WORDS.index("ada")]
    assert batch.token_types.tolist() == [0, 0]


def test_offsets_count_characters(tmp_path):
    text = "🦊 é Ada 👩‍👩‍👧 london"
    (tokens,) = make(tmp_path).encode([text])
    spans = {WORDS[i]: text[slice(*span)] for i, span in zip(tokens.ids, tokens.offsets, strict=True)}
    assert spans["ada"] == "Ada"
    assert spans["london"] == "london"


def limited(raw, limit, **options):
    raw.no_padding()
    raw.enable_truncation(limit, **options)
    return raw


lengths = st.integers(0, 40)


@cuts_right
@given(first=lengths, second=st.none() | lengths, limit=st.integers(4, 32))
def test_truncation_is_that_of_the_tokenizers_library(tmp_path_factory, first, second, limit):
    text = "ada london " * (first // 2) + "paris" * (first % 2)
    pair = second if second is None else "is the capital " * (second // 3) + "of " * (second % 3)
    tokenizer = make(tmp_path_factory.mktemp("t"), max_tokens=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        (got,) = tokenizer.encode([text if pair is None else (text, pair)])
    want = limited(make_tokenizer(), limit).encode(text, pair)
    for name in ("ids", "type_ids", "offsets", "word_ids", "sequence_ids"):
        assert getattr(got, name) == getattr(want, name), name


def test_the_limit_itself_is_allowed(tmp_path):
    tokenizer = make(tmp_path)
    assert len(tokenizer.encode(["ada " * 30])[0].ids) == 32
    with pytest.warns(TruncationWarning, match="1 of 1 texts had more than 32 tokens"):
        assert len(tokenizer.encode(["ada " * 31])[0].ids) == 32


@cuts_right
@given(question=st.integers(0, 20), context=st.integers(0, 120), limit=st.integers(24, 32))
def test_windows_are_those_of_the_tokenizers_library(tmp_path_factory, question, context, limit):
    question, context = "is " * question, "ada lived in london " * (context // 4) + "the " * (context % 4)
    tokenizer = make(tmp_path_factory.mktemp("t"), max_tokens=limit)
    got = [window.tokens for window in tokenizer.windows([(question, context)])[1]]
    room = limit - 3 - question.count("is")
    cutter = limited(make_tokenizer(), limit, strategy="only_second", stride=min(SHARED, room // 2))
    want = cutter.encode(question, context)
    want = [want, *want.overflowing]
    assert [w.ids for w in got] == [w.ids for w in want]
    assert [w.offsets for w in got] == [w.offsets for w in want]
    assert [w.sequence_ids for w in got] == [w.sequence_ids for w in want]


def test_a_question_without_room_for_a_context(tmp_path):
    with pytest.raises(InputError, match=r"questions\[1\] fills the model's limit of 32 tokens"):
        make(tmp_path).windows([("is", "ada"), ("is " * 29, "ada")])
    assert len(make(tmp_path).windows([("is " * 28, "ada london")])[1]) == 2


@pytest.mark.parametrize(
    "text", ["ada " * 250_000, "a" * 1_000_000, ("ada " * 250_000, "london " * 150_000)], ids=["words", "word", "pair"]
)
def test_a_megabyte_of_text(tmp_path, text):
    tokenizer = make(tmp_path)
    if text == "a" * 1_000_000:
        assert words(tokenizer.encode([text])[0]) == "[CLS] [UNK] [SEP]"  # which is tokenised 131,072 characters at a time
        return
    with pytest.warns(TruncationWarning) as caught:
        encodings = tokenizer.encode(["ada", text, text])
    assert len(caught) == 1
    assert str(caught[0].message).startswith(
        "2 of 3 texts had more than 32 tokens, the model's limit, and were cut (the longest had at least "
    )
    assert str(caught[0].message).endswith(", the first is texts[1])")
    assert 32 < caught[0].message.longest <= (250_002 if isinstance(text, str) else 400_003)
    assert [len(e.ids) for e in encodings] == [3, 32, 32]
    assert encodings[1].ids[-1] == SEP


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts is None, expected a str"),
        (3, "texts is an int, expected a str"),
        (b"ada", "texts is a bytes, expected a str"),
        (["ada", None], r"texts\[1\] is None, expected"),
        (["ada", 3], r"texts\[1\] is an int, expected"),
        ([b"ada"], r"texts\[0\] is a bytes, expected"),
        (["ada", ["a", "b", "c"]], r"texts\[1\] is a list of 3 \(str, str, str\), expected"),
        ([["ada", ["london"]]], r"texts\[0\] is a list of 2 \(str, list\), expected"),
        ([("ada", None)], r"texts\[0\] is \('ada', None\), expected a str or a pair"),
        (["ada", "\ud83e"], r"texts\[1\] is no Unicode text: surrogates not allowed at character 0"),
        ([("ada", "in \udcff")], r"texts\[0\]\[1\] is no Unicode text: surrogates not allowed at character 3"),
    ],
)
def test_what_is_no_text(texts, message):
    with pytest.raises(InputError, match=message):
        as_texts(texts)


class Table:
    """An object that iterates over its columns, like tables of pandas, polars and pyarrow."""

    columns = ("text", "label")

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "ada"}, r"a dict, .*: pass the texts in it, such as list\(texts.values\(\)\)"),
        ({"ada", "london"}, r"a set, .*: pass a list, such as sorted\(texts\): a set has no order"),
        (frozenset(["ada"]), "a frozenset, .*: a set has no order"),
        (Table(), r'a Table, .*: pass the texts of one column, such as texts\["column"\]'),
        (np.array("ada"), r"pass the str in it, texts.item\(\)"),
        (memoryview(b"ada"), r"a memoryview, .*: pass a str, such as texts.decode\(\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_collections_whose_texts_are_not_clear(texts, message):
    with pytest.raises(InputError, match=message):
        as_texts(texts)


def test_collections_whose_texts_are_clear():
    texts = ["ada", "london"]
    assert as_texts(np.array(texts)) == as_texts(np.array(texts, object)) == as_texts(dict.fromkeys(texts).keys()) == texts
    assert as_texts({"a": "ada", "b": "london"}.values()) == texts
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"text": texts, "label": [1, 2]}, index=[7, 3])
    assert as_texts(table["text"]) == texts
    with pytest.raises(InputError, match="pass the texts of one column"):
        as_texts(table)


def test_forms_of_a_batch():
    assert as_texts("ada") == ["ada"]
    assert as_texts(("ada", "london")) == [("ada", "london")]
    assert as_texts(["ada", "london"]) == ["ada", "london"]
    assert as_texts([["ada", "london"], ("a", "b"), "c"]) == [("ada", "london"), ("a", "b"), "c"]
    assert as_texts(t for t in ("ada", "london")) == ["ada", "london"]
    assert as_texts([]) == []


def test_a_tokenizer_of_another_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"has 22 tokens, but the model's vocabulary is 21: it belongs to another model"):
        make(tmp_path, vocabulary=len(WORDS) - 1)


def test_a_limit_that_special_tokens_fill(tmp_path):
    with pytest.raises(CheckpointError, match="adds 3 tokens to a text, but max_tokens is 3"):
        make(tmp_path, max_tokens=3)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"version": "1.0", "model": {"type": "WordPiece"}}', b"\xff\xfe"])
def test_a_broken_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer that the tokenizers library can read"):
        Tokenizer(path, make_config())


def spaced_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer as in the RoBERTa family: the space before a word or a mask belongs to its token."""
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", "<s>", "</s>", "<mask>", "▁ada", "▁in", "▁london"])}
    raw = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return raw


def test_spaces_before_words_belong_to_no_span(readable_model):
    london = 7  # in the vocabulary of spaced_tokenizer
    fill = [float(i == london) for i in range(len(WORDS))]
    folder = readable_model({"tag": {WORDS[london]: [0, 0, 0, 9, 0]}, "fill_mask": {"[MASK]": fill}, "answer": {WORDS[london]: [9, 9]}})
    spaced_tokenizer().save(f"{folder}/tokenizer.json")
    model = fastinfer.load(folder)
    text = "ada in london"
    assert model.tokenizer.encode([text])[0].offsets == [(0, 3), (3, 6), (6, 13)]
    ((span,),) = model.tag(text)
    assert (*span[:3], span[4]) == (7, 13, "LOC", "london")
    ((answer,),) = model.answer("in", text)
    assert (*answer[:2], answer[3]) == (7, 13, "london")
    assert model.tokenizer.encode(["ada in <mask>"])[0].offsets[-1][0] == 6
    ((best,),) = model.fill_mask("ada in <mask>", top_k=1)
    assert best[0][0::2] == (" london", text)


# Letters of either case, what BERT's normaliser changes, and what added tokens are made of.
PIECES = st.sampled_from(
    ["a", "B", "the ", "The", "##", "[", "]", "[MASK]", "[mask]", "new", "NEW", "x1", ".", "'", "\t", "\n", "\x00", "\x7f", "\xa0"]
    + ["é", "e\u0301", "İ", "ß", "中", "\ufffd", "\u200b", " ", "  "]
)


@given(
    texts=st.lists(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20), min_size=2, max_size=9),
    made=st.builds(normalizers.BertNormalizer, st.booleans(), st.booleans(), st.none() | st.booleans(), st.booleans()),
    added=st.lists(st.builds(AddedToken, st.sampled_from(["new", "NEW", "x1", "é"]), normalized=st.booleans()), max_size=2),
)
def test_texts_without_places_have_the_ids_of_those_with(texts, made, added):
    raw = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate([*WORDS, *"abnewtxhAB.'1", "##e", "##h"])}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = made, pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    raw.add_special_tokens(["[MASK]"])
    raw.add_tokens(added)
    found = plain(Library(raw, Path("tokenizer.json")))
    chosen = found.of(texts)
    got = dict(zip(chosen, found.raw.encode_batch_fast(list(chosen.values())), strict=True))
    for i, text in enumerate(texts):
        want = raw.encode(text)
        if i in got:
            assert (got[i].ids, got[i].type_ids) == (want.ids, want.type_ids), text
        else:
            odd = ["[mask]", *(token.content.lower() for token in added)]
            assert not (text.isascii() and text.isprintable()) or any(token in text.lower() for token in odd)


def test_plain_texts_are_told_apart(tmp_path):
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path / "tokenizer.json", make_config())
    texts = ["The cat", "a [MASK] b", "caf\xe9", ("a", "b"), "tab\there", "plain", ""] * 40
    assert made._plain.of(texts[:7]) == {0: "the cat", 5: "plain", 6: ""}
    assert [e.ids for e in made._call(texts, places=False)] == [e.ids for e in made._call(texts)]
    byte_level = tokenizers.Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert plain(Library(byte_level, Path("tokenizer.json"))) is None
