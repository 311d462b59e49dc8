"""Messages are bounded and printable, whatever text they contain."""

import codecs
import json
import pickle
import random
import shutil

import builders
import numpy as np
import pytest

import fastinfer
from fastinfer import checkpoint
from fastinfer.checkpoint import Tensor
from fastinfer.checkpoint.layouts.vocabularies import read_vocabulary
from fastinfer.config import Classify, Tasks
from fastinfer.errors import LISTED, LONGEST, FastinferError, about, listed, printable, short

# Terminal controls, a change of the writing direction, code points that are not characters, and a line that imitates our errors.
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e\u2066\ud800\r\b\0\x7f\nfastinfer: error: EVIL\u2028EVIL"
KINDS = [getattr(fastinfer, name) for name in fastinfer.__all__ if name.endswith("Error")]


def tame(text: str) -> bool:
    """Whether a text is short and harmless to a terminal, and hostile text does not begin a line."""
    lines = text.split("\n")
    return len(text) <= LONGEST and all(line.isprintable() for line in lines) and all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_tame_message(kind):
    for text in (HOSTILE, HOSTILE * 10**5, "\x1b" * 10**6, "\n" * LONGEST, "\n  a" * 10**5, "", "x" * LONGEST, "x" * (LONGEST + 1)):
        error = kind(text)
        assert tame(str(error))
        assert len(repr(error)) < 3 * LONGEST
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        with pytest.raises(kind) as caught, about(HOSTILE * 1000):
            raise error
        assert tame(str(caught.value))


def test_what_is_printable_stays():
    text = "layers.0 is 5: é 日本語 עברית 👍🏽\n  a line of ours\n  another"
    assert str(FastinferError(text)) == text == printable(text)
    assert printable("a\tb\nc\x1b\ud800\u202e") == r"a\tb\nc\x1b\ud800\u202e"
    assert printable("x" * LONGEST) == "x" * LONGEST
    cut = printable("a" * 10**6 + "what to do")
    assert len(cut) == LONGEST
    assert cut.startswith("aaa")
    assert cut.endswith("what to do")
    assert "  [...]  " in cut


def test_printable_of_random_text():
    chance = random.Random(8)
    for _ in range(300):
        text = "".join(chr(chance.choice((chance.randrange(32), chance.randrange(0x300), chance.randrange(0x110000)))) for _ in range(50))
        shown = printable(text)
        assert tame(shown)
        assert printable(shown) == shown
        assert shown.encode()  # no lone surrogates


class Odd:
    def __repr__(self):
        raise ValueError("no repr")


def test_short_takes_anything():
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    for value in (HOSTILE, HOSTILE * 10**4, 10**10**5, [10**5000] * 9, deep, Odd(), [Odd()], np.zeros((500, 500)), {"a": {"b": {"c": {}}}}):
        text = short(value)
        assert len(text) < 800
        assert "\n" not in text


def test_lists_are_cut():
    assert listed(["a", 5]) == "a, 5"
    assert listed(range(LISTED)) == ", ".join(map(str, range(LISTED)))
    assert listed(range(10**6), "; ").endswith(f"; {LISTED - 1}; ... and {10**6 - LISTED} more")


# --- text from files -------------------------------------------------------------------------


def refused(folder, **options) -> str:
    with pytest.raises(FastinferError) as error:
        fastinfer.load(folder, device="numpy", **options)
    assert tame(str(error.value)), str(error.value)[:5000]
    return str(error.value)


def test_thousands_of_surplus_tensors_are_counted(tmp_path):
    config = builders.tiny()
    stored = {**builders.weights(config), **{HOSTILE + str(i): Tensor(np.zeros(1, np.float32), "float32") for i in range(30_000)}}
    with pytest.raises(fastinfer.CheckpointError, match=r"30000 tensors not as config.json says:(?s:.)*and 29980 more") as error:
        checkpoint.check(config, stored, str(tmp_path))
    assert tame(str(error.value))


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nfastinfer: error: EVIL", "a\u202eb"])
def test_names_of_folders(tmp_path, name):
    assert "EVIL" not in refused(tmp_path / name).partition(r"\n")[0]
    folder = tmp_path / name
    builders.save(folder, builders.tiny())
    assert tame(repr(fastinfer.load(folder, device="numpy")))
    (folder / "config.json").write_text('{"format_version": 1, "hidden": {}}')
    refused(folder)
    (folder / "config.json").unlink()
    refused(folder)


def spoiled(data, place: int):
    """`data` with its string, key or number at `place` replaced by a hostile one; None if it has fewer of them."""
    seen = -1

    def walk(value):
        nonlocal seen
        if isinstance(value, dict):
            pairs = []
            for key, item in value.items():
                seen += 1
                pairs.append((HOSTILE if seen == place else key, walk(item)))
            return dict(pairs)
        if isinstance(value, list):
            return [walk(v) for v in value]
        seen += 1
        return HOSTILE * 1000 if seen == place else value

    changed = walk(data)
    return changed if seen >= place else None


def test_strings_in_json_files(tmp_path):
    """Each key and value of config.json and of the index is replaced by a hostile one in turn."""
    builders.save(tmp_path, builders.tiny(), max_shard_bytes=4000)
    for file in ("config.json", "model.safetensors.index.json"):
        text = (tmp_path / file).read_text()
        place = errors = 0
        while (data := spoiled(json.loads(text), place)) is not None:
            (tmp_path / file).write_text(json.dumps(data))
            try:
                said = repr(fastinfer.load(tmp_path, device="numpy"))
            except FastinferError as error:
                said = str(error)
                errors += 1
            assert tame(said), said[:5000]
            place += 1
        assert errors > 20
        (tmp_path / file).write_text(text)


def test_labels_of_the_model(tmp_path):
    config = builders.tiny(tasks=Tasks(classify=Classify((HOSTILE, "b"), "softmax")))
    builders.save(tmp_path, config)
    assert tame(repr(fastinfer.load(tmp_path, device="numpy")))


def test_weights_that_a_dtype_cannot_hold_are_named_with_their_folder(tmp_path):
    config = builders.tiny()
    made = builders.weights(config)
    made["layers.0.attention.qkv.weight"].data[3, 4] = np.nan
    checkpoint.save(tmp_path, config, made)
    with pytest.raises(fastinfer.CheckpointError) as error:
        fastinfer.load(tmp_path, device="cpu", dtype="int8", validate=False)
    assert str(error.value).startswith(f"{tmp_path}: layers.0.attention.qkv.weight: a weight is NaN or infinite, which int8 cannot hold")


def test_a_mark_of_byte_order_is_not_part_of_a_file(tmp_path, random_model):
    """Windows editors put the mark before the text, so every reader skips it. config.json may be UTF-16, as JSON once allowed."""
    shutil.copytree(random_model, tmp_path, dirs_exist_ok=True)
    want = fastinfer.load(random_model, device="numpy").embed("ada lived")
    for name in ("config.json", "tokenizer.json"):
        path = tmp_path / name
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
        np.testing.assert_array_equal(fastinfer.load(tmp_path, device="numpy").embed("ada lived"), want)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text("utf-8-sig"), "utf-16")
    np.testing.assert_array_equal(fastinfer.load(tmp_path, device="numpy").embed("ada lived"), want)
    (tmp_path / "vocab.txt").write_bytes(codecs.BOM_UTF8 + b"[PAD]\r\n[UNK]\r\n")
    assert read_vocabulary(tmp_path / "vocab.txt", 2) == ["[PAD]", "[UNK]"]
