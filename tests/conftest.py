"""Fixtures: tiny models with a tokenizer in folders, and the command line on one of them."""

import io
import json
import random
import signal
import sys

import builders
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

import fastinfer
from fastinfer import backends, checkpoint, cli
from fastinfer.backends import cpu
from fastinfer.config import Answer, Classify, Embed, FillMask, Ids, Norm, Positions, Prompt, Tag, Tasks

# device="auto" never takes a GPU in tests, because answers of the CPU do not depend on the batch. Tests of a GPU name it.
backends.AUTO = ("cpu", "numpy")
# A call uses as many threads as a test asks for, even on a machine with fewer CPUs.
cpu.most_threads = lambda: 1024
# A script that starts the tests in the background, or nohup, makes them and the processes that they start ignore a signal.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "ada", "lovelace", "lived", "in", "london", "paris", "is", "the", "capital", "of", "france"]
WORDS += ["friend", "##ly", "un", "##friend", ".", "?"]
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def make_tokenizer() -> tokenizers.Tokenizer:
    """BERT's WordPiece over WORDS. It asks for padding and for truncation to 4 tokens, and the package must ignore both."""
    raw = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    raw.add_special_tokens(SPECIAL)
    raw.enable_padding(length=9)
    raw.enable_truncation(4)
    return raw


# Versions 0.23.1 and 0.23.2 of the library cut differently from those before and after, so they are not an oracle of long texts.
cuts_right = pytest.mark.skipif(tokenizers.__version__ in ("0.23.1", "0.23.2"), reason="this version of tokenizers loses tokens in a cut")


def make_config(**changes):
    """A one-layer Config that fits the tokenizer, with every head unless `changes` has other tasks."""
    tasks = Tasks(
        Embed("mean", True), FillMask(False, tied=False, bias=False), Classify(("no", "yes"), "softmax", "mean"), Tag(LABELS), Answer()
    )
    options = {
        "hidden": 32,
        "vocabulary": len(WORDS),
        "norm": Norm("pre", 1e-12),
        "positions": Positions("learned", 32),
        "max_tokens": 32,
        "embedding_norm": False,
        "token_types": 2,
        "ids": Ids(0, 4, 2, 3),
        "tasks": tasks,
    }
    return builders.tiny(**options | changes)


@pytest.fixture
def team(request, monkeypatch):
    """Its parameter names the team of threads that computes during a test, and in the processes that it starts."""
    teams = fastinfer.info()["teams"]
    if teams is None:
        if request.param != "own":
            pytest.skip("the compiled module is not built")
        yield "own"
        return
    try:
        fastinfer.set_team(request.param)
    except fastinfer.BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("FASTINFER_TEAM", request.param)
    yield request.param
    fastinfer.set_team(teams["chosen"])


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> str:
    """The folder of a model with random weights and every head."""
    return make_model(tmp_path_factory.mktemp("random"))


def make_model(folder, **changes) -> str:
    """The folder, with a model with random weights in it. changes: of its Config."""
    config = make_config(**changes)
    checkpoint.save(folder, config, builders.weights(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory) -> str:
    """The folder of an embedder whose queries and documents have prompts, so that a missing or a wrong prompt changes a vector."""
    head = Embed("mean", True, prompts=(Prompt("query", "who is "), Prompt("document", "the ")))
    return make_model(tmp_path_factory.mktemp("embedder"), tasks=Tasks(head, None, None, None, None))


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory) -> str:
    """The folder of a model that scores pairs."""
    return make_model(tmp_path_factory.mktemp("cross"), tasks=Tasks(None, None, Classify(("score",), "sigmoid", "cls"), None, None))


@pytest.fixture
def texts() -> list[str]:
    """12 random texts of three words, all different."""
    return [f"{a} {b} {random.choice(WORDS[5:])}" for a, b in random.sample([(a, b) for a in WORDS[5:] for b in WORDS[5:]], 12)]


@pytest.fixture
def queries(embedder, texts) -> np.ndarray:
    """The vectors that `embedder` itself gives to the texts as queries."""
    return fastinfer.load(embedder).embed([f"who is {text}" for text in texts], prompt="")


@pytest.fixture
def documents(embedder, texts) -> np.ndarray:
    """The vectors that `embedder` itself gives to the texts as documents."""
    return fastinfer.load(embedder).embed([f"the {text}" for text in texts], prompt="")


@pytest.fixture
def readable_model(tmp_path):
    """make(tables, **config changes) -> folder of a model whose heads give each word the outputs in `tables`, in any context.

    tables  {head: {word: one value per output}}; other words have zeros

    The layer adds nothing, so a word's hidden state is one-hot at its id. The rows of a table are the weights of its head.
    """

    def make(tables=(), **changes) -> str:
        config = make_config(**changes)
        made = {}
        for name, weight in builders.weights(config).items():
            made[name] = checkpoint.Tensor(np.zeros_like(weight.data), weight.dtype)
        made["embedding.word"].data[:] = np.eye(config.vocabulary, config.hidden)
        for head, rows in dict(tables).items():
            tensor = made[f"tasks.{head}.{'decoder' if head == 'fill_mask' else 'out'}.weight"]
            for word, values in rows.items():
                tensor.data[:, WORDS.index(word)] = values
        checkpoint.save(tmp_path / "readable", config, made)
        make_tokenizer().save(str(tmp_path / "readable" / "tokenizer.json"))
        return str(tmp_path / "readable")

    return make


@pytest.fixture
def run(capfd, monkeypatch):
    """run(*arguments, stdin) -> (status, output, errors) of the command line. stdin: bytes, or None for a terminal."""

    def run(*arguments, stdin=b""):
        stream = io.TextIOWrapper(io.BytesIO(stdin or b""))
        if stdin is None:
            stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stream)
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as stop:
            status = stop.code
        sys.stdout.flush()
        return (status, *capfd.readouterr())

    return run


@pytest.fixture
def embed(run, random_model):
    """embed(*arguments) -> the texts (pairs as lists) in the output of embed --json."""

    def embed(*arguments, stdin=b""):
        status, out, err = run("embed", "-m", random_model, "--json", *arguments, stdin=stdin)
        assert (status, err) == (0, "")
        records = [json.loads(line) for line in out.split("\n")[:-1]]
        assert all(set(r) <= {"text", "pair", "embedding"} and len(r["embedding"]) == 32 for r in records)
        return [[r["text"], r["pair"]] if "pair" in r else r["text"] for r in records]

    return embed
