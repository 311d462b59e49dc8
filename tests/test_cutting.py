"""Texts of any length, with and without places to cut them: how much of them is tokenised at a time, and that answers stay the same."""

import json
import random

import pytest
from conftest import WORDS, make_config, make_tokenizer

import fastinfer
from fastinfer import cutting, tokenizer
from fastinfer.boundaries import boundaries
from fastinfer.errors import InputError
from fastinfer.tokenizer import Tokenizer

SOLID, CALL = 100, 200


@pytest.fixture
def small(monkeypatch, tmp_path):
    """(a tokenizer with small pieces, the number of characters of each call of the library)."""
    monkeypatch.setattr(cutting, "SOLID", SOLID)
    monkeypatch.setattr(tokenizer, "CALL_CHARACTERS", CALL)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    made, calls = Tokenizer(tmp_path / "tokenizer.json", make_config()), []
    call = made._call

    def recorded(texts, words=False, places=True):
        calls.extend(sum(map(len, cutting.sides_of(text))) for text in texts)
        return call(texts, words, places)

    made._call = recorded
    return made, calls


def words(count):
    return " ".join(random.choices(WORDS[5:], k=count))


@pytest.mark.parametrize("text", ["a" * 50_000, " " * 50_000, "é" * 50_000, "日" * 50_000, "?" * 50_000, "a b" * 20_000, "\t" * 50_000])
def test_little_is_tokenised_at_a_time(small, text):
    made, calls = small
    made.encode([text], cuts=[])
    assert max(calls) <= max(CALL, 8 * 32 * 4) + SOLID + 1
    calls.clear()
    made.wholes([text])
    assert max(calls) <= CALL + SOLID + 1


def test_a_word_behind_many_spaces_is_found(small):
    made, _ = small
    for text in (" " * 20_000 + "ada", " " * 5000 + "in" + "\n" * 9000 + "london " + " " * 9000):
        assert made.encode([text])[0].ids == made.raw.encode(text).ids


def test_long_texts_have_the_tokens_of_the_whole(small):
    made, _ = small
    for count in (1, 30, 300, 3000):
        text = words(count)
        assert made.wholes([text])[0].ids == made.raw.encode(text).ids
        cuts = []
        assert made.encode([text], cuts=cuts)[0].ids[:31] == made.raw.encode(text).ids[:31]
        assert cuts[0].cut == (count >= 30 and len(made.raw.encode(text).ids) > 32)


def test_a_word_of_any_length_is_one_unknown_token(small):
    made, _ = small
    lengths = (1, 5, 98, 99, 100, 101, 150, 200, 299, 300, 301, 700, 3000)  # around those of max_input_chars_per_word, SOLID and CALL
    for _ in range(300):
        parts = [random.choice([" ", random.choice("aé") * random.choice(lengths), words(1), "? "]) for _ in range(random.randrange(1, 12))]
        got, want = made.wholes(["".join(parts)])[0], made.raw.encode("".join(parts))
        assert (got.ids, got.word_ids, got.offsets) == (want.ids, want.word_ids, want.offsets), parts


def test_cuts_and_sections():
    boundary = boundaries(make_tokenizer())
    for _ in range(50):
        text = "".join(random.choice(["a", "é", " ", "日", ".", "  ", "word"]) for _ in range(random.randrange(2000)))
        for pattern in (boundary, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cutting, "SOLID", random.randrange(1, 50))
                patch.setattr(cutting, "SECTION", random.randrange(1, 300))
                found = cutting.sections(text, pattern)
                assert "".join(part for _, part in found) == text
                assert [at for at, _ in found] == [sum(len(part) for _, part in found[:i]) for i in range(len(found))]
                assert max(len(part) for _, part in found) <= cutting.SECTION + cutting.SOLID
    assert cutting.sections("short", boundary) == [(0, "short")]


def test_very_long_texts_are_tagged_and_asked_in_sections(run, readable_model, tmp_path, monkeypatch):
    """The heads see no context, so sections change no answer. Commands give what the methods give."""
    folder = readable_model({"tag": {"london": [0, 0, 0, 9, 0]}, "answer": {"london": [20, 20]}})
    text = words(300) + " london " + words(300)
    (tmp_path / "a.txt").write_text(text + "\nis in paris\n")
    commands = (("tag",), ("answer", "-q", "is?", "-k", "3"))
    want = [run(*command, "-m", folder, "-i", tmp_path / "a.txt", "--json")[1] for command in commands]
    model = fastinfer.load(folder)
    before = model.tag([text, "is in paris", ""]), model.answer(["is?"] * 2, [text, "is in paris"], top_k=3)
    monkeypatch.setattr(cutting, "SECTION", 150)
    done = []
    assert model.tag([text, "is in paris", ""], progress=lambda *said: done.append(said)) == before[0]
    assert done[-1] == (3, 3)
    after = model.answer(["is?"] * 2, [" " * 400 + text, "is in paris"], top_k=3)
    assert after[1] == before[1][1]
    start, end, _, answer = after[0][0]
    assert (start >= 400, (" " * 400 + text)[start:end], answer) == (True, "london", "london")
    assert sum(start == end for start, end, *_ in model.answer("is?", text, no_answer=True, top_k=None)[0]) == 1
    with pytest.raises(InputError, match=r"contexts\[1\] is ' +[ .']*, expected a text with an answer in it"):
        model.answer(["is?"] * 2, [text, " " * 999])
    got = [run(*command, "-m", folder, "-i", tmp_path / "a.txt", "--json")[1] for command in commands]
    assert got[0] == want[0]
    first, second = (json.loads(said.split("\n")[0])["answers"][0] for said in (got[1], want[1]))
    assert text[first["start"] : first["end"]] == first["text"] == second["text"] == "london"
