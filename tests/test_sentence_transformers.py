"""Folders that sentence-transformers wrote: vectors, rankings and scores are as it gives them; settings beyond that are refused."""

import json
import shutil

import numpy as np
import pytest
from conftest import WORDS, make_tokenizer
from numpy.testing import assert_allclose

import fastinfer
from fastinfer import checkpoint, conversion
from fastinfer.config import Embed, Project, Prompt, Unit

HIDDEN, LIMIT = 24, 48
SIZES = {"vocab_size": len(WORDS), "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DEVICES = [device for device in ("numpy", "cpu") if fastinfer.backends.available()[device] is None]
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers", minversion="6")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def bare(torch, tmp_path_factory):
    """bare(name, **options) -> the folder of a transformers model and its tokenizer, whose parameters are all random."""
    import transformers

    def make(name="BertModel", **options):
        folder = tmp_path_factory.mktemp(name)
        model = getattr(transformers, name)(transformers.BertConfig(**SIZES, max_position_embeddings=LIMIT, **options)).eval()
        randomize(torch, model)
        model.save_pretrained(folder)
        raw = make_tokenizer()
        raw.no_padding()
        raw.no_truncation()
        names = {f"{key}_token": f"[{key.upper()}]" for key in ("cls", "sep", "pad", "mask", "unk")}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, model_max_length=LIMIT, model_input_names=inputs, **names
        ).save_pretrained(folder)
        return folder

    return make


def randomize(torch, module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture(scope="module")
def body(bare):
    return bare()


@pytest.fixture
def embedder(torch, body, tmp_path):
    """embedder(*modules, pooling, include_prompt, **options) -> (its model in sentence-transformers, its folder)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    def make(*modules, pooling="mean", include_prompt=True, **options):
        for module in modules:
            randomize(torch, module)
        first = [Transformer(str(body)), Pooling(HIDDEN, pooling, include_prompt=include_prompt)]
        SentenceTransformer(modules=[*first, *modules], device="cpu", **options).save(str(tmp_path / "st"), create_model_card=False)
        return SentenceTransformer(str(tmp_path / "st"), device="cpu"), tmp_path / "st"

    return make


@pytest.fixture
def dense(torch):
    from sentence_transformers.base.modules import Dense

    return lambda width, out, activation=None, bias=True: Dense(width, out, bias, getattr(torch.nn, activation or "Identity")())


@pytest.fixture
def normalize(torch):
    from sentence_transformers.base.modules import Normalize

    return Normalize


def texts(count=12, seed=0):
    """Random texts of the tokenizer's words and an unknown one."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice([*WORDS[5:], "zzz"], rng.integers(1, 20))) for _ in range(count)]


def opened(folder, out=None):
    """The models that fastinfer makes of a folder: opened on each device, and converted first."""
    models = [fastinfer.load(folder, device=device, dtype="float32") for device in DEVICES]
    if out is not None:
        conversion.convert(folder, out)
        models.append(fastinfer.load(out, device=DEVICES[-1], dtype="float32"))
        assert models[-1].config == models[0].config
    return models


def rewrite(path, **changes):
    """Change keys of the object in a JSON file; `...` removes one."""
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (data | changes).items() if value is not ...}))


# --- the modules after a transformer ---


@pytest.mark.parametrize("pooling", [*POOLINGS, ("mean", "cls"), POOLINGS])
def test_pooling(pooling, embedder, tmp_path):
    theirs, folder = embedder(pooling=pooling)
    given = texts()
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), theirs.encode(given), **CLOSE)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_max_tokens": True}, ("max", "sqrtmean")),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_cls_token": False}, "mean"),
        ({}, "mean"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, "max"),
    ],
)
def test_how_older_files_name_a_pooling(switches, expected, embedder):
    from sentence_transformers import SentenceTransformer

    _, folder = embedder()
    rewrite(folder / "1_Pooling" / "config.json", embedding_dimension=..., pooling_mode=..., word_embedding_dimension=HIDDEN)
    rewrite(folder / "1_Pooling" / "config.json", **switches)
    ours, given = fastinfer.load(folder), texts(4)
    assert ours.config.tasks.embed == Embed(expected, False)
    assert_allclose(ours.embed(given), SentenceTransformer(str(folder), device="cpu").encode(given), **CLOSE)


CHAINS = {
    "identity": (lambda d, n: [d(HIDDEN, 16)], (Project(16),), False),
    "tanh, wider": (lambda d, n: [d(HIDDEN, 40, "Tanh")], (Project(40, True, "tanh"),), False),
    "no bias, normalised": (lambda d, n: [d(HIDDEN, 7, bias=False), n()], (Project(7, False),), True),
    "two, relu and gelu": (
        lambda d, n: [d(HIDDEN, 32, "ReLU"), d(32, 9, "GELU")],
        (Project(32, True, "relu"), Project(9, True, "gelu")),
        False,
    ),
    "silu": (lambda d, n: [d(HIDDEN, 8, "SiLU")], (Project(8, True, "silu"),), False),
    "normalised before": (lambda d, n: [n(), d(HIDDEN, 16, "Tanh")], (Unit(), Project(16, True, "tanh")), False),
    "normalised between": (lambda d, n: [d(HIDDEN, 16), n(), d(16, 8), n()], (Project(16), Unit(), Project(8)), True),
    "normalised twice": (lambda d, n: [n(), n()], (), True),
}


@pytest.mark.parametrize("name", CHAINS)
def test_layers_after_pooling(name, embedder, dense, normalize, tmp_path):
    make, layers, unit = CHAINS[name]
    theirs, folder = embedder(*make(dense, normalize))
    given = texts()
    want = theirs.encode(given)
    for ours in opened(folder, tmp_path / "out"):
        assert ours.config.tasks.embed == Embed("mean", unit, layers)
        assert_allclose(ours.embed(given), want, **CLOSE)
        assert_allclose(np.stack(list(ours.embed_iter(given))), want, **CLOSE)
        assert ours.embed([]).shape == (0, want.shape[1])


def test_a_linear_layer_after_joined_poolings_and_dropout(embedder, dense, torch, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dropout

    theirs, folder = embedder(Dropout(0.9), dense(3 * HIDDEN, 10, "Tanh"), Dropout(0.5), pooling=("cls", "mean", "max"))
    given = texts()
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), theirs.encode(given), **CLOSE)


@pytest.mark.parametrize("unit", [False, True])
def test_truncate_dim_of_a_folder(unit, embedder, normalize, tmp_path):
    """sentence-transformers cuts vectors after their last module, so they may become shorter than 1."""
    theirs, folder = embedder(*[normalize()] * unit, truncate_dim=10)
    given = texts()
    want = theirs.encode(given)
    assert want.shape == (len(given), 10)
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), want, **CLOSE)
        assert_allclose(ours.embed(given, normalize=True), theirs.encode(given, normalize_embeddings=True), **CLOSE)
        assert_allclose(
            ours.embed(given, dim=15, normalize=True), theirs.encode(given, truncate_dim=15, normalize_embeddings=True), **CLOSE
        )
        assert ours.embed([]).shape == (0, 10)
    rewrite(folder / "config_sentence_transformers.json", truncate_dim=HIDDEN + 5)
    assert fastinfer.load(folder).config.tasks.embed == Embed("mean", unit)


def test_dim_keeps_the_length_of_vectors(embedder, dense, normalize):
    theirs, folder = embedder(dense(HIDDEN, 16), normalize())
    given = texts()
    for ours in opened(folder):
        got = ours.embed(given, dim=5)
        assert_allclose(got, theirs.encode(given, truncate_dim=5, normalize_embeddings=True), **CLOSE)
        assert_allclose(np.stack(list(ours.embed_iter(given, dim=5))), got)
        assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)
        assert_allclose(ours.embed(given, dim=16), theirs.encode(given), **CLOSE)
        with pytest.raises(fastinfer.InputError, match=r"dim is 17, expected an integer from 1 to 16, the numbers of a vector"):
            ours.embed(given, dim=17)


# --- prompts ---

PROMPTS = {"query": "is ada ", "document": "paris: ", "passage": "of ", "other": "un"}


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pooling", [*POOLINGS, ("mean", "weightedmean")])
def test_prompts(pooling, include, embedder, tmp_path):
    theirs, folder = embedder(pooling=pooling, include_prompt=include, prompts=PROMPTS, default_prompt_name="other")
    given = texts()
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), theirs.encode(given), **CLOSE)
        for name in PROMPTS:
            assert_allclose(ours.embed(given, prompt_name=name), theirs.encode(given, prompt_name=name), **CLOSE)
        for prompt in ("", "the friendly capital"):
            want = theirs.encode(given, prompt=prompt)
            assert_allclose(ours.embed(given, prompt=prompt), want, **CLOSE)
            assert_allclose(np.stack(list(ours.embed_iter(given, prompt=prompt))), want, **CLOSE)


def test_a_prompt_that_fills_the_limit(embedder):
    theirs, folder = embedder(include_prompt=False)
    prompt = "ada lived in london " * 20
    ours = fastinfer.load(folder, device=DEVICES[-1])
    with pytest.warns(fastinfer.tokenizer.TruncationWarning):
        assert_allclose(ours.embed(["paris"], prompt=prompt), theirs.encode(["paris"], prompt=prompt), **CLOSE)


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        (None, None),
        (PROMPTS, None),
        (PROMPTS, "other"),
        ({"query": "is ada "}, "query"),
        ({"query": "is ada ", "passage": "of "}, None),
        ({"passage": "of ", "corpus": "un"}, "passage"),
        ({"document": "paris: "}, None),
    ],
)
@pytest.mark.parametrize("include", [True, False])
def test_the_prompts_of_rank(prompts, default, include, embedder):
    theirs, folder = embedder(include_prompt=include, prompts=prompts, default_prompt_name=default)
    query, *documents = texts(9)
    want = theirs.similarity(theirs.encode_query(query), theirs.encode_document(documents))[0].numpy()
    for ours in opened(folder):
        ranking = ours.rank(query, documents)
        assert [index for index, _ in ranking] == np.argsort(-want, kind="stable").tolist()
        assert_allclose([score for _, score in ranking], np.sort(want)[::-1], **CLOSE)


def test_wrong_prompts(embedder):
    _, folder = embedder(prompts=PROMPTS)
    model = fastinfer.load(folder)
    with pytest.raises(fastinfer.InputError, match=r"got prompt and prompt_name, expected one of them"):
        model.embed("ada", prompt="", prompt_name="query")
    with pytest.raises(
        fastinfer.InputError, match=r"prompt_name is 'task', expected the name of a prompt .*: 'query', 'document', .*'other'"
    ):
        model.embed("ada", prompt_name="task")
    batch = fastinfer.PackedBatch.from_ids([[2, 5, 3]])
    with pytest.raises(fastinfer.InputError, match=r"got a prompt with a PackedBatch, expected texts"):
        model.embed(batch, prompt_name="query")
    assert np.array_equal(model.embed(batch), model.embed("ada", prompt=""))


def test_a_pair_gets_a_prompt_before_its_first_text(embedder):
    _, folder = embedder(prompts=PROMPTS)
    model = fastinfer.load(folder)
    assert np.array_equal(model.embed(("ada", "london"), prompt_name="query"), model.embed(("is ada ada", "london")))


# --- similarity ---


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("dim", [None, 9])
def test_similarity(name, dim, embedder, tmp_path):
    theirs, folder = embedder(similarity_fn_name=name)
    query, *documents = texts(9)
    want = theirs.similarity(theirs.encode([query], truncate_dim=dim), theirs.encode(documents, truncate_dim=dim))[0].numpy()
    for ours in opened(folder, tmp_path / "out"):
        ranking = ours.rank(query, documents, dim=dim, top_k=5)
        assert [index for index, _ in ranking] == np.argsort(-want, kind="stable")[:5].tolist()
        assert_allclose([score for _, score in ranking], np.sort(want)[::-1][:5], **CLOSE)


# --- cross-encoders ---

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
OLD = "sbert_ce_default_activation_function"
# (labels, keys added to config.json, whether sentence-transformers made the folder)
SCORES = [
    (1, {}, False),
    (1, {"sentence_transformers": {"activation_fn": IDENTITY}}, True),
    (1, {"sentence_transformers": {"activation_fn": SIGMOID}, OLD: IDENTITY}, True),
    (1, {"sentence_transformers": {"version": "5.1"}, "problem_type": "regression"}, True),
    (1, {OLD: IDENTITY}, True),
    (1, {OLD: "torch.nn.Sigmoid", "problem_type": "regression"}, True),
    (1, {"problem_type": "regression"}, False),
    (3, {}, False),
    (3, {"problem_type": "multi_label_classification"}, False),
    (3, {"problem_type": "regression"}, False),
    (3, {"sentence_transformers": {"activation_fn": IDENTITY}}, True),
    (3, {"sentence_transformers": {"activation_fn": SIGMOID}}, True),
    (3, {OLD: IDENTITY}, True),
]


@pytest.fixture(scope="module")
def classifiers(bare):
    return {labels: bare("BertForSequenceClassification", num_labels=labels) for labels in (1, 3)}


def pairs():
    return [tuple(texts(2, seed)) for seed in range(100, 108)]


def compared_scores(folder, out):
    """Assert that fastinfer's scores are those of CrossEncoder."""
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(folder), device="cpu")
    want = theirs.predict(pairs())
    for ours in opened(folder, out):
        got, labels = ours.classify(pairs()), ours.config.tasks.classify.labels
        if want.ndim > 1:
            got = [[dict(answer)[label] for label in labels] for answer in got]
        assert_allclose(got, want, **CLOSE)
        if want.ndim == 1:
            query, *documents = texts(7)
            ranking = theirs.rank(query, documents)
            assert_allclose([score for _, score in ours.rank(query, documents)], [one["score"] for one in ranking], **CLOSE)
            assert [index for index, _ in ours.rank(query, documents)] == [one["corpus_id"] for one in ranking]


@pytest.mark.parametrize(("labels", "keys", "marked"), SCORES)
def test_scores(labels, keys, marked, classifiers, tmp_path):
    """A folder that sentence-transformers made has the scores of CrossEncoder, others those of transformers' pipeline."""
    import transformers

    folder = shutil.copytree(classifiers[labels], tmp_path / "folder")
    rewrite(folder / "config.json", **keys)
    if marked:
        compared_scores(folder, tmp_path / "out")
        return
    pipeline = transformers.pipeline("text-classification", str(folder), device="cpu")
    want = pipeline([{"text": a, "text_pair": b} for a, b in pairs()], top_k=None)
    for ours in opened(folder, tmp_path / "out"):
        for got, said in zip(ours.classify(pairs()), want, strict=True):
            scores = {one["label"]: one["score"] for one in said}
            assert {"LABEL_0": got} if labels == 1 else dict(got) == pytest.approx(scores, rel=1e-5, abs=1e-5)
    if labels == 1 and "problem_type" not in keys:
        compared_scores(folder, None)  # both oracles agree


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("activation", [None, "Identity", "Sigmoid"])
def test_a_cross_encoder_with_modules(labels, activation, classifiers, torch, tmp_path):
    from sentence_transformers import CrossEncoder

    activation = activation and getattr(torch.nn, activation)()
    CrossEncoder(str(classifiers[labels]), activation_fn=activation, device="cpu").save(str(tmp_path / "st"), create_model_card=False)
    assert (tmp_path / "st" / "modules.json").exists()
    compared_scores(tmp_path / "st", tmp_path / "out")


# --- older folders ---


def test_a_transformer_in_a_folder_of_its_own(embedder, dense, tmp_path):
    from sentence_transformers import SentenceTransformer

    _, folder = embedder(dense(HIDDEN, 8))
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    (folder / "config.json").write_text('{"__version__": "0.2.5"}')  # as old releases wrote it
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(modules))
    theirs, given = SentenceTransformer(str(folder), device="cpu"), texts()
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), theirs.encode(given), **CLOSE)


def test_a_config_without_the_settings_is_written_as_before(embedder):
    _, folder = embedder()
    tasks = json.loads(fastinfer.load(folder).config.to_json())["tasks"]
    assert tasks == {"embed": {"pooling": "mean", "normalize": False}}
    rewrite(folder / "config_sentence_transformers.json", prompts={"query": "is ", "document": None}, similarity_fn_name="dot")
    config = fastinfer.load(folder).config
    assert config.tasks.embed == Embed("mean", False, similarity="dot", prompts=(Prompt("query", "is "),))
    assert fastinfer.Config.from_json(json.loads(config.to_json())) == config


# --- refused ---

AROUND, POOLING, DENSE, BERT = (
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "sentence_bert_config.json",
)
REFUSED = [
    (AROUND, {"model_type": "OtherEncoder"}, "model_type 'OtherEncoder' is not supported"),
    (AROUND, {"model_type": ["SentenceTransformer"]}, "model_type"),
    (AROUND, {"similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim' is not supported, only cosine, dot"),
    (AROUND, {"similarity_fn_name": 1}, "similarity_fn_name 1"),
    (AROUND, {"truncate_dim": 0}, "truncate_dim 0"),
    (AROUND, {"truncate_dim": "8"}, "truncate_dim '8'"),
    (AROUND, {"truncate_dim": True}, "truncate_dim True"),
    (AROUND, {"prompts": ["query: "]}, "prompts"),
    (AROUND, {"prompts": {"query": 1}}, "prompts"),
    (AROUND, {"default_prompt_name": "task"}, "default_prompt_name 'task' is not supported, only the name of a prompt"),
    (AROUND, {"default_prompt_name": 3}, "default_prompt_name 3"),
    (AROUND, {"default_prompt_name": ["query"]}, "default_prompt_name"),
    (POOLING, {"pooling_mode": "attention"}, "pooling 'attention' is not supported, only cls, max"),
    (POOLING, {"pooling_mode": []}, "pooling none is not supported"),
    (POOLING, {"pooling_mode": [["mean"]]}, "pooling .* is not supported"),
    (POOLING, {"pooling_mode": 3}, "pooling 3 is not supported"),
    (POOLING, {"pooling_mode_mean_tokens": 1}, "pooling_mode_mean_tokens 1 is not supported"),
    (POOLING, {"pooling_mode_attention": True}, "pooling_mode_attention True is not supported"),
    (POOLING, {"include_prompt": None}, "include_prompt None"),
    (DENSE, {"activation_function": "torch.nn.modules.activation.Softplus"}, "activation_function 'torch.nn.modules.activation.Softplus'"),
    (
        DENSE,
        {"activation_function": "mine.Tanh"},
        "activation_function 'mine.Tanh' is not supported, only Identity, Tanh, ReLU, GELU, SiLU of torch.nn",
    ),
    (DENSE, {"activation_function": 1}, "activation_function 1"),
    (DENSE, {"use_residual": True}, "use_residual True"),
    (DENSE, {"bias": "yes"}, "bias 'yes'"),
    (DENSE, {"in_features": 23}, r"out_features and in_features are \(8, 23\), but linear.weight is \(8, 24\)"),
    (DENSE, {"out_features": -1}, "out_features is -1, expected an integer from 1"),
    (DENSE, {"bias": False}, r"unknown  linear.bias \(8,\)"),
    (DENSE, {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not supported, only sentence_embedding"),
    (DENSE, {"module_output_name": "scores"}, "module_output_name 'scores'"),
    (BERT, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not supported, only feature-extraction"),
    (BERT, {"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
    (BERT, {"query_expansion": {"strategy": "mask"}}, "query_expansion"),
    (BERT, {"config_args": {"num_hidden_layers": 1}}, "config_args 'num_hidden_layers'"),
    (BERT, {"model_kwargs": 3}, "model_kwargs 3"),
    (BERT, {"modality_config": {"message": {"method": "forward"}}}, "modality_config"),
    (BERT, {"modality_config": {"text": {"method_output_name": "pooler_output"}}}, "modality_config"),
    (BERT, {"modality_config": 3}, "modality_config 3"),
]


@pytest.mark.parametrize(("file", "changes", "said"), REFUSED)
def test_settings_that_are_refused(file, changes, said, embedder, dense):
    _, folder = embedder(dense(HIDDEN, 8))
    fastinfer.load(folder)
    rewrite(folder / file, **changes)
    with pytest.raises((fastinfer.ConfigError, fastinfer.CheckpointError), match=said) as error:
        fastinfer.load(folder)
    assert str(folder / file).removesuffix("/config.json") in str(error.value)


MODULES = [
    (["Transformer"], "after the Transformer comes nothing, expected a Pooling"),
    (["Transformer", "Normalize"], "after the Transformer comes 'Normalize', expected a Pooling"),
    (["Pooling"], "lists 'Pooling', expected a Transformer first"),
    (["Transformer", "Pooling", "Transformer"], "expected a Transformer first, and only one"),
    *(
        (["Transformer", "Pooling", kind], f"module '{kind}' is not supported, only Transformer, Pooling, Dense, Normalize and Dropout")
        for kind in ("LayerNorm", "CNN", "LSTM", "WeightedLayerPooling", "Pooling")
    ),
    *(
        ([kind], f"lists '{kind}', expected a Transformer first")
        for kind in ("WordEmbeddings", "BoW", "StaticEmbedding", "CLIPModel", "Router")
    ),
]


@pytest.mark.parametrize(("kinds", "said"), MODULES)
def test_modules_that_are_refused(kinds, said, embedder):
    _, folder = embedder()
    paths = {"Pooling": "1_Pooling"}
    listed = [
        {"idx": i, "name": str(i), "path": paths.get(k, ""), "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(fastinfer.ConfigError, match=rf"modules\.json.*{said}"):
        fastinfer.load(folder)


@pytest.mark.parametrize(
    ("place", "entry", "said"),
    [
        (0, {"type": "custom_st.Transformer"}, "lists 'custom_st.Transformer', 'Pooling', expected a Transformer first"),
        (1, {"type": "pylate.models.Pooling"}, "after the Transformer comes 'pylate.models.Pooling'"),
        (1, {"type": 3}, "a module's type is 3"),
        (1, {"path": "../1_Pooling"}, r"a module's path is '\.\./1_Pooling'"),
        (0, {"path": "/etc"}, "a module's path is '/etc'"),
        (1, {"path": "1_" + "a" * 300}, "a module's path is '1_aaa"),
        (1, {"path": "1_\0"}, "a module's path is"),
        (1, {"path": "1_\ud800"}, "a module's path is"),
    ],
)
def test_entries_that_are_refused(place, entry, said, embedder):
    _, folder = embedder()
    modules = json.loads((folder / "modules.json").read_text())
    modules[place] |= entry
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(fastinfer.ConfigError, match=rf"modules\.json.*{said}"):
        fastinfer.load(folder)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "config.json",
            {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
            "sentence_transformers.activation_fn 'torch.nn.Tanh'",
        ),
        ("config.json", {"sentence_transformers": "Sigmoid"}, "sentence_transformers 'Sigmoid' is not supported, only an object"),
        ("config.json", {OLD: 3}, f"{OLD} 3 is not supported, only Identity, Sigmoid of torch.nn"),
        (AROUND, {"activation_fn": "mine.Sigmoid"}, "activation_fn 'mine.Sigmoid'"),
        (AROUND, {"prompts": {"query": "is "}, "default_prompt_name": "query"}, "default_prompt_name 'query' is not supported, only null"),
        ("modules.json", "LogitScore", "module 'LogitScore' is not supported in a cross-encoder"),
    ],
)
def test_cross_encoders_that_are_refused(file, changes, said, classifiers, torch, tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(classifiers[1]), device="cpu").save(str(tmp_path / "st"), create_model_card=False)
    if file == "modules.json":
        modules = json.loads((tmp_path / "st" / file).read_text())
        modules.append({"idx": 1, "name": "1", "path": "1", "type": f"sentence_transformers.cross_encoder.modules.{changes}"})
        (tmp_path / "st" / file).write_text(json.dumps(modules))
    else:
        if file == "config.json":  # where both files have one, the other counts
            rewrite(tmp_path / "st" / AROUND, activation_fn=...)
        rewrite(tmp_path / "st" / file, **changes)
    with pytest.raises(fastinfer.ConfigError, match=said) as error:
        fastinfer.load(tmp_path / "st")
    assert file in str(error.value)


def test_a_dense_module_as_a_pickle(embedder, dense, torch, tmp_path):
    theirs, folder = embedder(dense(HIDDEN, 8))
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(fastinfer.CheckpointError, match=r"2_Dense has no weights, expected model\.safetensors or pytorch_model\.bin"):
        fastinfer.load(folder)
    torch.save(theirs[2].state_dict(), folder / "2_Dense" / "pytorch_model.bin")
    given = texts()
    for ours in opened(folder, tmp_path / "out"):
        assert_allclose(ours.embed(given), theirs.encode(given), **CLOSE)


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"])
def test_a_module_that_changes_while_it_is_read(file, embedder, dense):
    _, folder = embedder(dense(HIDDEN, 8))
    with pytest.raises(fastinfer.CheckpointError, match=f"{file} changed while it was read"), checkpoint.unchanged(folder):
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
