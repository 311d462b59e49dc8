"""The schema: round trips, and the error for each wrong config.json."""

import json

import builders
import pytest
from hypothesis import given, settings

import fastinfer
from fastinfer.config import FFF, Config, Dense, Ids, Norm, Positions, Tag, Tasks
from fastinfer.strict_json import MAX_JSON_BYTES, read_json

SMALL = builders.tiny(layers=2, ffn=(FFF(2, 3), Dense(5)))


def data(config=SMALL):
    return json.loads(config.to_json())


@settings(max_examples=200, deadline=None)
@given(builders.configs())
def test_round_trip(config):
    assert Config.from_json(json.loads(config.to_json())) == config


def test_a_shared_feedforward_is_written_once():
    config = builders.tiny(layers=3, ffn=(FFF(2, 3),) * 3)
    assert isinstance(data(config)["ffn"], dict)
    assert Config.from_json(data(config)).ffn == config.ffn


def test_what_may_be_left_out():
    least = {k: v for k, v in data().items() if k not in ("embedding_norm", "final_norm", "token_types", "attention_bias", "activation")}
    assert Config.from_json(least) == SMALL


def changed(path, value):
    """config.json's object with the value at a dotted path replaced (or removed, for ...)."""
    whole = at = data()
    *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    for key in keys:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return whole


LEVELS = ("", "norm.", "positions.", "ffn.0.", "ffn.1.", "tasks.", "tasks.embed.", "tasks.classify.", "tasks.answer.", "ids.", "stored.")


@pytest.mark.parametrize("level", LEVELS)
def test_unknown_keys(level):
    with pytest.raises(fastinfer.ConfigError, match=r"unknown key 'colour' in .*; known here: "):
        Config.from_json(changed(f"{level}colour", "blue"))


@pytest.mark.parametrize(
    "path", ["hidden", "layers", "ffn", "tasks", "norm.eps", "positions.max", "ffn.0.trees", "ffn.1.width", "tasks.embed.pooling"]
)
def test_missing_keys(path):
    with pytest.raises(fastinfer.ConfigError) as error:
        Config.from_json(changed(path, ...), "a/config.json")
    name = path.replace(".0", "[0]").replace(".1", "[1]")
    assert str(error.value) == f"a/config.json: missing key {name}"


WRONG = [True, 1.5, "1", None, [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "path", ["hidden", "layers", "vocabulary", "positions.max", "max_tokens", "ffn.0.trees", "ffn.1.width", "token_types"]
)
def test_no_integer(path, value):
    with pytest.raises(fastinfer.ConfigError, match=r"is .*, expected an integer"):
        Config.from_json(changed(path, value))


@pytest.mark.parametrize("value", [v for v in WRONG if v is not True], ids=repr)
@pytest.mark.parametrize("path", ["final_norm", "ffn.0.bias_in", "tasks.embed.normalize"])
def test_no_boolean(path, value):
    with pytest.raises(fastinfer.ConfigError, match=r"is .*, expected true or false"):
        Config.from_json(changed(path, value))


@pytest.mark.parametrize("value", [v for v in WRONG if v not in ({}, None)], ids=repr)
@pytest.mark.parametrize("path", ["norm", "positions", "ids", "stored", "tasks", "ffn.0", "tasks.embed", "tasks.answer"])
def test_no_object(path, value):
    with pytest.raises(fastinfer.ConfigError, match=r"is .*, expected an object|unknown key 'a'"):
        Config.from_json(changed(path, value))


SAID = [
    ("hidden", 15, "hidden is 15, expected a multiple of heads=2"),
    ("hidden", 0, "hidden is 0, expected an integer from 1 to 16777216"),
    ("hidden", -16, "hidden is -16, expected an integer from 1 to"),
    ("hidden", 10**30, "hidden is 1000000000.*, expected an integer from 1 to 16777216"),
    ("heads", 0, "heads is 0, expected an integer from 1 to"),
    ("layers", 10**30, "layers is 1000000000.*, expected 1 to 1024"),
    ("layers", 3, "ffn lists 2 feedforwards, expected one for all, or layers=3"),
    ("ffn", [], "ffn lists 0 feedforwards, expected one for all, or layers=2"),
    ("ffn", "dense", "ffn is 'dense', expected a list"),
    ("ffn.0.kind", "moe", r"ffn\[0\] is .*, expected an object whose kind is one of dense, gated, fff"),
    ("ffn.0.kind", ["fff"], r"ffn\[0\] is .*, expected an object whose kind is one of dense, gated, fff"),
    ("ffn.0.depth", 16, r"ffn\[0\]\.depth is 16, expected 0 to 15"),
    ("ffn.0.depth", -1, r"ffn\[0\]\.depth is -1, expected 0 to 15"),
    ("ffn.0.depth", 10**30, r"ffn\[0\]\.depth is 1000000000.*, expected 0 to 15"),
    ("ffn.0.trees", 1 << 23, r"ffn\[0\].trees is 8388608, expected an integer from 1 to 65536"),
    ("ffn.0", {"kind": "fff", "trees": 1 << 16, "depth": 8}, r"ffn\[0\] has 33488896 neurons, expected at most 16777216"),
    ("ffn.0", {"kind": "dense", "width": 1 << 22}, r"ffn\[0\].width is 4194304, expected an integer from 1 to 65536"),
    ("ffn.0.dense", -1, r"ffn\[0\]\.dense is -1, expected an integer from 0 to"),
    ("ffn.0.nodes", 14, r"ffn\[0\]\.nodes is 14, but a tree without a table of children has .* = 15"),
    ("ffn.0.nodes", 16, r"ffn\[0\]\.nodes is 16, expected 1 to .* = 15"),
    ("ffn.0.leaf", 0, r"ffn\[0\]\.leaf is 0, expected an integer from 1 to 65536"),
    ("ffn.0.leaf", 1 << 17, r"ffn\[0\]\.leaf is 131072, expected an integer from 1 to 65536"),
    ("ffn.0.leaf", True, r"ffn\[0\]\.leaf is True, expected an integer"),
    ("ffn.0.silent", 1, r"ffn\[0\]\.silent is 1, expected true or false"),
    ("ffn.0.bias_leaf", None, r"ffn\[0\]\.bias_leaf is None, expected true or false"),
    ("ffn.0.activation", "swish", r"ffn\[0\]\.activation is 'swish', expected one of gelu"),
    ("ffn.1.activation", ["gelu"], r"ffn\[1\]\.activation is .*, expected one of gelu"),
    ("ffn.0.leaves", 8, r"ffn\[0\]\.leaves is 8, expected none where leaves are nodes"),
    ("ffn.0", {"kind": "fff", "trees": 1, "depth": 3, "leaf": 2, "leaves": 7}, r"ffn\[0\]\.leaves is 7, but a tree without .* = 8"),
    ("ffn.0", {"kind": "fff", "trees": 1, "depth": 3, "leaf": 2, "leaves": 9}, r"ffn\[0\]\.leaves is 9, expected 1 to 2\*\*depth = 8"),
    ("ffn.0", {"kind": "fff", "trees": 1, "depth": 3, "leaf": 2, "nodes": 15}, r"ffn\[0\]\.nodes is 15, expected 1 to 2\*\*depth-1 = 7"),
    ("ffn.0", {"kind": "fff", "trees": 1, "depth": 15, "leaf": 1 << 10}, r"ffn\[0\] has 33587199 neurons, expected at most 16777216"),
    ("ffn.0", {"kind": "fff", "trees": 1, "depth": 0, "leaf": 2, "children": True}, r"ffn\[0\]\.children is true, expected false"),
    ("ffn.1.width", 0, r"ffn\[1\]\.width is 0, expected an integer from 1 to"),
    ("norm.eps", "small", "norm.eps is 'small', expected a number"),
    ("norm.eps", 10**400, "norm.eps is 1000000000.*, expected a number"),
    ("norm.eps", float("nan"), "norm.eps is nan, expected 0 <= eps < 1"),
    ("norm.eps", -1e-5, "norm.eps is -1e-05, expected 0 <= eps < 1"),
    ("norm.order", "middle", "norm.order is 'middle', expected one of pre, post"),
    ("norm.order", None, "norm.order is None, expected one of pre, post"),
    ("positions.kind", "rotary", "positions.kind is 'rotary', expected one of learned, scaled-sinusoidal"),
    ("positions.max", 1 << 17, "positions.max is 131072, expected 1 to 65536"),
    ("max_tokens", 9, "max_tokens is 9, expected 1 to positions.max=8"),
    ("ids.mask", 24, "ids.mask is 24, expected 0 to vocabulary-1=23"),
    ("ids.pad", -1, "ids.pad is -1, expected 0 to vocabulary-1=23"),
    ("token_types", -1, "token_types is -1, expected an integer from 0 to"),
    ("activation", "swish", "activation is 'swish', expected one of gelu"),
    ("stored.trees", "int4", "stored.trees is 'int4', expected one of float32, float16, bfloat16, int8"),
    ("tasks.embed.pooling", "sum", "tasks.embed.pooling is 'sum', expected one of mean, cls, max, lse, lasttoken,"),
    ("tasks.embed.pooling", ["mean"], "tasks.embed.pooling lists 1 kinds, expected the name of one, or a list of 2 to 64"),
    ("tasks.embed.pooling", ["mean", "sum"], r"tasks.embed.pooling\[1\] is 'sum', expected one of mean,"),
    ("tasks.embed.layers", [{"kind": "linear", "width": 0}], r"tasks.embed.layers\[0\].width is 0, expected an integer from 1 to 65536"),
    ("tasks.embed.layers", [{"kind": "conv"}], r"tasks.embed.layers\[0\] is .*, expected an object whose kind is one of linear, unit"),
    ("tasks.embed.layers", [{"kind": "unit"}] * 65, "tasks.embed.layers lists 65 layers, expected at most 64"),
    ("tasks.embed.dim", 17, "tasks.embed.dim is 17, expected 1 to 16, the numbers of a vector"),
    ("tasks.embed.dim", 0, "tasks.embed.dim is 0, expected 1 to 16"),
    ("tasks.embed.similarity", "maxsim", "tasks.embed.similarity is 'maxsim', expected one of cosine, dot, euclidean, manhattan"),
    ("tasks.embed.prompts", {"query": "a"}, "tasks.embed.prompts is .*, expected a list"),
    ("tasks.embed.prompts", [{"name": "a", "text": "b"}] * 2, "tasks.embed.prompts has a name twice"),
    ("tasks.embed.prompts", [{"name": "a"}], r"missing key tasks.embed.prompts\[0\].text"),
    ("tasks.embed.default_prompt", "a", "tasks.embed.default_prompt is 'a', expected the name of a prompt: 'query', 'document'"),
    ("tasks.embed.include_prompt", 1, "tasks.embed.include_prompt is 1, expected true or false"),
    ("tasks.classify.labels", ["a", "a"], "tasks.classify.labels names a label twice"),
    ("tasks.classify.labels", [], "tasks.classify.labels names 0 labels, expected 1 to 65536"),
    ("tasks.classify.labels", ["a", 1], r"tasks.classify.labels\[1\] is 1, expected a string"),
    ("tasks.classify.labels", "ab", "tasks.classify.labels is 'ab', expected a list"),
    ("tasks.classify.layers", [{"width": 0, "activation": "tanh"}], r"tasks.classify.layers\[0\].width is 0, expected"),
    ("tasks.tag.labels", ["O", "O"], "tasks.tag.labels names a label twice"),
    ("format_version", 2, "format_version is 2, expected 1: a newer fastinfer wrote this checkpoint; update fastinfer to read it"),
    ("format_version", 10**30, "format_version is 1000000000.*, expected 1: a newer fastinfer wrote this checkpoint; update fastinfer"),
    *(
        ("format_version", value, f"format_version is {shown}, expected 1: the file is damaged or was edited; copy or convert")
        for value, shown in (
            (0, "0"),
            (-1, "-1"),
            ("1", "'1'"),
            (1.0, "1.0"),
            (True, "True"),
            (None, "None"),
            ([1], r"\[1\]"),
            (..., "None"),
            (float("nan"), "nan"),
            ({"v": 1}, "{'v': 1}"),
        )
    ),
]


@pytest.mark.parametrize(("path", "value", "said"), SAID)
def test_values_that_cannot_be(path, value, said):
    with pytest.raises(fastinfer.ConfigError, match=f"^a/config.json: {said}"):
        Config.from_json(changed(path, value), "a/config.json")


@pytest.mark.parametrize("layers", [0, -1, 1025, 10**30, True, None, "2"], ids=repr)
def test_layers_are_checked_before_a_shared_feedforward_is_repeated(layers):
    with pytest.raises(fastinfer.ConfigError, match=r"layers is .*, expected"):
        Config.from_json(data() | {"layers": layers, "ffn": {"kind": "dense", "width": 4}})


def test_a_fault_that_layers_share_is_told_once():
    with pytest.raises(fastinfer.ConfigError) as error:
        Config.from_json(data() | {"layers": 1000, "ffn": {"kind": "dense", "width": 0}})
    assert str(error.value) == "config.json: ffn[0].width is 0, expected an integer from 1 to 65536"


def test_all_faults_at_once():
    with pytest.raises(fastinfer.ConfigError) as error:
        Config.from_json(data() | {"hidden": 15, "max_tokens": 0, "token_types": -1})
    assert all(word in str(error.value) for word in ("hidden is 15", "max_tokens is 0", "token_types is -1"))


@pytest.mark.parametrize("whole", [None, 1, "x", [], [[]] * 3], ids=repr)
def test_no_object_at_all(whole):
    with pytest.raises(fastinfer.ConfigError, match=r"^config.json: the whole is .*, expected an object"):
        Config.from_json(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": "16"}, "hidden is '16', expected an integer"),
        ({"hidden": 16.0}, "hidden is 16.0, expected an integer"),
        ({"norm": Positions("learned", 8)}, "norm is Positions.*, expected an object"),
        ({"norm": Norm("sideways", 1e-5)}, "norm.order is 'sideways', expected one of pre, post"),
        ({"ids": Ids(mask=1.0)}, "ids.mask is 1.0, expected an integer"),
        ({"ffn": (FFF(2, True),)}, r"ffn\[0\].depth is True, expected an integer"),
        ({"ffn": FFF(2, 3)}, "ffn is FFF.*, expected a list"),
        ({"tasks": Tasks(tag=Tag(("O",), "biluo"))}, "tasks.tag.scheme is 'biluo', expected one of bio, io"),
    ],
)
def test_a_config_made_in_python_is_checked_the_same_way(change, said):
    with pytest.raises(fastinfer.ConfigError, match=said):
        builders.tiny(**change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "decode"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "an object names 'c' twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "digits|Exceeds"),
        (b" " * (MAX_JSON_BYTES + 1), f"has {MAX_JSON_BYTES + 1} bytes, expected at most {MAX_JSON_BYTES}"),
    ],
    ids=range(8),
)
def test_files_that_are_no_json(tmp_path, text, said):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(fastinfer.ConfigError, match=said) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path} ")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(fastinfer.ConfigError, match="has 1099511627776 bytes, expected at most"):
        read_json(path)


def test_what_stands_in_a_message_is_short():
    nested = value = []
    for _ in range(900):
        value.append([])
        value = value[0]
    for value in (nested, "x" * 10**6, ["y" * 1000] * 1000, {"z" * 1000: 1}):
        with pytest.raises(fastinfer.ConfigError) as error:
            Config.from_json(data() | {"hidden": value})
        assert len(str(error.value)) < 600
