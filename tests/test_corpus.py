"""Text for training, from files and public sources to paragraphs to ids: fastinfer/evaluation/articles.py, tools/training/corpus.py,
tools/get_text.py and tools/text. Texts are kept out, faulty files are named.
"""

import dataclasses
import gzip
import json
import lzma
import re
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tokenizer
from models import load_tool

from fastinfer.errors import InputError
from fastinfer.evaluation import articles

pytest.importorskip("tqdm", reason="tools/training needs tqdm")
text = load_tool("training.corpus")

ROOT = Path(__file__).parents[1]

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
    tested = write(tmp_path, "tested.txt", "Never.\nIt was the best of")
    assert get_text.main([str(tmp_path / "out.txt"), str(tmp_path / "src"), "--leave-out", str(tested)]) == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == ["= Salt & Pepper =", long.strip(), "It was <the> best of times."]
    tested.write_text("Or so: line that is long enough to be a paragraph. Or not.")
    assert get_text.main([str(tmp_path / "out.txt"), str(tmp_path / "src"), "--leave-out", str(tested)]) == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == ["It was <the> best of times."]
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


# --- public sources, and what models are tested on -----------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "content", "texts"),
    [
        ('field("a", "b")', '{"x": {"a": "one"}, "b": ["two", "three"], "c": "no"}', ["one", "two", "three"]),
        ('field("a")', '{"a": "one"}\n\n{"a": "two"}\n', ["one", "two"]),
        ('passage("s", "t")', '{"s": ["One.", "Two."], "t": ["Three."]}\n{"s": ["Four."]}\n', ["One. Two.", "Three.", "Four."]),
        ("column(1)", 'a\tsay "hi\nb\tbye\nc\n', ['say "hi', "bye"]),
        ('column("text")', 'id\ttext\n1\t"one\ttwo"\n2\tthree\n', ["one\ttwo", "three"]),
        ('pattern("^- ([^:]+):|> (.+?)$")', "- one: x\nno\n> two\n", ["one", "two"]),
        ('entries("definition", "example")', "a:\n  definition:\n  - 'it''s one'\n  - \"two\n    lines\"\n  example:\n  - source: x\n"
         "    text: no\n  members:\n  - none\nb:\n  definition: three\n", ["it's one", "two lines", "three"]),
        ('entries("Description")', "Name: x\nDescription: |\n  One\n  two.\nTags:\n  - no\n", ["One two."]),
    ],
)  # fmt: skip
def test_readers(tmp_path, reader, content, texts):
    readers = load_tool("text.readers")
    path = tmp_path / "a.tsv"
    assert [text for text in eval(reader, vars(readers))(path, content) if text] == texts


def test_a_table_with_commas_has_quoted_cells(tmp_path):
    readers = load_tool("text.readers")
    assert list(readers.column("caption")(tmp_path / "a.csv", 'id,caption\n1,"A dog, and\na cat"\n')) == ["A dog, and\na cat"]


def test_markdown_and_posts_become_paragraphs(tmp_path):
    readers, make = load_tool("text.readers"), load_tool("text.make")
    page = (
        "---\ntitle: no\n---\n# No\n\nOne [link](http://x/(y)z) and\n`code`.\n\n* Two, **bold**\n  * Three [ref][1]\n\n"
        "```sh\nno\n```\n| no | no |\n> no\n\n[1]: http://no\n![no](no.png)\n"
    )
    found = [make.tidy(text) for text in readers.markdown(tmp_path, page)]
    assert [text for text in found if text] == ["One linkz) and code.", "Two, bold", "Three ref"]
    dump = (
        '<posts>\n  <row Id="1" Body="&lt;p&gt;One &amp;amp; two.&lt;/p&gt;&#xA;&lt;pre&gt;no&lt;/pre&gt;'
        '&lt;p&gt;Three &lt;b&gt;x&lt;/b&gt;.&lt;/p&gt;" Title="A &quot;title&quot;?" />\n'
        '  <row Id="2" Body="&lt;p&gt;Four.&lt;/p&gt;" />\n</posts>\n'
    )
    found = [make.tidy(text) for text in readers.posts(tmp_path, dump)]
    assert [text for text in found if text] == ['A "title"?', "One & two.", "Three x .", "Four."]


def test_packed_files_are_opened_and_broken_ones_refused(tmp_path):
    readers = load_tool("text.readers")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a/README.txt", "no")
        packed.writestr("a/b.txt", "one")
        packed.writestr("a/c.txt", "two")
    assert readers.content(tmp_path / "a.zip").split() == ["one", "two"]
    assert [readers.content(write(tmp_path, name, "three")) for name in ("a.gz", "a.xz")] == ["three", "three"]
    for name in ("b.gz", "b.xz", "b.zip"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(OSError, match=r"archive"):
            readers.content(tmp_path / name)


def words(rng, count):
    return " ".join(rng.choice(["red", "blue", "green"], count))


def test_eight_words_in_a_row_are_found_as_plain_search_finds_them(tmp_path):
    """With three words to choose from, some of the lines share eight in a row with a text; the oracle looks for them as strings."""
    overlap = load_tool("text.overlap")
    rng = np.random.default_rng()
    texts = [words(rng, n) for n in rng.integers(1, 25, 60)]
    tested = overlap.Evaluated([write(tmp_path, "a.txt", "\n".join(texts))])
    runs = {" ".join(text.split()[i : i + 8]) for text in texts for i in range(len(text.split()) - 7)}
    lines = [words(rng, n) for n in rng.integers(1, 15, 2000)]
    found = 0
    for line in lines:
        long = len(line.split()) >= 8
        shared = tested.shares(line)
        assert (shared is not None) == (any(f" {run} " in f" {line} " for run in runs) if long else line in texts), line
        if shared is not None:
            found += 1
            assert shared in runs if long else shared == line
    assert 0 < found < len(lines)


EIGHT = "the quick brown fox jumps over the lazy dog again"
TESTED = {
    "a.txt": f"{EIGHT}\nCancel my card",
    "a.tsv": f"1\tSome words\t{EIGHT}\nno\t2\tCancel my card\n",
    "a.csv": f'label,text\nx,"{EIGHT}"\ny,Cancel my card\n',
    "a.json": json.dumps({"train": [[EIGHT, "x"]], "test": {"text": "Cancel my card"}}),
    "a.jsonl.gz": f"{json.dumps({'text': EIGHT})}\n{json.dumps(['Cancel my card'])}\n",
}


@pytest.mark.parametrize("name", TESTED)
def test_check_finds_what_is_shared_and_leave_out_drops_it(tmp_path, capsys, name):
    get_text = load_tool("get_text")
    tested = str(write(tmp_path, name, TESTED[name]))
    seven = "They say: quick brown fox jumps over the lazy cat"
    clean = [seven, "cancel my card please", "Cancel", "the quick brown fox jumps over the"]
    shared = ["He said: Brown fox -- JUMPS over the lazy dog, again! And left", "cancel my CARD."]
    corpus = write(tmp_path, "corpus.txt", "\n".join([f"= {EIGHT} =", *clean]))
    assert get_text.main(["check", str(corpus), "--against", tested]) == 0
    assert f"{corpus}: 0 of {len(clean)} lines share words with them" in capsys.readouterr().out
    corpus.write_text("\n".join([*clean, *shared]))
    assert get_text.main(["check", str(corpus), "--against", tested]) == 1
    printed = capsys.readouterr()
    assert f"{corpus}: 2 of {len(clean) + 2} lines share words with them" in printed.out
    assert '"brown fox jumps over the lazy dog again" in: He said: Brown fox' in printed.out
    assert '"cancel my card" in: cancel my CARD.' in printed.out
    assert "2 lines share 8 words in a row" in printed.err
    out = tmp_path / "out.txt"
    assert get_text.main([str(out), str(corpus), "--leave-out", tested]) == 0
    assert out.read_text().splitlines() == [get_text.as_typed(line) for line in clean]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"x", "a.pdf is not a data set that is known here"),
        ("a.json", b"[1", "a.json cannot be read: Expecting"),
        ("a.txt.gz", b"no archive", "a.txt.gz cannot be read: .*archive"),
        ("a.txt", b" \n-- \n", "a.txt holds no text"),
        ("none.txt", None, "none.txt cannot be read: .*No such file"),
    ],
)
def test_data_sets_that_cannot_be_read_are_named(tmp_path, capsys, name, content, message):
    get_text = load_tool("get_text")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    corpus = write(tmp_path, "corpus.txt", "One line.")
    for arguments in (["check", str(corpus), "--against"], [str(tmp_path / "out.txt"), str(corpus), "--leave-out"]):
        assert get_text.main([*arguments, str(tmp_path / name)]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out.txt").exists()


def clone(folder, files):
    """A clone with one commit of these files, and the name of the commit."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:12]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Clones of two repositories as the only sources, with one that is not there and one at another commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    sources, readers = load_tool("text.sources"), load_tool("text.readers")
    long = "A paragraph of an article that is as long as it has to be so that nobody takes it for a heading. " * 3
    asked = [f"What is the name of number {i}?" for i in range(400)]
    one = clone(tmp_path / "one", {"a.txt": "\n".join([*asked, "no", "zürich über straße öl", "1234 5678 9012", f"x {'y' * 60}"])})
    two = clone(
        tmp_path / "two", {"wiki_00": f'<doc id="1" title="Two">\nTwo\n\n{long}\n</doc>\n', "b.md": f"{asked[3].upper()}\n\nA last text.\n"}
    )
    monkeypatch.setattr(
        sources,
        "SOURCES",
        (
            sources.Source("queries", "x/one", one, "CC0", "*.txt", readers.column(0)),
            sources.Source("articles of all", "x/two", two, "CC BY 4.0", "wiki_*", readers.articles),
            sources.Source("articles of all", "x/two", "0" * 12, "CC BY 4.0", "*.md none/*.md", readers.markdown),
            sources.Source("news", "x/three", "1" * 12, "MIT", "*.txt", readers.column(0)),
        ),
    )
    return tmp_path, asked, long.strip()


def test_sources_become_a_file_for_each_kind(shelf, capsys):
    get_text = load_tool("get_text")
    folder, asked, long = shelf
    tested = write(folder, "tested.txt", f"{asked[5]}\n{asked[7].upper()} !")
    arguments = ["make", str(folder / "out"), "--clones", str(folder), "--leave-out", str(tested)]
    assert get_text.main(arguments) == 0
    left = [get_text.as_typed(line) for i, line in enumerate(asked) if i not in (5, 7)]
    assert (folder / "out" / "queries.txt").read_text().splitlines() == left
    assert (folder / "out" / "articles-of-all.txt").read_text().splitlines() == ["= Two =", long, "A last text."]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["articles-of-all.txt", "queries.txt"]
    printed = capsys.readouterr()
    assert "x/three: " in printed.err
    assert "git clone https://github.com/x/three && git -C three checkout 111111111111" in printed.err
    assert "x/two is at" in printed.err
    assert re.search(r"398 +0 +2  x/one, CC0", printed.out)
    assert re.search(r"1 +1 +0  x/two, CC BY 4.0", printed.out)
    assert get_text.main(["check", str(folder / "out" / "queries.txt"), "--against", str(tested)]) == 0


def test_a_share_of_a_source_is_the_same_each_time(shelf):
    make, overlap, sources = (load_tool(f"text.{name}") for name in ("make", "overlap", "sources"))
    folder, asked, _ = shelf
    some = dataclasses.replace(sources.SOURCES[0], share=0.25, kind="sentences")
    taken = []
    for name in ("a", "b"):
        make.make([some], folder, folder / name, overlap.Evaluated())
        taken.append((folder / name / "sentences.txt").read_text().splitlines())
    assert taken[0] == taken[1]
    assert set(taken[0]) < set(asked)
    assert 60 < len(taken[0]) < 150  # 400 of chance 0.25: 100 and a deviation of 9


def test_no_source_and_files_of_another_form_are_errors(shelf, capsys):
    get_text, sources, readers = load_tool("get_text"), load_tool("text.sources"), load_tool("text.readers")
    folder, *_ = shelf
    assert get_text.main(["make", str(folder / "out"), "--clones", str(folder / "nowhere")]) == 1
    assert "holds no clone of a source: python tools/get_text.py sources names them" in capsys.readouterr().err
    broken = dataclasses.replace(sources.SOURCES[0], read=readers.column("question"))
    with pytest.raises(InputError, match=r"a\.txt is not what x/one holds at"):
        load_tool("text.make").make([broken], folder, folder / "out", load_tool("text.overlap").Evaluated())
    assert list((folder / "out").iterdir()) == []


def test_the_document_of_the_text_has_the_table_of_the_sources(capsys):
    get_text, sources = load_tool("get_text"), load_tool("text.sources")
    assert get_text.main(["sources"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "text.md").read_text()
    assert get_text.main(["sources", "--clone"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(set(commands))
    for source in sources.SOURCES:
        assert source.terms
        assert source.clone in ("", *commands)
        assert re.fullmatch(r"[0-9a-f]{12}", source.commit) or source.get or source.repository == "installed Python packages"
        assert 0 < source.share <= 1
