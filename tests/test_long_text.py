"""Long texts are tokenised in parts, which never changes a token: cuts at boundaries, beginnings of texts, whole texts in pieces."""

import functools
import string
import warnings

import pytest
import tokenizers
from conftest import cuts_right, make_config, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from fastinfer import tokenizer as module
from fastinfer.boundaries import boundaries
from fastinfer.tokenizer import Tokenizer, Tokens, TruncationWarning

CORPUS = [
    "The ship's cat, 1,234 days old: it can't, won't! 'tis été naïve ß",
    "Мама мыла раму 中文字符 हिन्दी है ไทย عربي",
    "... -- (a) 😀 �",
] * 9
SPECIALS = ["<s>", "</s>", "<unk>", "<pad>", AddedToken("<mask>", lstrip=True), AddedToken("cat", single_word=True, normalized=True)]


def trained(model, trainer, normalizer, pre_tokenizer, processor=None, added=()):
    raw = tokenizers.Tokenizer(model)
    if normalizer:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizer
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens(SPECIALS)
    raw.add_tokens(list(added))
    raw.post_processor = processor or processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[(token, raw.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return raw


def byte_level(add_prefix_space: bool) -> tokenizers.Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False)
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space)
    return trained(models.BPE(), trainer, None, splitter, processor, added=["  ", "|||x|||"])


def unigram(splitter, *normalizer) -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), trainer, normalizers.Sequence(list(normalizer)), splitter)


def words(splitter, normalizer) -> tokenizers.Tokenizer:
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, normalizer, splitter)


def bert(**options) -> tokenizers.Tokenizer:
    raw = make_tokenizer()
    raw.normalizer = normalizers.BertNormalizer(**options)
    raw.no_padding()
    raw.no_truncation()
    return raw


metaspace, spaces = pre_tokenizers.Metaspace, normalizers.Replace(Regex(" {2,}"), "▁")
KINDS = {
    "bert": lambda: bert(),
    "bert, cased": lambda: bert(lowercase=False),
    "roberta": lambda: byte_level(False),
    "byte level with a space in front": lambda: byte_level(True),
    "unigram": lambda: unigram(metaspace(), normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip(left=False), spaces),
    "unigram, first": lambda: unigram(metaspace(prepend_scheme="first"), normalizers.NFKC()),
    "unigram, white space": lambda: unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()]), normalizers.NFKD()),
    "unigram, DeBERTa": lambda: unigram(
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation("isolated"), metaspace()]),
        normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
        normalizers.NFC(),
        normalizers.Strip(left=False),
    ),
    "words": lambda: words(pre_tokenizers.Whitespace(), normalizers.Lowercase()),
    "words, punctuation": lambda: words(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.Digits(), pre_tokenizers.WhitespaceSplit()]
        ),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Replace("''", '"')]),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def of(kind) -> tokenizers.Tokenizer:
    return KINDS[kind]()


fragments = st.one_of(
    st.sampled_from(
        [
            "ada",
            "friendly",
            "ada",
            "London",
            "can't",
            "cat",
            "x",
            "7",
            "1,234",
            "中文",
            "中",
            "हिन्दी",
            "है",
            "ไทย",
            "été",
            "e\u0301",
            "ß",
            "Σς",
            "ﬃ",
            "½",
        ]
        + [
            "[MASK]",
            "[SEP]",
            "<mask>",
            "<s>",
            "|||x|||",
            "|||",
            "[",
            "]",
            "<",
            "##ly",
            "''",
            "``",
            "'s",
            ".",
            "...",
            "_",
            "▁",
            "😀",
            "👩‍👩‍👧",
        ]
        + [
            "\u0301",
            "\u0338",
            "\u200b",
            "\u00a0",
            "\u2028",
            "\u3000",
            "\u3164",
            "\x00",
            "\x1f",
            "\ufeff",
            "\n",
            "\r\n",
            "\t",
            "  ",
            " ",
            " ",
            " ",
        ]
    ),
    st.sampled_from(string.punctuation),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.lists(fragments, max_size=30).map("".join)


def columns(tokens):
    """The columns that must agree, without special tokens: id, type, characters, text of the pair."""
    return [row for row in zip(tokens.ids, tokens.type_ids, tokens.offsets, tokens.sequence_ids, strict=True) if row[3] is not None]


@each_kind
@given(text=texts)
def test_tokens_on_both_sides_of_a_boundary_are_those_of_the_whole(kind, text):
    raw = of(kind)
    whole = columns(raw.encode(text))
    for found in boundaries(raw).finditer(text, 1):
        cut = found.start()
        before = columns(raw.encode(text[:cut]))
        behind = [(i, t, (a + cut - 1, b + cut - 1), s) for i, t, (a, b), s in columns(raw.encode(text[cut - 1 :])) if b > 1]
        assert before + behind == whole, cut


def opened(raw, folder, limit=12) -> Tokenizer:
    raw.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json", make_config(max_tokens=limit, vocabulary=raw.get_vocab_size()))


@cuts_right
@each_kind
@given(batch=st.lists(texts | st.tuples(texts, texts), min_size=1, max_size=4), limit=st.integers(6, 15))
def test_a_beginning_gives_the_tokens_of_the_whole(kind, tmp_path_factory, batch, limit):
    raw = of(kind)
    tokenizer = opened(raw, tmp_path_factory.getbasetemp(), limit)
    raw.enable_truncation(limit)
    want = [Tokens.of(raw.encode(text) if isinstance(text, str) else raw.encode(*text)) for text in batch]
    raw.no_truncation()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(module, "CHARACTERS_PER_TOKEN", 1)
        patch.setattr(module, "CALL_CHARACTERS", 30)
        warnings.simplefilter("ignore", TruncationWarning)
        got = [Tokens.of(encoding) for encoding in tokenizer.encode(batch)]
        packed = list(tokenizer.packed(batch, []))
    assert got == want
    assert [ids.tolist() for part in packed for ids in part.split(part.ids)] == [tokens.ids for tokens in want]


@each_kind
@given(first=st.none() | texts, text=texts)
def test_a_text_in_pieces_gives_the_tokens_of_the_whole(kind, tmp_path_factory, first, text):
    raw = of(kind)
    tokenizer = opened(raw, tmp_path_factory.getbasetemp())
    sides = (text,) if first is None else (first, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CALL_CHARACTERS", 8)
        patch.setattr(Tokenizer, "_question", lambda self, question: question)
        (got,) = tokenizer.wholes([text if first is None else sides])
    want = Tokens.of(raw.encode(*sides))
    assert got._replace(word_ids=[]) == want._replace(word_ids=[])
    same = [(a == b, a is None or b is None) for a, b in zip(want.word_ids, want.word_ids[1:], strict=False)]
    assert same == [(a == b, a is None or b is None) for a, b in zip(got.word_ids, got.word_ids[1:], strict=False)]
