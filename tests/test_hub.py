"""Models by their names on the hub, against a server of this test that speaks its protocol. Each load runs in a process of its own."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fastinfer
from fastinfer import hub
from fastinfer.errors import CheckpointError

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import seeds

pytest.importorskip("huggingface_hub")
FIRST, SECOND = "1" * 40, "2" * 40  # commits
MODEL = seeds.make()["bert"]
OTHERS = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"a pickle",
    "tf_model.h5": b"x",
    "flax_model.msgpack": b"x",
    "onnx/model.onnx": b"x",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.xml": b"x",
    "model_quantized.safetensors": b"x",
    "train_script.py": b"raise SystemExit",
}


class Hub(http.server.ThreadingHTTPServer):
    """repos: {name: {revision: (commit, {file: content})}}; denied: {name: error code}; asked: "METHOD path" of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.denied, self.asked = {}, {}, []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, name, files, commit=FIRST, revisions=("main",)):
        self.repos.setdefault(name, {}).update(dict.fromkeys((commit, *revisions), (commit, files)))

    def files(self):
        """The files that were downloaded since the last call."""
        found = [path.partition("/resolve/")[2].partition("/")[2] for path in self.asked if path.startswith("GET") and "/resolve/" in path]
        self.asked.clear()
        return sorted(found)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (about[1], about[3] or "main") if about else (file[1], file[2]) if file else (None, None)
        if name in self.server.denied:
            return self.fail(403, self.server.denied[name])
        if name not in self.server.repos:
            return self.fail(401, "RepoNotFound")
        if revision not in self.server.repos[name]:
            return self.fail(404, "RevisionNotFound")
        commit, files = self.server.repos[name][revision]
        if file:
            if file[3] not in files:
                return self.fail(404, "EntryNotFound")
            content = files[file[3]]
            return self.answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})
        if about[2] == "tree":
            listed = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()]
        else:
            listed = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
            listed["siblings"] = [{"rfilename": n} for n in files]
        return self.answer(json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def answer(self, content, headers, status=200):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status, code):
        self.answer(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)


@pytest.fixture
def server():
    made = Hub()
    yield made
    made.shutdown()
    made.server_close()


RUN = """\
import json, os, pickle, sys, warnings
from pathlib import Path
import fastinfer
for name in sys.argv[1:]:
    out = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            is_pickle = name.endswith(".pickle")
            model = pickle.loads(Path(name).read_bytes()) if is_pickle else fastinfer.load(name, device="numpy")
            if "TO_PICKLE" in os.environ:
                Path(os.environ["TO_PICKLE"]).write_bytes(pickle.dumps(model))
            out |= {"tasks": model.tasks, "folder": repr(model).split()[1].rstrip(":")}
            out["vector"] = model.embed("ada lived")[0].tolist() if "embed" in model.tasks else None
        except fastinfer.FastinferError as error:
            out |= {"error": str(error), "kind": type(error).__name__}
    out["warnings"] = [str(w.message) for w in caught if issubclass(w.category, fastinfer.CheckpointWarning)]
    print(json.dumps(out))
"""


@pytest.fixture
def load(server, tmp_path):
    """A function from names to what loading them in a new process gives, a dict or a list of dicts.

    {tasks, folder, vector, warnings, stderr} or {error, kind, warnings, stderr}
    """

    def run(*names, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        kept = {key: value for key, value in kept.items() if "proxy" not in key.lower()}
        kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", RUN, *map(str, names)]
        done = subprocess.run(command, env=kept | environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) | {"stderr": done.stderr} for line in done.stdout.splitlines()]
        return found if len(names) > 1 else found[0]

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name, content in MODEL.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return fastinfer.load(folder, device="numpy").embed("ada lived")[0].tolist()


def test_a_model_is_downloaded_once(server, load, expected, tmp_path):
    server.add("org/name", MODEL | OTHERS)
    first = load("org/name")
    assert (first["vector"], first["warnings"]) == (expected, [])
    assert server.files() == sorted(MODEL)
    assert "Fetching" in first["stderr"]  # its progress bar
    snapshot = Path(first["folder"])
    assert snapshot == tmp_path / "home" / "hub" / "models--org--name" / "snapshots" / FIRST
    assert (snapshot / "model.safetensors").is_symlink()
    second = load("org/name")
    assert (second["vector"], second["folder"]) == (expected, first["folder"])
    if (snapshot.parents[1] / "trees").is_dir():  # older releases of huggingface_hub keep no lists of files, so the hub is asked
        assert [path for path in server.asked if "org/name" in path] == []
    server.shutdown()
    server.server_close()
    for found in [*load("org/name", snapshot.parents[1]), load("org/name", HF_HUB_OFFLINE="1")]:
        assert found["vector"] == expected


def test_revisions(server, load, expected):
    other = MODEL | {"1_Pooling/config.json": b'{"pooling_mode_cls_token": true}'}
    server.add("org/name", MODEL)
    server.add("org/name", other, SECOND, ["v2", "refs/pr/1"])
    main, tag, second, first = load("org/name", "org/name@v2", f"org/name@{SECOND}", f"org/name@{FIRST}")
    assert main["vector"] == first["vector"] == expected
    assert tag["vector"] == second["vector"] != expected
    server.asked.clear()
    again, missing = load("org/name@v2", "org/name@v3")
    assert again["vector"] == tag["vector"]
    assert server.files() == []
    assert (missing["kind"], missing["error"]) == ("CheckpointError", "org/name on the hub has no branch, tag or commit 'v3'")


def test_a_pickle_names_the_commit(server, load, expected, tmp_path):
    """It is what was loaded, in another cache, and also after the branch moved; a folder of the same name is not it."""
    server.add("org/name", MODEL)
    load("org/name", TO_PICKLE=str(tmp_path / "it.pickle"))
    assert len((tmp_path / "it.pickle").read_bytes()) < 1000
    server.add("org/name", MODEL | {"1_Pooling/config.json": b'{"pooling_mode_cls_token": true}'}, SECOND)
    (tmp_path / "org" / "name").mkdir(parents=True)
    server.files()
    found = load("it.pickle", HF_HOME=str(tmp_path / "another"), TO_PICKLE=str(tmp_path / "again.pickle"))
    assert (found["vector"], Path(found["folder"]).name) == (expected, FIRST)
    assert server.files() == sorted(MODEL)
    assert load("again.pickle")["folder"] == str(tmp_path / "home" / "hub" / "models--org--name" / "snapshots" / FIRST)


def test_a_bin_where_there_are_no_safetensors(server, load):
    source = seeds.make()["bin"] | {"tokenizer.json": MODEL["tokenizer.json"]}
    server.add("org/bin", source | {"tf_model.h5": b"x"})
    server.add("org/both", source | {"model.safetensors": MODEL["model.safetensors"], "model-00001-of-00002.safetensors": b"x"})
    for found in load("org/bin", "org/both"):
        assert found["tasks"] == ["embed", "classify"]
    weights = [path for path in server.asked if path.startswith("GET") and path.endswith((".bin", ".safetensors", ".h5"))]
    assert weights == [f"GET /org/bin/resolve/{FIRST}/pytorch_model.bin", f"GET /org/both/resolve/{FIRST}/model.safetensors"]


def test_shards_and_modules_with_weights(server, load):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {name: content for name, content in MODEL.items() if name != "model.safetensors"}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "tf_model-00001-of-00002.h5": b"x"}
    files |= {file: file.encode() for file in index["weight_map"].values()}
    modules = [*json.loads(MODEL["modules.json"])[:2], {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    files |= {"modules.json": json.dumps(modules).encode(), "2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"x"}
    server.add("org/name", files | {"2_Dense/pytorch_model.bin": b"x", "3_Other/model.safetensors": b"x"})
    assert load("org/name")["kind"] in ("CheckpointError", "ConfigError")
    left = {"tf_model-00001-of-00002.h5", "2_Dense/pytorch_model.bin", "3_Other/model.safetensors"}
    assert server.files() == sorted(set(files) - left)


def test_a_transformer_in_a_folder_of_its_own(server, load, expected):
    at = "0_Transformer"
    files = {name if name == "modules.json" or "/" in name else f"{at}/{name}": content for name, content in MODEL.items()}
    modules = json.loads(MODEL["modules.json"])
    files["modules.json"] = json.dumps([modules[0] | {"path": at}, *modules[1:]]).encode()
    server.add("org/name", files | {f"{at}/pytorch_model.bin": b"x", "onnx/model.onnx": b"x"})
    assert load("org/name")["vector"] == expected
    assert server.files() == sorted(files)


CANNOT_RUN = [
    ({"config.json": b'{"model_type": "falcon"}', "model.safetensors": b"x"}, "model_type 'falcon', a decoder-only language model"),
    ({"config.json": b'{"model_type": "llama"}', "model.safetensors": b"y"}, "llama is a decoder, and without modules.json its folder"),
    ({"config.json": MODEL["config.json"], "onnx/model.onnx": b"x"}, "has no weights but an ONNX model ('onnx/model.onnx')"),
    ({"model-Q4.gguf": b"x", "README.md": b"x"}, "has no config.json but GGUF weights ('model-Q4.gguf')"),
    ({"model_index.json": b"{}", "unet/config.json": b"{}"}, "holds a diffusers pipeline"),
    ({"adapter_config.json": b'{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": b"x"}, "base model, 'org/base'"),
    ({"README.md": b"x"}, "on the hub has no config.json, expected a model"),
]


def test_nothing_large_is_downloaded_of_what_cannot_run(server, load):
    for i, (files, _) in enumerate(CANNOT_RUN):
        server.add(f"org/{i}", files)
    for found, (_, said) in zip(load(*server.repos), CANNOT_RUN, strict=True):
        assert said in found["error"]
    assert set(server.files()) == {"config.json", "model_index.json", "adapter_config.json"}


def test_an_adapter_beside_its_base_is_downloaded(server, load, expected):
    settings = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}).encode()
    server.add(
        "org/name", MODEL | {"adapter_config.json": settings, "adapter_model.safetensors": seeds.pack({}), "adapter_model.bin": b"x"}
    )
    assert load("org/name")["vector"] == expected
    assert server.files() == sorted([*MODEL, "adapter_config.json", "adapter_model.safetensors"])


def test_what_the_hub_denies(server, load):
    server.denied = {"org/gated": "GatedRepo"}
    site = f"http://127.0.0.1:{server.server_address[1]}"
    gated, missing = load("org/gated", "org/missing")
    terms = f"accept its terms at {site}/org/gated, then set HF_TOKEN or run `hf auth login`"
    assert gated["error"] == f"org/gated on the hub is gated: {terms}"
    assert missing["error"] == (
        "org/missing is neither a folder, nor a model inside fastinfer, nor a repository on the hub that you may read: "
        "check the name; a private repository needs HF_TOKEN"
    )


def test_without_a_network(server, load, tmp_path):
    server.shutdown()
    server.server_close()
    cache = tmp_path / "home" / "hub"
    offline = load("org/name", HF_HUB_OFFLINE="1")["error"]
    assert offline == f"HF_HUB_OFFLINE is set, so org/name is not downloaded, and the cache {cache} has no whole copy of it"
    said = load("org/name")["error"]
    assert re.fullmatch(
        rf"http://127\.0\.0\.1:\d+ cannot be reached for org/name \(.+\), and the cache {cache} has no whole copy of it", said
    )


def cached(folder, files, commit=FIRST, absent=()):
    """A cache as another tool leaves it that asked for these files alone; it has noted that the files `absent` do not exist."""
    for i, (name, content) in enumerate(files.items()):
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / str(i)).write_bytes(content)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder / "blobs" / str(i), link.parent))
    for name in absent:
        (folder / ".no_exist" / commit).mkdir(parents=True, exist_ok=True)
        (folder / ".no_exist" / commit / name).touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)


BARE = {name: MODEL[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


def test_what_another_tool_left_in_the_cache_is_completed(server, load, expected, tmp_path):
    """transformers asks for no modules.json, whose absence would change the vectors."""
    cached(tmp_path / "cache" / "models--org--name", BARE)
    server.add("org/name", MODEL)
    assert load("org/name", HF_HUB_CACHE=str(tmp_path / "cache"))["vector"] == expected
    assert server.files() == sorted(set(MODEL) - {"model.safetensors", "config.json", "tokenizer.json"})


def test_what_another_tool_left_in_the_cache_is_used_offline(load, tmp_path):
    home = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    cached(tmp_path / "cache" / "models--org--unknown", BARE)
    cached(tmp_path / "cache" / "models--org--known", BARE, absent=["modules.json"])
    unknown, known = load("org/unknown", "org/known", **home)
    (warning,) = unknown["warnings"]
    assert warning.startswith("HF_HUB_OFFLINE is set, so org/unknown is not downloaded; ")
    assert "is used, where files such as modules.json, which says how to pool, may be missing" in warning
    assert (known["warnings"], known["tasks"]) == ([], ["classify"])


def test_a_folder_of_that_name_wins(server, load, tmp_path):
    for name, content in BARE.items():
        (tmp_path / "org" / "name").mkdir(parents=True, exist_ok=True)
        (tmp_path / "org" / "name" / name).write_bytes(content)
    assert load("org/name")["tasks"] == ["classify"]
    assert server.asked == []


def test_the_command_line_takes_names(server, load, tmp_path, monkeypatch):
    server.add("org/name", MODEL)
    folder = load("org/name@main")["folder"]
    run = [sys.executable, "-m", "fastinfer", "info", "-m", "org/name@main", "--json"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"]["tasks"] == ["embed", "classify"]
    assert Path(folder).is_dir()


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "/org/name", "./org/name", "org/name/", "org/", "org/na me", "org/name@", "../name", "org/näme"]
)
def test_other_strings_are_no_names(name, monkeypatch):
    monkeypatch.setattr(hub, "find", None)
    with pytest.raises(CheckpointError, match=r"is no checkpoint folder; expected one with .*, a name on the hub such as org/name, or"):
        fastinfer.load(name)
    with pytest.raises(CheckpointError, match="is no checkpoint folder"):
        fastinfer.load(Path("org") / "name")
