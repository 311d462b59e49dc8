"""A hostile tokenizer.json gives one error at load if the library would abort, panic, hang or take all memory."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from conftest import WORDS, make_tokenizer

from fastinfer import trial
from fastinfer.errors import CheckpointError
from fastinfer.tokenizer_file import MOST_GROWTH, PATTERNS, Library, as_errors, open_tokenizer, read_tokenizer

PLAIN = json.loads(make_tokenizer().to_str())


def opened(path, vocabulary):
    return open_tokenizer(read_tokenizer(path, vocabulary), vocabulary)


def template(**changes):
    return PLAIN["post_processor"] | changes


def special(**changes):
    tokens = json.loads(json.dumps(PLAIN["post_processor"]["special_tokens"]))
    tokens["[CLS]"] |= changes
    return template(special_tokens=tokens)


def bpe(**changes):
    return {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]} | changes


def model(**changes):
    return PLAIN["model"] | changes


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def row(kind, *parts):
    return {"type": "Sequence", {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[kind]: list(parts)}


def charsmap(size, rest=b""):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(size.to_bytes(4, "little") + rest).decode()}


def added(**changes):
    return [*PLAIN["added_tokens"], PLAIN["added_tokens"][0] | {"content": "zz", "id": 5} | changes]


GROWS = f"may make a text more than {MOST_GROWTH} times as long"
CASES = {
    "charsmap too short": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "names a trie of 0 bytes"),
    "charsmap of 4 GB": (
        {"normalizer": charsmap(2**32 - 1, bytes(64))},
        "names a trie of 4294967295 bytes, expected a multiple of 4, at most the 64",
    ),
    "charsmap not base64": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "é"}}, "precompiled_charsmap is not base64"),
    "charsmap that grows": ({"normalizer": charsmap(4, bytes(4) + b"x" * 2000)}, GROWS),
    "merges without pieces": ({"model": bpe(merges=[["a", "c"]])}, "Token `c` out of vocabulary"),
    "merges too short": ({"model": bpe(continuing_subword_prefix="#" * 20)}, "range end index"),
    "pieces of length 0": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
    "pieces of any length": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 2**32}},
        "pre_tokenizer has length 4294967296, expected 0 to",
    ),
    "doublings": ({"normalizer": row("normalizer", *[replace({"String": "a"}, "a" * 2000)] * 8)}, GROWS),
    "doublings, each small": ({"normalizer": row("normalizer", *[replace({"String": "a"}, "aa")] * 11)}, GROWS),
    "doublings in two parts": (
        {
            "normalizer": replace({"String": "a"}, "a" * 600),
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        },
        GROWS,
    ),
    "bytes of bytes": ({"normalizer": row("normalizer", *[{"type": "ByteLevel"}] * 40)}, GROWS),
    "insertions": ({"normalizer": row("normalizer", *[replace({"Regex": ""}, "a")] * 11)}, GROWS),
    "prefixes": ({"normalizer": {"type": "Prepend", "prepend": "a" * 2000}}, GROWS),
    "growth in the decoder": ({"decoder": row("decoder", *[replace({"String": "a"}, "aa")] * 11)}, f"decoder {GROWS}"),
    "a text twice": (
        {"post_processor": template(single=[*PLAIN["post_processor"]["single"]] * 2)},
        "repeats a text in its template 'single'",
    ),
    "a template's missing token": ({"post_processor": template(special_tokens={})}, "no entry found for key"),
    "a template's id": ({"post_processor": special(ids=[2**32 - 1])}, "post_processor has ids 4294967295, expected 0 to 21"),
    "an id of the vocabulary": (
        {"model": model(vocab=PLAIN["model"]["vocab"] | {"ada": 2**31})},
        "the vocabulary gives 'ada' the id 2147483648",
    ),
    "an id that is none": ({"model": model(vocab=PLAIN["model"]["vocab"] | {"ada": True})}, "the vocabulary gives 'ada' the id True"),
    "an added id": ({"added_tokens": added(id=2**31)}, "added_tokens gives 5 the id 2147483648, expected 0 to 21"),
    "a negative id": ({"added_tokens": added(id=-1)}, "added_tokens gives 5 the id -1"),
    "a long added token": (
        {"added_tokens": added(content="x" * 5000)},
        "added_tokens has a string of 5000 characters, expected at most 4096",
    ),
    "a long piece": ({"model": bpe(vocab={"a": 0, "b": 1, "ab": 2, "c" * 5000: 3})}, "the vocabulary has a token of 5000 characters"),
    "a long prefix": ({"model": model(continuing_subword_prefix="x" * 65)}, "continuing_subword_prefix has a string of 65 characters"),
    "words without end": ({"model": model(max_input_chars_per_word=2**63)}, "max_input_chars_per_word has the number 9223372036854775808"),
    "a decoder's place": (
        {"decoder": {"type": "Strip", "content": "a", "start": 2**63, "stop": 0}},
        "decoder has start 9223372036854775808",
    ),
    "an expression that backtracks": (
        {"pre_tokenizer": split("(a+)+$x")},
        r"regular expression that cannot be used, one of '\(a\+\)\+\$x': Onig",
    ),
    "an expression of ordinary looks": ({"pre_tokenizer": split(r"(\w|\w\w)+\.")}, r"regular expression that cannot be used, one of .*: "),
    "an expression in a normalizer": (
        {"normalizer": replace({"Regex": "(b*)*c"}, "")},
        r"regular expression that cannot be used, one of '\(b\*\)\*c'",
    ),
    "an expression that is none": ({"pre_tokenizer": split("(")}, r"regular expression that cannot be used, one of '\('"),
    "deep": ({"normalizer": {"type": "Sequence", "normalizers": json.loads("[" * 200 + "]" * 200)}}, "is no tokenizer that"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_the_library_must_not_use(tmp_path, case, capfd):
    changes, said = CASES[case]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | changes))
    with pytest.raises(CheckpointError, match=said) as caught:
        opened(path, len(WORDS))
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"truncation": {"direction": "Right", "max_length": 2**32, "strategy": "LongestFirst", "stride": 2**40}},
        {
            "normalizer": row(
                "normalizer", replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}
            )
        },
        {"normalizer": row("normalizer", {"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")), "decoder": {"type": "Fuse"}},
        {"normalizer": replace({"Regex": " {2,}"}, " ")},
        {"pre_tokenizer": split(r"[^ab]+|a|b")},
        *({"pre_tokenizer": split(expression)} for expression in sorted(PATTERNS)),
    ],
)
def test_a_file_like_published_ones_is_used_as_the_library_does(tmp_path, changes):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | changes))
    expected = tokenizers.Tokenizer.from_file(str(path))
    expected.no_padding()
    expected.no_truncation()
    if expected.decoder is None:  # pieces then join like BERT's
        expected.decoder = tokenizers.decoders.WordPiece()
    raw = opened(path, len(WORDS))
    for text in ("", "Ada Lovelace  lived in London, 1842.", "``friendly'' aaaa   bb"):
        assert raw.encode(text).ids == expected.encode(text).ids
        assert raw.decode(raw.encode(text).ids) == expected.decode(expected.encode(text).ids)


def test_a_map_of_characters_is_used(tmp_path):
    """The map changes no character: its double array has one unit without a child."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | {"normalizer": charsmap(4 * 256, bytes(4 * 256) + "ﷺ".encode() + b"\0")}))
    assert opened(path, len(WORDS)).encode("ada").ids == [2, WORDS.index("ada"), 3]


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is no regular file"):
            opened(path, 30)
    with pytest.raises(CheckpointError, match="does not exist"):
        opened(tmp_path / "none", 30)


def test_a_vocabulary_far_beyond_the_model_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | {"model": model(vocab={f"{i:07}": i for i in range(300_000)})}))
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, expected at most 1059840$"):
        opened(path, len(WORDS))
    with pytest.raises(CheckpointError, match="it has 300000 tokens, but the model's vocabulary is 200000: it belongs to another model"):
        opened(path, 200_000)


def test_errors_and_panics_in_use_are_checkpoint_errors(tmp_path):
    """One tokenizer fails on a word outside its vocabulary without [UNK]. The other has a decoder that panics on one token."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | {"model": {"type": "WordLevel", "vocab": {"ada": 0}, "unk_token": "none"}, "post_processor": None}))
    raw = opened(path, len(WORDS))
    assert raw.encode("ada").ids == [0]
    for call in (lambda: raw.encode("zzz"), lambda: raw.encode_batch(["ada", "zzz"])):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizers library failed: WordLevel error: Missing"):
            call()
    bad = json.dumps(PLAIN | {"pre_tokenizer": split("(q+)+$x")})
    panics = Library(tokenizers.Tokenizer.from_str(bad), path)
    assert panics.encode("ada").ids
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizers library failed: Onig"):
        panics.encode_batch(["q" * 60])
    assert panics.encode("ada").ids


def test_other_base_exceptions_pass():
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), as_errors("here"):
            raise kind


def test_a_process_that_cannot_be_started(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | {"pre_tokenizer": split("[^a]+")}))
    opened(path, len(WORDS))
    for name, said in ((str(tmp_path / "none"), "cannot be started: .*No such file"), (None, "there is no Python to start here")):
        monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda name=name: name)
        with pytest.raises(CheckpointError, match=said):
            opened(path, len(WORDS))
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: sys.executable)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(CheckpointError, match="there is no Python to start here"):
        opened(path, len(WORDS))


def test_the_trial_stops_what_grows_and_what_is_outside():
    class Fake:
        def __init__(self, ids):
            self.ids = ids

        def encode(self, *_):
            return self

        def decode(self, ids, **_):
            assert len(ids) < 100_000

        def num_special_tokens_to_add(self, _):
            return 2

    trial.trial(Fake([1]), 2)
    with pytest.raises(ValueError, match="has the id 2, expected 0 to 1"):
        trial.trial(Fake([2]), 2)
    with pytest.raises(ValueError, match="0 characters become 100000 tokens"):
        trial.trial(Fake([1] * 100_000), 2)


def test_the_trial_of_a_process_has_limits():
    """The trial process ends, both for a file that takes ever more memory and for one that takes ever more time."""
    grows = PLAIN | {"normalizer": row("normalizer", *[replace({"String": "a"}, "a" * 2000)] * 8)}
    # Each match is just below the library's own limit, and one starts at every character.
    slow = PLAIN | {"pre_tokenizer": split("(?:" + "a*" * 7 + "){1,2}[^a!]")}
    for file in (grows, slow):
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-I", trial.__file__, str(Path(tokenizers.__file__).parents[1])],
            input=json.dumps([30, ["a" * 2000] * 100]).encode() + b"\n" + json.dumps(file).encode(),
            capture_output=True,
            timeout=120,
        )
        assert done.stdout.strip() != b"ok", time.monotonic() - begin
