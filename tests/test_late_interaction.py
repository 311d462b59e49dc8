"""embed_tokens and MaxSim give what sentence-transformers' MultiVectorEncoder gives for every layout, and what plain BERT says."""

import dataclasses
import json
import string
import warnings

import builders
import numpy as np
import pytest
from backends import COMPILED
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import checkpoint
from fastinfer.config import Embed, Tasks
from fastinfer.errors import ConfigError, InputError, TaskError
from fastinfer.heads import embed_tokens
from fastinfer.retrieval import EmbedTokens, Expansion, Side, TokenLayer

QUERIES = ["Who lived in London?", "", "?", "a [MASK] in Paris", "the capital of France is Paris, the capital of Italy is Rome " * 3]


@pytest.fixture(scope="module")
def parity():
    return pytest.importorskip("parity", reason="the oracles need PyTorch and transformers", exc_type=ImportError)


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("torch")
    package = pytest.importorskip("sentence_transformers")
    if not hasattr(package, "MultiVectorEncoder"):
        pytest.skip("this version of sentence-transformers has no MultiVectorEncoder")
    return package


class Body:
    """A random transformer of a case of parity.py with markers in its vocabulary, and a projection."""

    def __init__(self, parity, number, folder, prefix="", markers=("[unused0]", "[unused1]"), width=24):
        self.folder, torch = folder, parity.torch
        pair = parity.pair(parity.CASES[number], "fill_mask", folder)
        self.tokenizer, self.model = pair.tokenizer, pair.theirs.base_model.eval()
        data = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = data["model"]["vocab"]
        for id_, marker in zip((len(vocabulary) - 2, len(vocabulary) - 1), markers, strict=True):
            if isinstance(vocabulary, list):
                vocabulary[id_][0] = marker
            else:
                vocabulary[marker] = vocabulary.pop(next(token for token, i in vocabulary.items() if i == id_))
        (folder / "tokenizer.json").write_text(json.dumps(data))
        self.ids = {token: i for i, (token, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary
        self.ids |= {token["content"]: token["id"] for token in data["added_tokens"]}
        generator = torch.Generator().manual_seed(number)
        self.weight = torch.randn(width, self.model.config.hidden_size, generator=generator) * 0.3
        self.store({prefix + name: tensor for name, tensor in self.model.state_dict().items()})

    def store(self, tensors, folder=None):
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, (folder or self.folder) / "model.safetensors")

    def write(self, name, value):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(json.dumps(value))

    def edit(self, name, **changes):
        self.write(name, json.loads((self.folder / name).read_text()) | changes)


def stanford(parity, folder, **metadata):
    """A folder as stanford-futuredata/ColBERT writes it."""
    body = Body(parity, 0, folder, "bert.")
    body.store({**{f"bert.{name}": tensor for name, tensor in body.model.state_dict().items()}, "linear.weight": body.weight})
    body.edit("config.json", architectures=["HF_ColBERT"])
    settings = {"query_maxlen": 20, "doc_maxlen": 40, "dim": 24, "attend_to_mask_tokens": False, "mask_punctuation": True}
    body.write("artifact.metadata", settings | {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"} | metadata)
    return body


def with_dense(body, i, kind, bias=False, activation="Identity", name="1_Dense", width=None):
    weight = body.weight if width is None else body.weight[:width, : len(body.weight)]
    config = {"in_features": weight.shape[1], "out_features": len(weight), "bias": bias}
    body.write(f"{name}/config.json", config | {"activation_function": f"torch.nn.modules.linear.{activation}"})
    body.store({"linear.weight": weight, **({"linear.bias": weight[:, 0]} if bias else {})}, body.folder / name)
    return {"idx": i, "name": str(i), "path": name, "type": kind}


def pylate(parity, folder, number=0, **around):
    """A folder as lightonai/pylate writes it: the markers are tokens with a space."""
    body = Body(parity, number, folder, markers=("[Q] ", "[D] "))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    body.write("modules.json", [*modules, with_dense(body, 1, "pylate.models.Dense.Dense")])
    body.write("sentence_bert_config.json", {"max_seq_length": 63, "do_lower_case": False})
    defaults = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
    }
    defaults |= {"query_length": 24, "document_length": 30, "attend_to_expansion_tokens": False, "skiplist_words": list(string.punctuation)}
    body.write("config_sentence_transformers.json", defaults | {"do_query_expansion": True} | around)
    return body


def native(parity, package, folder, number=0, expansion=None, **options):
    """A folder that sentence-transformers itself saves."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    (folder / "body").mkdir()
    body = Body(parity, number, folder / "body", markers=("[unused0]", "[unused1]"))
    similarity = options.pop("similarity", None)
    transformer = Transformer(str(body.folder), query_expansion=expansion, **options)
    dense = Dense(32, 24, bias=True, activation_function=parity.torch.nn.Tanh(), module_input_name="token_embeddings")
    mask = MultiVectorMask(skiplist_words=[",", "!", "lived", "nothing"])
    prompts = {"query": "Who: ", "document": "What: "}
    model = package.MultiVectorEncoder(
        modules=[transformer, dense, mask, Normalize(module_input_name="token_embeddings")],
        prompts=prompts,
        similarity_fn_name=similarity,
        device="cpu",
    )
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"


def assert_agrees(parity, package, folder, atol=3e-5):
    """Vectors and scores are those of MultiVectorEncoder for the folder. Returns our model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = package.MultiVectorEncoder(str(folder), device="cpu")
        model = fastinfer.load(folder, dtype="float32")
        texts = [*parity.TEXTS, *parity.LONG]
        for mine, want in (
            (model.embed_tokens(QUERIES, query=True), theirs.encode_query(QUERIES)),
            (model.embed_tokens(texts), theirs.encode_document(texts)),
        ):
            for text, got, vectors in zip(QUERIES if len(mine) == len(QUERIES) else texts, mine, want, strict=True):
                assert got.shape == tuple(vectors.shape), text
                assert_allclose(got, vectors.numpy(), atol=atol, err_msg=text)
        for query in QUERIES:
            scores = theirs.similarity(theirs.encode_query([query]), theirs.encode_document(texts))[0].numpy()
            assert_allclose([score for _, score in sorted(model.rank(query, texts))], scores, rtol=1e-4, atol=1e-4)
            assert scores[model.rank(query, texts, top_k=1)[0][0]] >= scores.max() - 1e-4
    return model


@pytest.mark.parametrize("metadata", [{}, {"attend_to_mask_tokens": True}, {"mask_punctuation": False, "query_maxlen": 9}], ids=str)
def test_stanford(parity, package, tmp_path, metadata):
    body = stanford(parity, tmp_path, **metadata)
    model = assert_agrees(parity, package, tmp_path)
    head = model.config.tasks.embed_tokens
    assert model.tasks == ("embed_tokens",)
    assert (head.query.marker, head.document.marker) == (body.ids["[unused0]"], body.ids["[unused1]"])
    assert (len(head.skip) > 10) == metadata.get("mask_punctuation", True)
    assert {len(vectors) for vectors in model.embed_tokens(QUERIES[:4], query=True)} == {metadata.get("query_maxlen", 20)}


@pytest.mark.parametrize("attend", [False, True])
def test_plain_bert_says_the_same(parity, tmp_path, attend):
    """The tokens, the attention mask and the scaling, written down: [CLS] marker text [SEP], then mask tokens that are seen or not."""
    torch = parity.torch
    body = stanford(parity, tmp_path, attend_to_mask_tokens=attend)
    model = fastinfer.load(tmp_path, dtype="float32")
    for text in ("Who lived in London?", "Paris"):
        plain = body.tokenizer(text, add_special_tokens=False)["input_ids"]
        cls, sep, mask = (body.ids[token] for token in ("[CLS]", "[SEP]", "[MASK]"))
        ids = [cls, body.ids["[unused0]"], *plain, sep]
        seen = torch.zeros(20, dtype=torch.long)
        seen[: 20 if attend else len(ids)] = 1
        document = [cls, body.ids["[unused1]"], *plain, sep]
        with torch.no_grad():
            asked = body.model(torch.tensor([ids + [mask] * (20 - len(ids))]), attention_mask=seen[None]).last_hidden_state[0]
            given = body.model(torch.tensor([document])).last_hidden_state[0]
        keep = [id_ not in {body.ids.get(char) for char in string.punctuation} for id_ in document]
        for got, states in ((model.embed_tokens(text, query=True), asked), (model.embed_tokens(text), given[keep])):
            want = torch.nn.functional.normalize(states @ body.weight.T, dim=-1).numpy()
            assert_allclose(got[0], want, atol=2e-5)


@pytest.mark.parametrize(
    "around",
    [
        {},
        {"attend_to_expansion_tokens": True, "skiplist_words": [",", "no such token"]},
        {"do_query_expansion": False, "query_length": 12, "skiplist_words": []},
        {"prompts": {"query": "Who: ", "document": "[D] What: "}, "model_type": "ColBERT"},
    ],
    ids=str,
)
def test_pylate(parity, package, tmp_path, around):
    pylate(parity, tmp_path, **around)
    assert_agrees(parity, package, tmp_path)


@pytest.mark.parametrize("number", [1, 3])
def test_pylate_with_two_layers(parity, package, tmp_path, number):
    body = pylate(parity, tmp_path, number=number)
    modules = json.loads((tmp_path / "modules.json").read_text())
    body.write("modules.json", [*modules, with_dense(body, 2, "pylate.models.Dense.Dense", bias=True, name="2_Dense", width=8)])
    model = assert_agrees(parity, package, tmp_path)
    assert model.config.tasks.embed_tokens.layers == (TokenLayer(24), TokenLayer(8, True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expansion": {"strategy": "fixed", "length": 14}, "document_length": 20, "similarity": "meanmaxsim"},
        {"expansion": {"strategy": "min", "length": 14, "attend": True, "token": "Paris"}, "query_length": 20},
        {"expansion": {"strategy": "min", "length": 30}, "query_length": None},
        {"query_length": 9, "document_length": 11},
    ],
    ids=str,
)
def test_sentence_transformers(parity, package, tmp_path, options):
    if "token" in (options.get("expansion") or {}):
        options = options | {"expansion": options["expansion"] | {"token": "[unused0]"}}
    folder = native(parity, package, tmp_path, **options)
    model = assert_agrees(parity, package, folder)
    head = model.config.tasks.embed_tokens
    assert head.layers == (TokenLayer(24, True, "tanh"),)
    assert (head.query.prompt, head.document.prompt) == ("Who: ", "What: ")
    out = tmp_path / "ours"
    config, stored = checkpoint.load(folder)
    checkpoint.save(out, config, stored, tokenizer=folder / "tokenizer.json")
    again = fastinfer.load(out)
    assert again.config == model.config
    for query in (False, True):
        for a, b in zip(again.embed_tokens(QUERIES[:3], query=query), model.embed_tokens(QUERIES[:3], query=query), strict=True):
            assert_array_equal(a, b)


HEAD = EmbedTokens((TokenLayer(12, True, "tanh"), TokenLayer(5)), Side("", 6, 8), Side("", 7), Expansion(7, 1), (8, 9))


@pytest.mark.parametrize("device", ["numpy", *COMPILED])
@pytest.mark.parametrize("attend", [False, True])
def test_vectors_do_not_depend_on_batch_or_threads(device, attend, tmp_path):
    head = dataclasses.replace(HEAD, expansion=Expansion(7, 1, attend))
    config = builders.tiny(token_types=2, tasks=Tasks(embed_tokens=head))
    builders.save(tmp_path, config)
    model = fastinfer.load(tmp_path, device=device)
    rows = [row[:7] for row in builders.rows(config, 3, 40)]
    types = [[i % 2 for i in range(len(row))] for row in rows]
    batch = embed_tokens.prepared(fastinfer.PackedBatch.from_ids(rows, types), head, query=True)
    equal = (lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5)) if device == "numpy" else assert_array_equal
    want = model.embed_tokens(batch, query=True)
    assert {len(vectors) for vectors in want} == {7, 8}
    for options in ({"batch_tokens": 7}, {"threads": 3}):
        for a, b in zip(model.embed_tokens(batch, query=True, **options), want, strict=True):
            equal(a, b)
    for b, row in enumerate(rows):
        alone = embed_tokens.prepared(fastinfer.PackedBatch.from_ids([row], [types[b]]), head, query=True)
        equal(model.embed_tokens(alone, query=True)[0], want[b])
        if not attend:  # the marker and the text do not see the tokens behind them
            plain = dataclasses.replace(alone.select(np.array([0])), keys=None)
            ids, kinds = plain.ids[: len(row) + 1], plain.token_types[: len(row) + 1]
            bare = fastinfer.PackedBatch.from_flat(ids, np.array([len(ids)]), kinds)
            equal(model.embed_tokens(bare, query=True)[0], want[b][: len(ids)])


def test_a_batch_is_prepared():
    rows, types = [[2, 5, 3], [2, 3]], [[0, 1, 1], [0, 1]]
    batch = embed_tokens.prepared(fastinfer.PackedBatch.from_ids(rows, types), dataclasses.replace(HEAD, expansion=Expansion(4, 1)), True)
    assert [part.tolist() for part in batch.split(batch.ids)] == [[2, 6, 5, 3], [2, 6, 3, 1]]
    assert [part.tolist() for part in batch.split(batch.token_types)] == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch.keys.tolist() == [4, 3]
    batch = embed_tokens.prepared(fastinfer.PackedBatch.from_ids(rows), HEAD, False)
    assert [part.tolist() for part in batch.split(batch.ids)] == [[2, 7, 5, 3], [2, 7, 3]]
    assert batch.keys is None
    assert embed_tokens.kept(np.array([2, 7, 8, 9, 3]), HEAD, False).tolist() == [True, True, False, False, True]
    assert embed_tokens.kept(np.array([8]), HEAD, True).all()


def test_maxsim_is_the_sum_of_best_matches():
    rng = np.random.default_rng(3)
    query, document = rng.standard_normal((5, 4), np.float32), rng.standard_normal((7, 4), np.float32)
    want = sum(max(float(np.dot(q, d)) for d in document) for q in query)
    assert embed_tokens.maxsim(query, document, HEAD) == pytest.approx(want, rel=1e-5)
    mean = dataclasses.replace(HEAD, similarity="meanmaxsim")
    assert embed_tokens.maxsim(query, document, mean) == pytest.approx(want / 5, rel=1e-5)
    assert embed_tokens.maxsim(query, document[:0], HEAD) == -np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": Side("", 24)}, r"embed_tokens.query.marker is 24, expected 0 to vocabulary-1=23"),
        ({"document": Side("", None, 9)}, "embed_tokens.document.tokens is 9, expected 2 to max_tokens=8"),
        ({"expansion": Expansion(1, 0)}, "embed_tokens.expansion.tokens is 1, expected 2"),
        ({"expansion": Expansion(4, -1)}, "embed_tokens.expansion.token is -1, expected 0"),
        ({"skip": (3, 99)}, r"embed_tokens.skip\[1\] is 99, expected 0"),
        ({"layers": (TokenLayer(0),)}, r"embed_tokens.layers\[0\].width is 0, expected 1"),
        ({"layers": (TokenLayer(1),) * 65}, "embed_tokens.layers lists 65 layers, expected at most 64"),
        ({"similarity": "cosine"}, "embed_tokens.similarity is 'cosine', expected one of maxsim, meanmaxsim"),
    ],
)
def test_heads_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        builders.tiny(tasks=Tasks(embed_tokens=dataclasses.replace(HEAD, **change)))


def test_calls_that_do_not_fit(readable_model):
    model = fastinfer.load(readable_model(tasks=Tasks(embed=Embed("mean", True))))
    with pytest.raises(TaskError, match="has no embed_tokens head; it has embed"):
        model.embed_tokens("ada")
    model = fastinfer.load(readable_model(tasks=Tasks(embed_tokens=EmbedTokens())))
    with pytest.raises(InputError, match=r"texts\[0\] is a pair"):
        model.embed_tokens([("ada", "is")])
    assert model.embed_tokens([]) == []
    assert [vectors.shape for vectors in model.embed_tokens(["ada", "ada lived"])] == [(3, 32), (4, 32)]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("artifact.metadata", {"similarity": "l2"}, "similarity 'l2' is not supported, only cosine"),
        ("artifact.metadata", {"interaction": "flipr"}, "interaction 'flipr' is not supported"),
        ("artifact.metadata", {"query_token_id": "[Q]"}, r"the token '\[Q\]' is not in the vocabulary"),
        ("artifact.metadata", {"query_maxlen": "32"}, "query_maxlen is '32', expected a value of type int"),
        ("artifact.metadata", {"doc_maxlen": 1}, "embed_tokens.document.tokens is 1, expected 2"),
    ],
)
def test_stanford_settings_that_do_not_fit(parity, tmp_path, file, changes, message):
    stanford(parity, tmp_path).edit(file, **changes)
    with pytest.raises(ConfigError, match=message):
        fastinfer.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config_sentence_transformers.json", {"query_prefix": "[X] "}, r"the token '\[X\] ' is not in the vocabulary"),
        ("config_sentence_transformers.json", {"skiplist_words": [3]}, r"skiplist_words \[3\] is not supported, only a list of tokens"),
        ("1_Dense/config.json", {"use_residual": True}, "use_residual True is not supported, only false"),
        ("1_Dense/config.json", {"activation_function": "torch.nn.SiLU"}, "activation_function 'torch.nn.SiLU' is not supported"),
        ("1_Dense/config.json", {"out_features": 3}, r"out_features and in_features are \(3, 32\), but linear.weight is \(24, 32\)"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "module_input_name 'sentence_embedding' is not supported"),
    ],
)
def test_pylate_settings_that_do_not_fit(parity, tmp_path, file, changes, message):
    pylate(parity, tmp_path).edit(file, **changes)
    with pytest.raises(ConfigError, match=message):
        fastinfer.load(tmp_path)
