"""Every argument of every public function gets a zoo of values, and gives the right answer or one readable error of ours."""

import array
import copy
import dataclasses
import decimal
import fractions
import functools
import inspect
import json
import pathlib
import tempfile
import warnings

import numpy as np
import pytest
from test_errors import HOSTILE, Odd, tame

import fastinfer
from fastinfer.errors import FastinferError, short
from fastinfer.retrieval import EmbedTokens

RNG = np.random.default_rng(5)
X = RNG.normal(size=(5, 6)).astype(np.float32)
TREES = {
    "w_in": RNG.normal(size=(2, 7, 6)).astype(np.float32),
    "b_in": RNG.normal(size=(2, 7)).astype(np.float32),
    "w_out": RNG.normal(size=(2, 7, 6)).astype(np.float32),
    "depth": 2,
}


class Text(str):
    """A str of a caller's own class."""


class Array(np.ndarray):
    """An array of a caller's own class."""


class Listed(list):
    """A list of a caller's own class."""


class Index:
    """An integer only for operator.index."""

    def __index__(self):
        return 2


class Wrapped:
    """An array only for numpy."""

    def __array__(self, dtype=None, copy=None):
        return X


def unaligned(values):
    raw = np.zeros(values.nbytes + 1, np.uint8)
    made = raw[1:].view(values.dtype).reshape(values.shape)
    made[...] = values
    return made


def read_only(values):
    made = values.copy()
    made.flags.writeable = False
    return made


def mapped(values):
    with tempfile.TemporaryFile() as file:
        made = np.memmap(file, values.dtype, "w+", shape=values.shape)
    made[...] = values
    return made


@functools.cache  # it takes a quarter of a second, and no call may change it
def deep():
    made: list = []
    for _ in range(10**5):
        made = [made]
    return made


PLAIN = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2": lambda: 2,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "2**64": lambda: 2**64,
    "10**5000": lambda: 10**5000,
    "-10**5000": lambda: -(10**5000),
    "2.0": lambda: 2.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "2j": lambda: 2j,
    "Decimal": lambda: decimal.Decimal(2),
    "Fraction": lambda: fractions.Fraction(2),
    "Index": Index,
    "int8": lambda: np.int8(2),
    "uint8": lambda: np.uint8(2),
    "uint8 255": lambda: np.uint8(255),
    "uint64": lambda: np.uint64(2),
    "uint64 max": lambda: np.uint64(2**64 - 1),
    "float32": lambda: np.float32(2),
    "bool_": lambda: np.bool_(True),
    "''": lambda: "",
    "text": lambda: "ada lived",
    "Text": lambda: Text("ada lived"),
    "str_": lambda: np.str_("ada lived"),
    "hostile": lambda: HOSTILE,
    "hostile, long": lambda: HOSTILE * 10**4,
    "surrogate": lambda: "ada \ud800",
    "bytes": lambda: b"ada",
    "bytes, long": lambda: b"\x1b" * 10**6,
    "bytes_": lambda: np.bytes_(b"ada"),
    "bytearray": lambda: bytearray(b"ada"),
    "memoryview": lambda: memoryview(b"ada"),
    "array.array": lambda: array.array("i", [1, 2]),
    "()": lambda: (),
    "[]": list,
    "{}": dict,
    "{text: text}": lambda: {"ada": "lived"},
    "{text}": lambda: {"ada"},
    "[[]]": lambda: [[]],
    "[None]": lambda: [None],
    "[text]": lambda: ["ada lived"],
    "(text, text)": lambda: ("ada", "lived"),
    "[(text, text)]": lambda: [("ada", "lived")],
    "[[text, text]]": lambda: [["ada", "lived"]],
    "(text, None)": lambda: ("ada", None),
    "(text, surrogate)": lambda: ("ada", "\ud800"),
    "(text,) * 3": lambda: ("ada",) * 3,
    "[text, None]": lambda: ["ada", None],
    "[hostile, 5]": lambda: [HOSTILE * 10**4, 5],
    "[surrogate]": lambda: ["\ud800"],
    "Listed": lambda: Listed(["ada lived"]),
    "iterator": lambda: iter(["ada lived"]),
    "generator": lambda: (t for t in ["ada lived"]),
    "iterator of ints": lambda: iter([1, 2]),
    "map": lambda: map(str.lower, ["ADA lived"]),
    "dict keys": lambda: {"ada lived": 1}.keys(),
    "range": lambda: range(2),
    "[1, 2]": lambda: [1, 2],
    "[[1, 2], [3]]": lambda: [[1, 2], [3]],
    "((1, 2), (3,))": lambda: ((1, 2), (3,)),
    "[[1, 2], []]": lambda: [[1, 2], []],
    "[[1, 2], 3]": lambda: [[1, 2], 3],
    "[[1, None]]": lambda: [[1, None]],
    "[[1, [2]]]": lambda: [[1, [2]]],
    "[[1.0]]": lambda: [[1.0]],
    "[[True]]": lambda: [[True]],
    "[['1']]": lambda: [["1"]],
    "[[2**31]]": lambda: [[2**31]],
    "[[2**64]]": lambda: [[2**64]],
    "[[10**5000]]": lambda: [[10**5000]],
    "[[nan]]": lambda: [[float("nan")]],
    "[range]": lambda: [range(2)],
    "[iterator]": lambda: [iter([1, 2])],
    "[Index]": lambda: [[Index(), 1]],
    "deep": deep,
    "[deep]": lambda: [deep()],
    "object": object,
    "Odd": Odd,
    "[Odd]": lambda: [Odd()],
    "class": lambda: int,
    "function": lambda: len,
    "Path": lambda: pathlib.Path("ada"),
    "slice": lambda: slice(2),
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "Wrapped": Wrapped,
    "module": lambda: np,
}
ARRAYS = {
    "0-d": lambda: np.array(2),
    "0-d float32": lambda: np.array(2, np.float32),
    "0-d object": lambda: np.array(None),
    "0-d str": lambda: np.array("ada"),
    "empty": lambda: np.array([]),
    "empty int32": lambda: np.array([], np.int32),
    "(0, 6)": lambda: X[:0],
    "(5, 0)": lambda: X[:, :0].copy(),
    "(5, 6)": lambda: X.copy(),
    "(5, 6) memory": lambda: np.frombuffer(bytearray(X.tobytes()), np.float32).reshape(X.shape),
    "(5, 6) read-only": lambda: read_only(X),
    "(5, 6) memmap": lambda: mapped(X),
    "(5, 6) nan": lambda: np.full_like(X, np.nan),
    "(5, 6) float16": lambda: X.astype(np.float16),
    "(5, 6) float64": lambda: X.astype(np.float64),
    "(5, 6) longdouble": lambda: X.astype(np.longdouble),
    "(5, 6) big-endian": lambda: X.astype(">f4"),
    "(5, 6) complex64": lambda: X.astype(np.complex64),
    "(5, 6) object": lambda: X.astype(object),
    "(5, 6) bool": lambda: X > 0,
    "(5, 6) int8": lambda: X.astype(np.int8),
    "(5, 6) records": lambda: X.view([("a", np.float32)]),
    "(5,) structured": lambda: X.view([(str(i), np.float32) for i in range(6)])[:, 0],
    "(5, 6) matrix": lambda: X.view(np.matrix),
    "(5, 6) masked": lambda: np.ma.masked_array(X, X > 0),
    "(5, 6) Array": lambda: X.view(Array),
    "(5, 6) recarray": lambda: X.view(np.recarray),
    "(5, 6) reversed": lambda: X[::-1],
    "(5, 6) mirrored": lambda: X[:, ::-1],
    "(5, 6) Fortran": lambda: np.asfortranarray(X),
    "(5, 6) every second": lambda: np.repeat(X, 2, axis=0)[::2],
    "(5, 6) broadcast": lambda: np.broadcast_to(X[0], X.shape),
    "(5, 6) unaligned": lambda: unaligned(X),
    "(6,)": lambda: X[0].copy(),
    "(1, 5, 6)": lambda: X[None].copy(),
    "(6, 5)": lambda: X.T.copy(),
    "(1,) * 64": lambda: X[:1, :1].reshape((1,) * 64).copy(),
    "str array": lambda: np.array(["ada lived"]),
    "str array (1, 2)": lambda: np.array([["ada", "lived"]]),
    "StringDType": lambda: np.array(["ada lived"], np.dtypes.StringDType()),
    "bytes array": lambda: np.array([b"ada"]),
    "object array": lambda: np.array(["ada", None], object),
    "datetime64": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "int64": lambda: np.array([1, 2]),
    "int32": lambda: np.array([1, 2], np.int32),
    "int8": lambda: np.array([1, 2], np.int8),
    "uint64": lambda: np.array([1, 2**64 - 1], np.uint64),
    "(1, 2) int64": lambda: np.array([[1, 2]]),
    "(1, 2) matrix": lambda: np.array([[1, 2]]).view(np.matrix),
    "(1, 2) masked": lambda: np.ma.masked_array([[1, 2]], [[True, False]]),
    "[int32, int8]": lambda: [np.array([1, 2], np.int32), np.array([3], np.int8)],
    "[(1, 2)]": lambda: [np.array([[1, 2]])],
    "[0-d]": lambda: [np.array(1)],
    "[masked]": lambda: [np.ma.masked_array([1, 2], [True, False])],
    "[(5, 6)]": lambda: [X.copy()],
    "(array, None, array)": lambda: (X.copy(), None, X.copy()),
}
ZOO = PLAIN | {f"array {name}": make for name, make in ARRAYS.items()}


# {name in the zoo of a valid value: the plain value that it stands for}
TEXTS = {
    "''": "",
    "text": "ada lived",
    "Text": "ada lived",
    "str_": "ada lived",
    "[]": [],
    "[text]": ["ada lived"],
    "(text, text)": ("ada", "lived"),
    "[(text, text)]": [("ada", "lived")],
    "[[text, text]]": [("ada", "lived")],
    "Listed": ["ada lived"],
    "iterator": ["ada lived"],
    "generator": ["ada lived"],
    "map": ["ada lived"],
    "dict keys": ["ada lived"],
    "array empty": [],
    "array empty int32": [],
    "array (0, 6)": [],
    "array str array": ["ada lived"],
    "array StringDType": ["ada lived"],
}
PAIRS = {"(text, text)", "[(text, text)]", "[[text, text]]"}
# Where pairs have no meaning, a tuple is a batch.
SINGLES = {name: text for name, text in TEXTS.items() if name not in PAIRS}
BATCHES = {**SINGLES, "()": [], "(text, text)": ["ada", "lived"], "(text,) * 3": ["ada"] * 3}
ONE_EACH = {name: text for name, text in SINGLES.items() if text not in ([], "")}
NAMES = {"None": None} | {name: texts for name, texts in BATCHES.items() if texts and isinstance(texts, list)}
INTEGERS = dict.fromkeys(("2", "int8", "uint8", "uint64", "Index", "array 0-d"), 2)
LARGE = INTEGERS | {"uint8 255": 255}
ANY_LARGE = LARGE | {"2**31": 999, "2**63": 999, "2**64": 999, "10**5000": 999, "uint64 max": 999}
FLAGS = {"True": True, "bool_": True}
NONE = {"None": None}
ROWS = {"array (5, 6)": X, "array (5, 6) memory": X, "array (5, 6) read-only": X, "array (5, 6) memmap": X}
NAN = {"array (5, 6) nan": np.full_like(X, np.nan)}
OUT = dict.fromkeys(("array (5, 6)", "array (5, 6) memory", "array (5, 6) memmap", "array (5, 6) nan"))
IDS = {
    "()": [],
    "[]": [],
    "[[1, 2], [3]]": [[1, 2], [3]],
    "((1, 2), (3,))": [[1, 2], [3]],
    "[range]": [[0, 1]],
    "array empty": [],
    "array empty int32": [],
    "array (0, 6)": [],
    "array (1, 2) int64": [[1, 2]],
    "array [int32, int8]": [[1, 2], [3]],
    "array (5, 6) int8": X.astype(np.int8).tolist(),
}
TYPES = {name: IDS[name] for name in ("[[1, 2], [3]]", "((1, 2), (3,))", "array [int32, int8]")}


def calls(model, layer, folder):
    """{name: (function of one value, {name in the zoo of each valid value: its plain value})}."""
    device = model.device
    found = {}
    inference = copy.copy(model)  # the same model with another name for a class
    entails = dataclasses.replace(model.config.tasks, classify=dataclasses.replace(model.config.tasks.classify, labels=("no", "entails")))
    inference.config = dataclasses.replace(model.config, tasks=entails)

    def add(name, call, right):
        found[name] = call, right

    def options(name, call, **right):
        for option, values in right.items():
            add(f"{name} {option}", lambda value, option=option: call(**{option: value}), values)

    common = {"batch_tokens": NONE | ANY_LARGE, "threads": NONE | LARGE}
    tasks = common | {"na": {}}

    def sparse(texts, **options):
        return model.embed_sparse(texts, **options).toarray()

    late = copy.copy(model)
    late.config = dataclasses.replace(model.config, tasks=dataclasses.replace(model.config.tasks, embed_tokens=EmbedTokens()))
    late.tasks = late.config.tasks.names
    add("embed_sparse texts", sparse, TEXTS)
    options("embed_sparse", lambda **o: sparse("ada", **o), progress=FLAGS, **tasks)
    add("embed_tokens texts", late.embed_tokens, BATCHES)
    options("embed_tokens", lambda **o: late.embed_tokens("ada", **o), query=FLAGS, progress=FLAGS, **tasks)
    for name in ("embed", "classify", "hidden_states", "routes"):
        add(f"{name} texts", getattr(model, name), TEXTS)
    add("embed_iter texts", lambda texts: list(model.embed_iter(texts)), TEXTS)
    add("tag texts", model.tag, BATCHES)
    add("logits texts", lambda texts: model.logits(texts, task="tag"), TEXTS)
    add("fill_mask texts", model.fill_mask, {name: text for name, text in TEXTS.items() if text == []})
    add("answer questions", lambda texts: model.answer(texts, "ada lived"), ONE_EACH)
    add("answer contexts", lambda texts: model.answer("ada", texts), ONE_EACH)
    add(
        "rank query", lambda text: model.rank(text, ["ada", "lived"]), {name: text for name, text in TEXTS.items() if isinstance(text, str)}
    )
    add("rank documents", lambda texts: model.rank("ada", texts), BATCHES)
    words = {name: text for name, text in TEXTS.items() if isinstance(text, str)}
    vectors = {"prompt": NONE | words, "prompt_name": NONE, "normalize": NONE | FLAGS, "dim": NONE | INTEGERS}
    options("embed", lambda **o: model.embed("ada", **o), **vectors, precision={}, progress=FLAGS, **tasks)
    options("embed_iter", lambda **o: list(model.embed_iter("ada", **o)), **vectors, **tasks)
    options("classify", lambda **o: model.classify("ada", **o), top_k=NONE | ANY_LARGE, progress=FLAGS, **tasks)
    options("classify", lambda **o: inference.classify("ada", **({"labels": ["is"]} | o)), labels=NAMES, template={}, multi_label=FLAGS)
    options("fill_mask", lambda **o: model.fill_mask("a [MASK]", **o), top_k=NONE | ANY_LARGE, progress=FLAGS, **tasks)
    options("tag", lambda **o: model.tag("ada", **o), strategy={}, progress=FLAGS, **tasks)
    given = {"no_answer": FLAGS, "whole_words": FLAGS, "top_k": NONE | ANY_LARGE, "progress": FLAGS}
    options("answer", lambda **o: model.answer("ada", "ada lived", **o), **given, **tasks)
    given = {"top_k": NONE | ANY_LARGE, "dim": NONE | INTEGERS, "progress": FLAGS}
    options("rank", lambda **o: model.rank("ada", ["ada", "lived"], **o), **given, **tasks)
    options("hidden_states", lambda **o: model.hidden_states("ada", **o), layers={"array [0-d]": [1]}, **common)
    options("logits", lambda **o: model.logits("a [MASK]", **({"task": "fill_mask"} | o)), task={}, positions={}, **common)
    options("routes", lambda **o: model.routes("ada", **o), **common)

    load = {"path_or_name": NONE, "dtype": NONE, "device": {}, "threads": common["threads"], "validate": NONE | FLAGS, "copy": FLAGS}
    load["max_depth"] = NONE | {"0": 0} | ANY_LARGE
    options("load", lambda **o: fastinfer.load(**({"path_or_name": folder, "device": device} | o)).routes("ada"), **load)

    add("FFF x", layer, ROWS | NAN | {"array (0, 6)": X[:0]})
    add("FFF routes", layer.routes, ROWS | NAN | {"array (0, 6)": X[:0]})
    add("FFF out", lambda out: layer(X, out=out), NONE | OUT)
    add("FFF threads", lambda threads: layer(X, threads=threads), common["threads"])
    one = {
        "x": ROWS | NAN | {"array (0, 6)": X[:0]},
        "w_in": {},
        "b_in": NONE,
        "w_out": {},
        "depth": INTEGERS,
        "leaf": {},
        "silent": FLAGS,
        "b_leaf": NONE,
        "outputs": NONE,
        "b_out": NONE | {"array (6,)": X[0]},
        "dense": NONE | {"array (array, None, array)": (X, None, X)},
        "activation": {},
        "dtype": NONE,
        "device": {},
        "out": NONE | OUT,
        "threads": common["threads"],
    }
    options("fff", lambda **o: fastinfer.fff(**({"x": X, "device": device} | TREES | o)), **one)

    batch = fastinfer.PackedBatch
    ids, cu = np.array([1, 2], np.int32), np.array([0, 2], np.int32)
    add("from_ids ids", lambda ids: model.hidden_states(batch.from_ids(ids)), {n: i for n, i in IDS.items() if n != "array (5, 6) int8"})
    add("from_ids ids alone", lambda ids: batch.from_ids(ids).ids, IDS)
    add("from_ids token_types", lambda types: batch.from_ids([[1, 2], [3]], types).token_types, NONE | TYPES)
    add("PackedBatch ids", lambda ids: model.embed(batch(ids, cu)), {"array int32": ids})
    add("PackedBatch cu_seqlens", lambda cu: model.embed(batch(ids, cu)), {})
    add("PackedBatch token_types", lambda types: model.embed(batch(ids, cu, types)), NONE)
    add(
        "PackedBatch split",
        batch(ids, cu).split,
        {f"array {name}": ARRAYS[name]() for name in ("int64", "int32", "int8", "uint64", "object array")},
    )
    add("PackedBatch select", lambda which: batch(ids, cu).select(which).ids, {"array empty int32": np.array([], np.int32)})

    add("Config.from_json", fastinfer.Config.from_json, {})
    whole = json.loads(model.config.to_json())
    for key in inspect.signature(fastinfer.Config).parameters:
        right = dict(INTEGERS) if key in ("hidden", "layers", "heads", "max_tokens", "token_types", "head_size") else {}
        right |= NONE if key in ("distances", "embedding_width", "head_size") else {}
        right |= {"uint8 255": 255} if key in ("layers", "vocabulary", "token_types", "head_size") else {}
        right |= {"0": 0} if key == "token_types" else {}
        right |= {"True": True} if key in ("embedding_norm", "final_norm", "attention_bias", "head_norms") else {}
        right |= {"{}": {}} if key in ("tasks", "ids", "stored", "attention") else {}
        right |= {"()": (), "[]": []} if key == "attention" else {}
        add(f"Config.from_json {key}", lambda value, key=key: fastinfer.Config.from_json(whole | {key: value}), right)
        # `ffn` lists the layers; only JSON says the attention of all layers by one object
        right = {name: value for name, value in right.items() if key != "layers" and (key, name) != ("attention", "{}")}
        add(f"Config {key}", lambda value, key=key: fastinfer.Config(**(vars(model.config) | {key: value})), right)
    return found


@pytest.fixture(scope="module", params=["numpy", "cpu"])
def every_call(request, random_model):
    if fastinfer.backends.available()[request.param] is not None:
        pytest.skip(f"{request.param} is not available here")
    return calls(fastinfer.load(random_model, device=request.param), fastinfer.FFF(**TREES, device=request.param), random_model)


def same(left, right) -> bool:
    """Whether values are equal, inside lists and arrays, too. NaN equals NaN."""
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    return left == right


def test_every_argument_of_every_call(every_call, capfd):
    """Each gets the whole zoo. A valid value gives the answer of its plain value. Others give one tame error of ours, and no warning."""
    wrong = []
    for call, (function, right) in every_call.items():
        for name, make in ZOO.items():
            if call.endswith(" progress") and name in ("class", "function"):
                continue  # a function of the caller's own, whose errors are theirs
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    answer = function(make())
                    if name not in right:
                        wrong.append(f"{call} takes {name}")
                    elif not same(answer, function(right[name])):
                        wrong.append(f"{call} of {name} differs from that of {short(right[name])}")
                except FastinferError as error:
                    if name in right:
                        wrong.append(f"{call} refuses {name}: {error}")
                    elif not tame(str(error)):
                        wrong.append(f"{call} of {name} says {str(error)[:300]!r}")
                except Exception as error:
                    wrong.append(f"{call} of {name} raises {type(error).__name__}: {str(error)[:100]}")
    assert not wrong, "\n".join([f"{len(wrong)} of them:", *wrong[:200]])


def test_every_public_name_is_called(every_call):
    """A function, method or argument that is added later must get the zoo, too."""
    named = {call.partition(" ")[0] for call in every_call}
    methods = {name for name, value in inspect.getmembers(fastinfer.Model, callable) if not name.startswith("_")}
    assert methods - named == {"release"}
    for name in methods & named:
        arguments = list(inspect.signature(getattr(fastinfer.Model, name)).parameters)[1:]
        arguments = ["texts" if a == "texts_or_batch" else a for a in arguments]
        assert {f"{name} {a}" for a in arguments} <= set(every_call)
    for function in (fastinfer.load, fastinfer.fff):
        assert {f"{function.__name__} {a}" for a in inspect.signature(function).parameters} <= set(every_call)
    assert {f"Config {key}" for key in inspect.signature(fastinfer.Config).parameters} <= set(every_call)


def test_what_the_caller_raises_is_raised():
    """An error that the caller's stream of texts raises reaches the caller."""

    def texts():
        yield "ada"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastinfer.tokenizer.as_texts(texts())


def test_info_takes_nothing():
    with pytest.raises(TypeError):
        fastinfer.info(None)
