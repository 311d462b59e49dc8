"""Models, layers, tokenizers and errors are pickled and copied: between processes, and by the tools that do it for their users."""

import copy
import inspect
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import backends
import builders
import numpy as np
import pytest
import tokenizers
from conftest import make_config, make_tokenizer
from numpy.testing import assert_array_equal

import fastinfer
from fastinfer import checkpoint, errors
from fastinfer.tokenizer import Tokenizer, TruncationWarning

TEXTS = ["ada lived in london", "paris", "the capital of france is unfriendly ?"]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def again(value, protocol=None):
    return pickle.loads(pickle.dumps(value, protocol))


def in_new_process(data, folder, code):
    """What a new process in `folder` prints that runs `code` on the unpickled `made`. It knows nothing of this process."""
    script = f"import pickle, sys; made = pickle.loads(sys.stdin.buffer.read()); {code}"
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


# --- a model ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(random_model, tmp_path):
    """The folder of a model that a test may change."""
    return shutil.copytree(random_model, tmp_path / "model")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_is_opened_again(random_model, protocol):
    model = fastinfer.load(random_model)
    data = pickle.dumps(model, protocol)
    assert len(data) < 2000
    made = pickle.loads(data)
    assert repr(made) == repr(model)
    assert_array_equal(made.embed(TEXTS), model.embed(TEXTS))
    assert made.tag(TEXTS) == model.tag(TEXTS)
    assert again(made).classify(TEXTS) == model.classify(TEXTS)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "numpy"},
        {"device": ["numpy", "numpy"], "validate": True},
        {"device": "cpu", "dtype": "int8", "threads": 1, "max_depth": 0},
        {"copy": True, "validate": False},
    ],
    ids=str,
)
def test_the_options_of_a_model_are_kept(options, random_model):
    if options.get("device") == "cpu" and not backends.COMPILED:
        pytest.skip("the compiled module is missing")
    model = fastinfer.load(random_model, **options)
    made = again(again(model))
    assert made.device == model.device
    assert_array_equal(made.embed(TEXTS), model.embed(TEXTS))
    defaults = {name: given.default for name, given in inspect.signature(fastinfer.load).parameters.items() if name != "path_or_name"}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    assert made._origin.how._asdict() == defaults | given


def test_a_relative_path_leads_to_the_folder_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = fastinfer.load("model", device="numpy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = pickle.dumps(model)
    want = json.loads(in_new_process(data, tmp_path / "elsewhere", "print(made.embed('ada lived').tolist())"))
    assert_array_equal(np.float32(want), model.embed("ada lived"))


def test_the_model_inside_is_kept_by_its_name(tmp_path, monkeypatch):
    """A folder of that name beside the process that unpickles is not it."""
    model = fastinfer.load(device="numpy")
    name = fastinfer.info()["models"][0]
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(model)
    assert str(Path(fastinfer.__file__).parent).encode() not in data
    assert repr(pickle.loads(data)) == repr(model)


def test_a_folder_that_vanished_is_named(folder):
    model = fastinfer.load(folder)
    data = pickle.dumps(model)
    shutil.rmtree(folder)
    with pytest.raises(fastinfer.CheckpointError, match=f"a model that cannot be found: {folder} does not exist on this machine"):
        pickle.loads(data)
    with pytest.raises(fastinfer.CheckpointError, match=f"{folder} has changed or vanished since the model was loaded"):
        pickle.dumps(model)


CHANGES = {
    "other weights": lambda folder: checkpoint.save(folder, make_config(), builders.weights(make_config(), seed=5)),
    "another setting": lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text().replace("mean", "max")),
    "another tokenizer": lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " "),
    "a file more": lambda folder: (folder / "modules.json").write_text("[]"),
    "a file less": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_refused(change, folder):
    model = fastinfer.load(folder)
    data = pickle.dumps(model)
    CHANGES[change](folder)
    with pytest.raises(fastinfer.CheckpointError, match=f"{folder} holds another model than the one that was pickled"):
        pickle.loads(data)
    with pytest.raises(fastinfer.CheckpointError, match="has changed or vanished since the model was loaded"):
        pickle.dumps(model)


def test_a_weight_that_changed_in_place_is_refused(folder):
    """The size, the inode and all other bytes stay."""
    data = pickle.dumps(fastinfer.load(folder))
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(fastinfer.CheckpointError, match="holds another model"):
        pickle.loads(data)


def test_a_copy_of_the_same_files_is_accepted(folder, tmp_path):
    """As on another machine: other inodes and times. Files that load() does not read may differ."""
    model = fastinfer.load(folder)
    data, want = pickle.dumps(model), model.embed(TEXTS)
    folder.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", folder, copy_function=shutil.copyfile)
    (folder / "pytorch_model.bin").write_bytes(b"weights in another format")
    (folder / "training_args.bin").write_bytes(b"something")
    (folder / "README.md").write_text("# A model")
    assert_array_equal(pickle.loads(data).embed(TEXTS), want)


def test_the_digest_is_that_of_what_is_read(folder, tmp_path):
    """Of shards each counts; of two formats only the preferred one does."""
    plain = checkpoint.digest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"weights in another format")
    assert checkpoint.digest(folder) == plain
    shards = tmp_path / "shards"
    checkpoint.save(shards, make_config(), builders.weights(make_config()), max_shard_bytes=4000)
    found = {checkpoint.digest(shards)}
    parts = sorted(shards.glob("model-*"))
    for part in [*parts, shards / "model.safetensors.index.json"]:
        part.write_bytes(part.read_bytes() + b" ")
        found.add(checkpoint.digest(shards))
    assert len(found) == len(parts) + 2 > 3
    (folder / "model.safetensors").unlink()
    assert checkpoint.digest(folder) != plain


def test_a_model_that_no_name_leads_to_is_not_pickled(random_model):
    made = copy.copy(fastinfer.load(random_model))
    made.config = make_config()
    with pytest.raises(fastinfer.InputError, match="got another config after it was loaded"):
        pickle.dumps(made)
    alone = fastinfer.Model(made.config, made._runner.replicas, None, "mine", 0)
    with pytest.raises(fastinfer.InputError, match=r"mine was not made by fastinfer\.load\(\)"):
        pickle.dumps(alone)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_copies_of_a_model_share_its_weights(way, folder):
    model = fastinfer.load(folder)
    made = way(model)
    assert made is not model
    assert made._runner is model._runner
    shutil.rmtree(folder)  # nothing is opened again
    assert_array_equal(way([made])[0].embed(TEXTS), model.embed(TEXTS))
    made.tasks = ()
    assert model.tasks


# --- a layer ---------------------------------------------------------------------------------------

LAYERS = [
    *itertools.product(["numpy", *backends.COMPILED], ["float32"], [(2, 3, 0), (1, 0, 5), (1, 6, 3)]),
    *itertools.product(backends.COMPILED[:1], ["bfloat16", "int8"], [(2, 3, 4), (3, 0, 0)]),
]


@pytest.mark.parametrize(("device", "dtype", "shape"), LAYERS, ids=str)
def test_a_layer_holds_its_arrays(device, dtype, shape):
    trees, depth, dense = shape
    rng = np.random.default_rng()
    count, hidden = 2 ** (depth + 1) - 1, 24

    def array(*size):
        return rng.standard_normal(size, np.float32)

    always = (array(dense, hidden), array(dense), array(dense, hidden)) if dense else None
    given = {"w_in": array(trees, count, hidden), "b_in": array(trees, count), "w_out": array(trees, count, hidden), "b_out": array(hidden)}
    if dense == 3:
        always, given["b_in"], given["b_out"] = (always[0], None, always[2]), None, None
    layer = fastinfer.FFF(**given, dense=always, depth=depth, dtype=dtype, device=device)
    x = array(9, hidden)
    want, routes = layer(x), layer.routes(x)
    made = [again(layer, protocol) for protocol in PROTOCOLS]
    buffers: list = []
    data = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    made.append(pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers]))  # arrays that cannot be written
    made += [copy.copy(layer), copy.deepcopy(layer), again(again(layer))]
    for other in made:
        assert repr(other) == repr(layer)
        assert_array_equal(other(x), want)
        for got, wanted in zip(other.routes(x), routes, strict=True):
            assert_array_equal(got, wanted)


def test_a_pickled_layer_takes_the_best_isa_of_its_machine():
    """The device is kept as it was asked for, and not as it was found."""
    if not backends.COMPILED:
        pytest.skip("the compiled module is missing")
    w = np.ones((1, 3, 8), np.float32)
    data = pickle.dumps(fastinfer.FFF(w, None, w, depth=1))
    script = "import os, pickle, sys; os.environ['FASTINFER_ISA'] = 'portable'; print(pickle.loads(sys.stdin.buffer.read()).device)"
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True, timeout=300)
    assert done.stdout.decode().strip() == "cpu:portable"


# --- a tokenizer -----------------------------------------------------------------------------------


def unigram():
    """A Unigram model, whose scores the library's reader of JSON would round."""
    pieces = [("<unk>", 0.0), ("\u2581", -2.0123456789012345), *((chr(97 + i), -3 - i / 7) for i in range(16))]
    raw = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return raw


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "left"])
def test_a_tokenizer_holds_its_file(kind, tmp_path):
    raw = unigram() if kind == "unigram" else make_tokenizer()
    if kind == "left":
        raw.enable_truncation(4, direction="left")
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", make_config(max_tokens=9))
    data = pickle.dumps(tokenizer)
    (tmp_path / "tokenizer.json").unlink()
    texts = [*TEXTS, "ada " * 50, ("ada lived", "in paris " * 9), "", "a\u0301 \u6771"]
    for made in (pickle.loads(data), again(again(tokenizer)), copy.deepcopy(tokenizer), copy.copy(tokenizer)):
        with pytest.warns(TruncationWarning):
            got = made.encode(texts)
        with pytest.warns(TruncationWarning):
            want = tokenizer.encode(texts)
        for a, b in zip(got, want, strict=True):
            assert (a.ids, a.offsets, a.type_ids, a.word_ids) == (b.ids, b.offsets, b.type_ids, b.word_ids)
        assert made.raw.to_str() == tokenizer.raw.to_str()
        assert made.pieces(range(4)) == tokenizer.pieces(range(4))


# --- errors ----------------------------------------------------------------------------------------

RAISED = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, (Exception, Warning))]


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_errors_and_warnings_keep_their_class_and_words(kind):
    message = "x is 5, expected 6:\n  a line of ours " + "é" * 5000
    for value in (kind(message), kind(), again(kind(message))):
        made = again(value)
        assert type(made) is kind
        assert (str(made), made.args) == (str(value), value.args)


def test_an_error_keeps_what_was_added_to_it():
    with pytest.raises(fastinfer.InputError) as caught, errors.about("folder"):
        fastinfer.load(device="numpy").embed(3)
    made = again(caught.value)
    assert str(made) == str(caught.value)
    assert str(made).startswith("folder: texts is")


def test_the_warning_of_cut_texts_is_pickled():
    made = again(TruncationWarning(1, 5, 40, 32, 3))
    assert str(made) == str(TruncationWarning(1, 5, 40, 32, 3))
    assert (made.cut, made.texts, made.longest, made.limit, made.first) == (1, 5, 40, 32, 3)


# --- tools that pickle for their users -------------------------------------------------------------


def answers(model, parts):
    return [model.embed(part) for part in parts]


@pytest.fixture
def asked(random_model):
    """(a model, lists of texts, their answers)."""
    model = fastinfer.load(random_model, device="numpy")
    parts = [TEXTS[:1], TEXTS[1:], ["ada"]]
    return model, parts, answers(model, parts)


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["spawn", "fork", "forkserver"])
def test_multiprocessing(way, asked):
    model, parts, want = asked
    if way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {way}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of a fork beside threads
        with multiprocessing.get_context(way).Pool(1) as pool:
            assert_same(pool.map(model.embed, parts, chunksize=1), want)
            with pytest.raises(fastinfer.InputError, match="texts is an int"):
                pool.map(model.embed, [3])


def test_joblib(asked):
    joblib = pytest.importorskip("joblib")
    model, parts, want = asked
    assert_same(joblib.Parallel(2, backend="loky")(joblib.delayed(model.embed)(part) for part in parts), want)
    with pytest.raises(fastinfer.InputError, match="texts is an int"):
        joblib.Parallel(2, backend="loky")(joblib.delayed(model.embed)(part) for part in (3, 4))
    assert joblib.hash(model) == joblib.hash(again(model))


def test_a_closure(asked, tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    model, parts, want = asked
    data = cloudpickle.dumps(lambda: [model.embed(part).tolist() for part in parts])
    assert len(data) < 5000
    assert_same([np.float32(a) for a in json.loads(in_new_process(data, tmp_path, "print(made())"))], want)


def test_dask(asked):
    dask = pytest.importorskip("dask")
    model, parts, want = asked
    tasks = [dask.delayed(lambda part: model.embed(part))(part) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert_same(dask.compute(*tasks, scheduler="processes", num_workers=1), want)


def test_ray(asked):
    ray = pytest.importorskip("ray")
    model, parts, want = asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except Exception as error:
            pytest.skip(f"ray does not start here: {error}")
        try:
            embed = ray.remote(lambda part: model.embed(part))
            assert_same(ray.get([embed.remote(part) for part in parts]), want)
        finally:
            ray.shutdown()


def test_scikit_learn(asked):
    base = pytest.importorskip("sklearn.base")

    class Embed(base.TransformerMixin, base.BaseEstimator):
        def __init__(self, model=None):
            self.model = model

        def transform(self, texts):
            return self.model.embed(texts)

    model, parts, want = asked
    made = base.clone(Embed(model))
    assert made.model._runner is model._runner
    assert_same([made.transform(part) for part in parts], want)
