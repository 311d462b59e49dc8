"""tools/zoo.py: some families give the oracle's answers, wrong settings show, and docs/families.md has every family."""

import re
import tempfile
from pathlib import Path

import pytest
from models import TOOLS, load_tool

pytest.importorskip("sentence_transformers", reason="the zoo needs sentence-transformers", exc_type=ImportError)
zoo = load_tool("zoo")
build, lists = load_tool("families.build"), load_tool("families.lists")
FAMILIES = {family.name: family for family in zoo.FAMILIES}
# One of each task and tokenizer; the command runs them all.
CHOSEN = [
    "sentence-transformers/all-MiniLM-L12-v2",
    "thenlper/gte-small",
    "BAAI/bge-large-en-v1.5",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    "SamLowe/roberta-base-go_emotions",
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    "dslim/bert-base-NER",
    "deepset/roberta-base-squad2",
    "almanach/camembert-base",
    "sentence-transformers/LaBSE",
    "intfloat/multilingual-e5-large",
    "sentence-transformers/stsb-roberta-base-v2",
    "sentence-transformers/multi-qa-mpnet-base-dot-v1",
    "naver/splade-cocondenser-ensembledistil",
    "colbert-ir/colbertv2.0",
    "Snowflake/snowflake-arctic-embed-m",
    "an embedder saved by sentence-transformers 6",
    "cross-encoder/ms-marco-electra-base",
    "nomic-ai/nomic-embed-text-v1",
    "Alibaba-NLP/gte-reranker-modernbert-base",
    "Alibaba-NLP/gte-base-en-v1.5",
    "jinaai/jina-embeddings-v2-base-en",
    "MoritzLaurer/deberta-v3-base-zeroshot-v2.0",
    "sentence-transformers/gtr-t5-base",
    "Qwen/Qwen3-Embedding-0.6B",
    "a LoRA adapter beside its base model",
    "albert/albert-base-v2",
]


@pytest.mark.parametrize("name", CHOSEN)
def test_family(name, capfd):
    (row,) = zoo.run([FAMILIES[name]])
    assert row.kind == ("refused by name" if row.family.refused else "right"), row.line()
    assert name in capfd.readouterr().err


CLS = build.sentence("cls", normalize=True, limit=48)["1_Pooling/config.json"]
TYPES = {"model_input_names": ["input_ids", "attention_mask"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": {"1_Pooling/config.json": CLS}},
        {"extra": {"sentence_bert_config.json": {"max_seq_length": 20}}},
        {"published": {"layer_norm_eps": 1e-2}},
        {"published": {"num_attention_heads": 4}},
        {"names": lambda tensors: {name: t * 1.01 if "query.weight" in name else t for name, t in tensors.items()}},
    ],
    ids=["pooling", "limit", "epsilon", "heads", "weights"],
)
def test_a_wrong_setting_shows(changes, capfd):
    """The published folder says another thing than the one that the oracle opens."""
    family = FAMILIES["sentence-transformers/all-MiniLM-L6-v2"].like("changed", "a change", native=True, **changes)
    (row,) = zoo.run([family])
    assert row.kind == "wrong", row.line()
    assert row.apart > 1e-3


def test_a_family_that_must_be_refused_shows_when_it_loads(capfd):
    (row,) = zoo.run([FAMILIES["sentence-transformers/all-MiniLM-L6-v2"].like("loads", "nothing", refused="nothing")])
    assert row.kind == "wrong"
    (row,) = zoo.run([FAMILIES["albert/albert-base-v2"].like("without its name", "nothing", refused="another word")])
    assert row.kind == "wrong"


def test_the_page_has_every_family():
    """docs/families.md is what the command wrote: a row for each family, in order, and the totals of its rows."""
    page = Path(TOOLS).parent / "docs" / "families.md"
    made = page.read_text().split(zoo.MARKS[0])[1].split(zoo.MARKS[1])[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines() if line.startswith("|") and line.count("|") == 7]
    assert [row[:3] for row in rows[2:]] == [[f.name, f.needs, ", ".join(f.tasks)] for f in zoo.FAMILIES]
    found = {row[0] for row in rows if row[3] == row[4] == "right"}
    for name, models in lists.LISTS.items():
        assert f"| {name} | {sum(family in found for family in models.values())} of {len(models)} |" in made
    counted = re.search(r"(\d+) families: (\d+) right, (\d+) refused by name", made)
    right = sum(row[3] == row[4] == "right" for row in rows)
    assert "WRONG" not in made
    assert [int(n) for n in counted.groups()] == [len(zoo.FAMILIES), right, sum(row[3].startswith("refused by name") for row in rows)]


def test_the_lists_name_families():
    assert len(FAMILIES) == len(zoo.FAMILIES), "two families have one name"
    assert {name: len(models) for name, models in lists.LISTS.items()} == {
        "fastembed, dense": 32,
        "fastembed, rerankers": 6,
        "fastembed, late interaction": 3,
        "fastembed, learned sparse": 4,
        "text-embeddings-inference": 25,
    }
    named = {family for models in lists.LISTS.values() for family in models.values()} - {lists.NONE}
    assert sorted(named - set(FAMILIES)) == []


def test_writing_keeps_what_stands_around_the_table(tmp_path, monkeypatch):
    page = tmp_path / "families.md"
    page.write_text(f"before\n{zoo.MARKS[0]}\nold\n{zoo.MARKS[1]}\nafter\n")
    monkeypatch.setattr(zoo, "PAGE", page)
    zoo.write("new")
    assert page.read_text() == f"before\n{zoo.MARKS[0]}\n\nnew\n\n{zoo.MARKS[1]}\nafter\n"


def test_messages_are_cut_and_free_of_cells():
    folder = tempfile.gettempdir()
    assert zoo.brief(f"{folder}/x/config.json: a | b\nmore") == "a / b"
    assert zoo.brief("word " * 50).endswith(" ...")
