"""`fastinfer routes`: its counts against Model.routes(), its words against the tokenizer, its picture."""

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import builders
import numpy as np
import pytest
from conftest import WORDS, make_config, make_tokenizer
from test_cli import error_of

import fastinfer
from fastinfer import routes
from fastinfer.config import FFF, Dense

TREES, DEPTH = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a dense layer and two layers of trees."""
    path = tmp_path_factory.mktemp("routes")
    builders.save(path, make_config(layers=3, ffn=(Dense(16), FFF(1, 2), FFF(TREES, DEPTH))))
    make_tokenizer().save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def texts(tmp_path):
    found = [" ".join(random.choices(WORDS[5:], k=random.randrange(1, 12))) for _ in range(40)]
    (tmp_path / "texts.txt").write_text("\n".join(found))
    return found


def visited(model, texts, layer, tree):
    """(nodes, z) of every token in one tree."""
    found = [text[layer - 1] for text in model.routes(texts)]
    return np.concatenate([nodes[:, tree] for nodes, _ in found]), np.concatenate([z[:, tree] for _, z in found])


@pytest.mark.parametrize("held", [1, 1 << 26])
def test_counts(run, folder, texts, tmp_path, monkeypatch, held):
    monkeypatch.setattr(routes, "BYTES", held)
    status, out, err = run("routes", "-m", folder, "-i", tmp_path / "texts.txt", "--json", "--tree", 2)
    assert (status, err) == (0, "")
    found, model = json.loads(out), fastinfer.load(folder)
    assert found["texts"] == 40
    assert [layer["layer"] for layer in found["layers"]] == [2, 3]
    for layer, trees, depth in zip(found["layers"], (1, TREES), (2, DEPTH), strict=True):
        paths = [visited(model, texts, layer["layer"], tree) for tree in range(trees)]
        counts = [Counter(nodes.ravel().tolist()) for nodes, _ in paths]
        assert found["tokens"] == len(paths[0][0])
        assert (layer["neurons"], layer["visited"]) == (trees * (2 ** (depth + 1) - 1), sum(map(len, counts)))
        dead = [2 * n + side for count in counts for n in count for side in (1, 2) if n < 2**depth - 1 and 2 * n + side not in count]
        assert (layer["dead_subtrees"], layer["neurons_in_them"]) == (len(dead), layer["neurons"] - layer["visited"])
        assert layer["neurons_in_them"] == sum(2 ** (depth + 1 - (n + 1).bit_length() + 1) - 1 for n in dead)
        for level in layer["levels"]:
            nodes = [n for count in counts for n in count if (n + 1).bit_length() - 1 == level["level"]]
            assert (level["nodes"], level["visited"]) == (trees * 2 ** level["level"], len(nodes))
            most = max(n for count in counts for node, n in count.items() if (node + 1).bit_length() - 1 == level["level"])
            assert level["busiest"] == pytest.approx(most / found["tokens"], rel=1e-6)
            if level["level"] < depth:
                margins = np.concatenate([np.abs(z[:, level["level"]]) for _, z in paths])
                for share, name in ((10, "margin_10"), (50, "margin_50")):
                    assert level[name] == pytest.approx(np.percentile(margins, share, method="inverted_cdf"), rel=0.021)
    assert "margin_50" not in found["layers"][0]["levels"][-1], "leaves decide nothing"


def test_words_of_leaves(run, folder, texts, tmp_path):
    shown = json.loads(run("routes", "-m", folder, "-i", tmp_path / "texts.txt", "--json", "--tree", 3)[1])["shown"]
    model = fastinfer.load(folder)
    assert (shown["layer"], shown["tree"]) == (3, 3)
    want = {}
    for text, encoding, route in zip(texts, model.tokenizer.encode(texts), model.routes(texts), strict=True):
        for leaf, side, (start, end) in zip(route[2][0][:, 2, -1].tolist(), encoding.sequence_ids, encoding.offsets, strict=True):
            want.setdefault(leaf, [])
            want[leaf] += [""] if side is None else [text[start:end]]
    assert {leaf["node"]: leaf["tokens"] for leaf in shown["leaves"]} == {leaf: len(words) for leaf, words in want.items()}
    assert {leaf["node"]: leaf["words"] for leaf in shown["leaves"]} == {
        leaf: dict(Counter(filter(None, words))) for leaf, words in want.items()
    }
    assert [leaf["tokens"] for leaf in shown["leaves"]] == sorted((len(words) for words in want.values()), reverse=True)


def test_as_text_and_as_a_picture(run, folder, texts, tmp_path):
    given = ("routes", "-m", folder, "-i", tmp_path / "texts.txt")
    out = run(*given, "-k", 3)[1]
    assert re.search(r"^    3  3x4 +93 ", out, re.M)
    assert out.split("words that share a leaf of layer 3, tree 1\n")[1].count("\n") == 3
    assert run(*given, "--layer", 2, "-o", tmp_path / "x.svg") == (0, "", "")
    drawn = ElementTree.parse(tmp_path / "x.svg").getroot()
    nodes, _ = visited(fastinfer.load(folder), texts, 2, 0)
    boxes = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(boxes) == len(np.unique(nodes))
    titles = "\n".join(box[0].text for box in boxes)
    for node, count in Counter(nodes.ravel().tolist()).items():
        assert f"neuron {node}: {count:,} tokens" in titles
    widths = Counter()
    for box in boxes:
        widths[box.attrib["y"]] += float(box.attrib["width"])
    assert len(widths) == 3
    assert max(widths.values()) - min(widths.values()) < 5, "each level is as wide as all tokens, less the gaps"


def test_refusals(run, folder, readable_model, tmp_path):
    assert error_of(run("routes", "-m", folder, "ada", "--layer", 1)) == "layer is 1, expected one of those with trees: 2, 3"
    assert "tree is 4, expected an integer from 1 to 3, the trees of layer 3" in error_of(run("routes", "-m", folder, "ada", "--tree", 4))
    assert "has no trees" in error_of(run("routes", "-m", readable_model(ffn=(Dense(16),)), "ada"))
    assert run("embed", "-m", folder, "ada", "-o", tmp_path / "x.svg")[0] == 2


def test_no_texts(run, folder):
    status, out, err = run("routes", "-m", folder)
    assert (status, err) == (0, "")
    assert "0 texts, 0 tokens" in out
