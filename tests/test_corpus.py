"""fastinfer/evaluation/articles.py, tools/training/corpus.py: from files to paragraphs to ids, texts kept out of training, faulty files."""

import gzip
import json
import lzma
import re
import zlib

import numpy as np
import pytest
from conftest import make_tokenizer
from models import load_tool

from fastinfer.errors import InputError
from fastinfer.evaluation import articles

pytest.importorskip("tqdm", reason="tools/training needs tqdm")
text = load_tool("training.corpus")

WIKI = "\n".join(
    f"= Title {i} =\nParagraph one of {i}. It has two sentences.\n\nParagraph two of {i}, with a comma; and a semicolon." for i in range(60)
)


@pytest.fixture
def tokenizer():
    made = make_tokenizer()
    made.no_padding()
    made.no_truncation()
    return made


def write(folder, name, content):
    path = folder / name
    data = content.encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_lines_of_plain_and_packed_files(tmp_path, name):
    assert list(articles.lines(write(tmp_path, name, "  one \n\ntwö\n"))) == ["one", "twö"]


def test_jsonl_gives_the_lines_of_its_texts(tmp_path):
    rows = [{"text": "one\n\ntwo", "id": 3}, {"text": ""}, {"text": "three"}]
    path = write(tmp_path, "a.jsonl.gz", "\n".join(map(json.dumps, rows)))
    assert list(articles.lines(path)) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "a.csv is no text file"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', 'a.jsonl, line 2 is .*expected an object with a "text"'),
        ("a.jsonl", b"{", "a.jsonl, line 1 is no JSON"),
        ("a.txt", b"fine\n\xff\xfe", "no UTF-8"),
        ("a.txt.gz", gzip.compress(b"some text" * 99, mtime=0)[:-20], "the archive is broken"),
        ("a.txt.xz", lzma.compress(b"some text" * 99)[:-20], "the archive is broken"),
        ("a.txt.gz", b"no archive", "the archive is broken"),
        ("a.txt", b"\n \n", "a.txt holds no text"),
        ("a.txt", b"= Only a title =\n", "a.txt holds no text"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(articles.articles([tmp_path / name]))


def test_articles_begin_at_titles(tmp_path):
    path = write(tmp_path, "a.txt", "before\n= A =\none\ntwo\n= Empty =\n= B =\nthree\n")
    assert list(articles.articles([path])) == [(None, ["before"]), ("A", ["one", "two"]), ("B", ["three"])]


def test_training_and_validation_leave_held_out_articles_alone(tmp_path):
    path = write(tmp_path, "a.txt", WIKI)
    train, validation = (list(text.paragraphs([path], validation=v)) for v in (False, True))
    assert not set(train) & set(validation)
    seen = {int(re.search(r" of (\d+)", paragraph)[1]) for paragraph in train + validation}
    kept_out = {i for i in range(60) if zlib.crc32(f"Title {i}".encode()) % 5 == 0}
    assert kept_out
    assert seen == set(range(60)) - kept_out
    assert [articles.held_out(f"Title {i}") for i in range(60)] == [i in kept_out for i in range(60)]


def test_sentences_end_where_a_new_one_begins():
    found = text.sentences('He came. "Who is it?" she asked. (He left.) 3 men stayed, e.g. by mail. Done')
    assert found == ["He came.", '"Who is it?" she asked.', "(He left.)", "3 men stayed, e.g. by mail.", "Done"]
    assert text.clauses("One, two; three: four") == ["One,", "two;", "three:", "four"]


PARAGRAPHS = [
    "Ada lived in London. Paris is the capital, of France.",
    "Friendly.",
    "The capital. Paris. London is the capital. In France. Ada.",
]


def test_a_corpus_is_the_tokenizers_ids_with_its_parts(tokenizer):
    corpus = text.tokenize(iter(PARAGRAPHS), tokenizer)
    assert corpus.ids.dtype == np.uint16
    starts = corpus.clauses[corpus.sentences[corpus.paragraphs]]
    for paragraph, begin, end in zip(PARAGRAPHS, starts, starts[1:], strict=False):
        assert corpus.ids[begin:end].tolist() == tokenizer.encode(paragraph, add_special_tokens=False).ids
    assert np.diff(corpus.paragraphs).tolist() == [2, 1, 5]
    assert np.diff(corpus.sentences).tolist() == [1, 2, 1, 1, 1, 1, 1, 1]


def test_pieces_are_sentences_clauses_pairs_and_passages(tokenizer):
    corpus = text.tokenize(PARAGRAPHS, tokenizer)
    begin, end = corpus.pieces(12)
    found = [tokenizer.decode(corpus.ids[b:e].tolist()).replace(" .", ".") for b, e in zip(begin, end, strict=True)]
    sentences = [
        "ada lived in london.",
        "paris is the capital of france.",
        "friend ##ly.",
        "the capital.",
        "london is the capital.",
        "in france.",
    ]
    assert found[:6] == sentences  # "Paris." and "Ada." are too short
    assert found[6] == "paris is the capital"  # the first of two clauses; the comma is unknown
    assert found[7].startswith("ada lived in london. paris is")
    assert found[8:] == ["the capital. paris.", "london is the capital. in france.", "the capital. paris. london is the capital."]
    assert (end - begin).max() == 12
    assert (end - begin).min() >= text.SHORTEST


def test_rows_hold_all_ids_in_order(tokenizer):
    corpus = text.tokenize(PARAGRAPHS, tokenizer)
    rows = corpus.rows(6, (2, 3))
    assert (rows[:, 0] == 2).all()
    assert (rows[:, -1] == 3).all()
    np.testing.assert_array_equal(rows[:, 1:-1].ravel(), corpus.ids[: rows[:, 1:-1].size])
    assert len(corpus.ids) - rows[:, 1:-1].size < 4
    with pytest.raises(InputError, match=rf"the text has {len(corpus.ids)} tokens, expected at least 998"):
        corpus.rows(1000, (2, 3))


def test_the_cache_is_used_only_for_the_same_files(tmp_path, tokenizer):
    path, cache = write(tmp_path, "a.txt", WIKI), tmp_path / "cache" / "a.npz"
    first = text.read([path], tokenizer, cache)
    stamp = cache.stat().st_mtime_ns
    for again in (text.read([path], tokenizer, cache), text.read([], tokenizer, cache)):
        for a, b in zip(first, again, strict=True):
            for name in ("ids", "clauses", "sentences", "paragraphs"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert cache.stat().st_mtime_ns == stamp
    title = next(f"T{i}" for i in range(99) if not articles.held_out(f"T{i}"))
    path.write_text(WIKI + f"\n= {title} =\nOne more paragraph, the last.")
    assert len(text.read([path], tokenizer, cache)[0].ids) > len(first[0].ids)
    assert cache.stat().st_mtime_ns != stamp


def test_no_text_and_nothing_left_are_errors(tmp_path, tokenizer):
    with pytest.raises(InputError, match="no text to train on"):
        text.read([], tokenizer)
    title = next(f"T{i}" for i in range(99) if articles.held_out(f"T{i}"))
    with pytest.raises(InputError, match="0 paragraphs are not held out, and none is left to train on"):
        text.read([write(tmp_path, "a.txt", f"= {title} =\nIts only paragraph.")], tokenizer)
    with pytest.raises(InputError, match=r"no tokenizer that the tokenizers library can read"):
        text.read_tokenizer(write(tmp_path, "tokenizer.json", "{}"))


def test_articles_and_novels_become_text(tmp_path, capsys):
    get_text = load_tool("get_text")
    (tmp_path / "src" / "AA").mkdir(parents=True)
    long = "A line that is long enough to be a paragraph of an article, " * 4
    article = f'<doc id="1" title="Salt &amp; Pepper">\nSalt &amp; Pepper\n\n<b>{long}</b>\nHeading.\nBULLET::::- {long}\n</doc>\n'
    stub = '<doc title="Stub">\nStub\n</doc>\n'
    (tmp_path / "src" / "AA" / "wiki_00").write_text(article + stub)
    (tmp_path / "src" / "b.xml").write_text(
        f"<TEI><p>{long}</p><body><p>It was\n   &lt;<hi>the</hi>&gt; best of times.</p><p>No.</p></body></TEI>"
    )
    assert get_text.main([str(tmp_path / "out.txt"), str(tmp_path / "src")]) == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == ["= Salt & Pepper =", long.strip(), "It was <the> best of times."]
    before = (tmp_path / "out.txt").read_text()
    assert get_text.main([str(tmp_path / "out.txt"), str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist: name text of your own" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert get_text.main([str(tmp_path / "out.txt"), str(tmp_path / "empty")]) == 1
    assert "no files wiki_*" in capsys.readouterr().err
    assert (tmp_path / "out.txt").read_text() == before


def test_documentation_of_python_becomes_text_and_labels(tmp_path, capsys):
    get_text = load_tool("get_text")
    prose = "Return the {} of all the texts, in the order in which they were given."
    for package in ("apples", "pears"):
        for name in (f"m{i}" for i in range(30)):
            file = tmp_path / "lib" / package / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").write_text("")
            what = prose.format(f"{package} ``{name}``")
            file.write_text(f'def f():\n    """{what} They are many.\n\n    x : int\n        A number of the things to be had.\n    """\n')
    out = tmp_path / "new" / "out.txt"
    assert get_text.main([str(out), str(tmp_path / "lib"), "--labelled", str(tmp_path / "data")]) == 0
    lines = out.read_text().splitlines()
    assert lines[:2] == ["= apples.m0 =", prose.format("apples m0") + " They are many."]
    assert len(lines) == 120
    parts = {}
    for name in ("train", "dev"):
        header, *rows = (tmp_path / "data" / f"{name}.csv").read_text().splitlines()
        assert header == '"text","label"'
        parts[name] = [tuple(row.strip('"').rsplit('","', 1)) for row in rows]
    wanted = {(prose.format(f"{p} m{i}"), p): articles.held_out(f"{p}.m{i}") for p in ("apples", "pears") for i in range(30)}
    assert set(parts["train"]) == {row for row, scored in wanted.items() if not scored}
    assert set(parts["dev"]) == {row for row, scored in wanted.items() if scored}
    assert parts["dev"]
    assert "train.csv: " in capsys.readouterr().out


def test_data_sets_become_what_was_asked(tmp_path, capsys):
    get_text = load_tool("get_text")
    source = tmp_path / "src"
    source.mkdir()
    turns = [
        {"speaker": "USER", "utterance": "Find me a bus", "segments": [{"text": "a bus"}], "frames": [{"slots": [{"text": "bus"}]}]},
        {"speaker": "SYSTEM", "utterance": "Where to?"},
    ]
    (source / "a.json").write_text(json.dumps([{"dialogue_id": "1", "turns": turns}]))
    parts = {"data": [{"text": "Play "}, {"text": "Jolene", "entity": "track"}, {"text": " now"}]}
    (source / "b.json").write_text(json.dumps({"PlayMusic": [parts], "said": {"userInput": {"text": "for two  people"}}}))
    (source / "c.jsonl").write_text('{"question": "who wrote it", "answer": ["Ada"]}\n{"qText": "FIND me a bus!"}\n')
    (source / "d.csv").write_text('"My card, is it late",card_arrival\n')
    (source / "e.tsv").write_text('How deep is "the sea\t0.4\n')
    (source / "f.lu").write_text("> note\n# Go\n- go to {City=Rome} by {Day=noon}\n- go to {City}\n$City:Rome=\n- Roma\n")
    (source / "g.qna").write_text("## ? Who are you\n- What are you\n\n```markdown\nA model\n```\n")
    (source / "LICENSE.txt").write_text("All of it")
    (tmp_path / "pairs.txt").write_text("\ufeffGood morning\tGuten Morgen\n")
    (tmp_path / "test.json").write_text(json.dumps({"test": [["Who wrote it?", "author"]]}))
    out = tmp_path / "out.txt"
    leave_out = ["--leave-out", str(tmp_path / "test.json")]
    assert get_text.main([str(out), str(source), str(tmp_path / "pairs.txt"), *leave_out]) == 0
    assert out.read_text().splitlines() == [
        "Find me a bus",
        "Play Jolene now",
        "for two people",
        get_text.as_typed("My card, is it late"),
        'How deep is "the sea',
        "go to Rome by noon",
        "Who are you",
        "What are you",
        "Good morning",
    ]

    texts = [f"Well, is it {i} o'clock?" for i in range(40)]
    typed = [get_text.as_typed(text) for text in texts]
    bare = [text.replace(",", "").replace("?", "") for text in texts]
    assert all(line in pair for line, pair in zip(typed, zip(texts, bare, strict=True), strict=True))
    assert 5 < sum(line == text for line, text in zip(typed, texts, strict=True)) < 35

    (source / "a.json").write_text("[")
    assert get_text.main([str(out), str(source)]) == 1
    assert "a.json" in capsys.readouterr().err
