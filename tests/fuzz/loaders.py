"""Fuzz what reads files of strangers: broken checkpoints, indexes and texts must load and give finite shapes, or raise FastinferError.

    python tests/fuzz/loaders.py --seconds 30                  the form that CI runs
    python tests/fuzz/loaders.py --hours 2 --processes 8       long; findings are written to tests/fuzz/findings
    python tests/fuzz/loaders.py --replay tests/fuzz/corpus    run inputs again
    python tests/fuzz/loaders.py --atheris tokenizer --seconds 60     led by coverage, where atheris is installed

An input is a seed (seeds.py) and the files of it that are replaced. Workers mutate values, keys, sizes and bytes. A worker
that raises anything else, dies, hangs for 5 seconds or wants more than 1 GB is a finding: its input is kept. Mended ones
move to tests/fuzz/corpus, which tests/test_fuzz_corpus.py replays.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import collections
import contextlib
import functools
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tools")]

ATHERIS = "--atheris" in sys.argv
if ATHERIS:
    try:
        import atheris
    except ImportError:
        print("SKIPPED: atheris is not installed, so nothing was led by coverage: pip install atheris")
        sys.exit(0)
else:
    atheris = None

with atheris.instrument_imports(include=["fastinfer"]) if atheris else contextlib.nullcontext():
    import numpy as np
    import seeds

    import fastinfer
    from fastinfer import checkpoint, conversion, keeping, reading
    from fastinfer.checkpoint import Tensor, layouts, torch_file
    from fastinfer.checkpoint.layouts.tokenizer import find_tokenizer
    from fastinfer.config import Config
    from fastinfer.evaluation import files as data_files
    from fastinfer.formats import Answers, format_of
    from fastinfer.strict_json import parse_json
    from fastinfer.tokenizer import Tokenizer

HANG = 5  # seconds
LARGEST = 1 << 20  # bytes of the files of an input
MEMORY = 1 << 30  # bytes beyond what a worker has when it starts
TEXTS = ["ada lived in london.", ("who?", "paris, é 123"), "", "a" * 300]

Files = dict[str, bytes]


# --- what is run -----------------------------------------------------------------------------------


def run_config(files: Files, folder: Path) -> None:
    config = Config.from_json(parse_or_skip(files["config.json"]))
    checkpoint.tensors(config)
    assert Config.from_json(json.loads(config.to_json())) == config


def run_weights(files: Files, folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        for tensor in checkpoint.map_file(path, copy=True).values():
            tensor.data.sum()


def run_translate(files: Files, folder: Path) -> None:
    """layouts.translate on tensors that have their shapes from tensors.json where that names them: {name: shape, or null for none}."""
    stored = {name: Tensor(np.zeros(shape, np.float32), "float32") for name, shape in shapes_in(files).items()}
    for name, shape in json.loads(files.get("tensors.json", b"{}")).items():
        if shape is None:
            stored.pop(name, None)
        else:
            stored[name] = Tensor(np.zeros(shape, np.float32), "float32")
    config, made, _ = layouts.translate(parse_or_skip(files["config.json"]), stored, folder, folder, checkpoint.map_folder)
    checkpoint.check(config, made, str(folder))


def shapes_in(files: Files) -> dict[str, list[int]]:
    """{name: shape} of the tensors in model.safetensors; those of a BERT where the seed has none, or an adapter's base."""
    raw = files.get("model.safetensors", b"")
    if not raw or "adapter_config.json" in files:
        return SHAPES
    return {name: entry["shape"] for name, entry in json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).items()}


def run_tokenizer(files: Files, folder: Path) -> None:
    tokenizer = Tokenizer(folder / "tokenizer.json", CONFIG)
    encodings = tokenizer.encode(TEXTS)
    batch = tokenizer.batch(encodings)
    assert batch.ids.min(initial=0) >= 0
    assert max(map(len, batch.split(batch.ids))) <= max(CONFIG.max_tokens, 1)
    tokenizer.windows("who?", "ada lived in london. " * 20)
    tokenizer.raw.decode([0, 5], skip_special_tokens=False)


def run_kind(files: Files, folder: Path) -> None:
    """The tokenizer of a Hugging Face folder, from whichever files it is made."""
    config = parse_or_skip(files["config.json"])
    found = find_tokenizer(folder, config if isinstance(config, dict) else {}, CONFIG.vocabulary)
    if found.file:
        tokenizer = Tokenizer(found.file, CONFIG)
        assert tokenizer.batch(tokenizer.encode(TEXTS)).ids.max() < CONFIG.vocabulary
    assert all(id_ is None or 0 <= id_ < CONFIG.vocabulary for id_ in vars(found.ids).values())


def run_bin(files: Files, folder: Path) -> None:
    for tensor in torch_file.read(folder / "pytorch_model.bin").values():
        tensor.data.sum()


def run_folder(files: Files, folder: Path) -> None:
    """Load, and run a batch through every head."""
    model = fastinfer.load(folder, device=random.choice(("cpu", "numpy")), copy=bool(random.getrandbits(1)))
    c = model.config
    ids = [[1, 2, 3], [0]] if c.vocabulary > 3 and c.positions.max > 2 else [[0]]
    batch = fastinfer.PackedBatch.from_ids(ids)
    assert [h.shape for h in model.hidden_states(batch)] == [(len(row), c.hidden) for row in ids]
    for task in model.tasks:
        if task == "embed":
            assert model.embed(batch).shape == (len(ids), c.tasks.embed.numbers(c.hidden))
        elif task == "embed_sparse":
            assert model.embed_sparse(batch).shape == (len(ids), c.vocabulary)
        elif task.startswith("embed"):
            assert len(getattr(model, task)(batch)) == len(ids)
        else:
            assert len(model.logits(batch, task=task, positions="all")) == len(ids)
    if model.tokenizer is not None:
        assert len(model.hidden_states(TEXTS)) == len(TEXTS)
        if c.tasks.embed:
            assert len(model.embed(TEXTS)) == len(TEXTS)
            assert len(model.rank(TEXTS[0], TEXTS[2:])) == len(TEXTS[2:])


def run_convert(files: Files, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as out:
        conversion.convert(folder, Path(out))
        fastinfer.load(out, device="numpy")


def run_index(files: Files, folder: Path) -> None:
    """Open, search, change, save and open again. Without a model: the file does not say what is loaded."""
    index = fastinfer.Index.open(folder)
    assert index.model is None
    best = index.search(np.ones((2, index.dim), np.float32), 3)
    assert [len(found) for found in best] == [min(3, len(index))] * 2
    for key, _ in best[0]:
        assert not index.keeps_texts or isinstance(index.text(key), str)
    index.remove([best[0][0][0]] if best[0] else [])
    if not index.keeps_texts:
        kind = str if best[0] and isinstance(best[0][0][0], str) else int
        index.add(np.ones((2, index.dim), np.float32), ["new", "other"] if kind is str else None)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as out:
        index.save(out)
        assert len(fastinfer.Index.open(out)) == len(index)


def run_texts(files: Files, folder: Path) -> None:
    """Every file as input of the command line, read as texts and, where its kind has them, as records with ids."""
    for path in sorted(folder.iterdir()):
        args = argparse.Namespace(input=str(path), texts=[], column=None, jsonl=False, pairs=False, takes="either", whole=False)
        args.command = "embed"
        for takes, column in (("either", None), ("singles", ["text"]), ("pairs", ["text", "pair"])):
            args.takes, args.column = takes, None if path.suffix == ".txt" else column
            args.pairs = takes == "pairs" and path.suffix == ".txt"
            with contextlib.suppress(fastinfer.InputError):
                assert all(len(text) == 2 or isinstance(text, str) for text in reading.read_texts(args))
        args.takes, args.column, args.pairs = "either", None, False
        reading._count(args)
        for _, text, _ in reading.read_records(args):
            text if isinstance(text, str) else "".join(text)


def run_resume(files: Files, folder: Path) -> None:
    """Go on with an interrupted run of two texts. What is kept must be as it was written, byte for byte, or refused."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as out:
        write(Path(out), files)
        answers = Answers(
            lambda text, found: {"text": text, "n": found}, lambda text, found: text, ("text", "pair"), ("n",), lambda n: [(n,)]
        )
        with keeping.kept(os.path.join(out, "out.jsonl"), resume=True) as part:
            part.made = lambda: seeds.MADE
            texts = iter(seeds.TEXTS)
            part.skip(texts)
            with part.writing(format_of("jsonl", answers, "out.jsonl", False)) as wrote:
                for text in texts:
                    wrote([text], [len(text)])
        assert len(Path(out, "out.jsonl").read_bytes().splitlines()) >= len(seeds.TEXTS) - part.done


def run_data(files: Files, folder: Path) -> None:
    """The files that evaluation and training read."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".csv", ".tsv", ".jsonl"):
            list(data_files.read_table(path, None, ("text", "label")))
        elif path.suffix == ".json":
            list(data_files.read_splits(path, "test"))
        elif path.suffix == ".conll":
            list(data_files.read_tagged(path))
        else:
            list(data_files.read_articles(path, whole=True))


POSITIONS = ("rotary", "causal", "buckets", "alibi", "disentangled")  # seeds with the keys of attention, norms, gates and widths
# target: what runs, its seeds, its share of the executions
TARGETS = {
    "config": (run_config, ("ours", "int8", "shards", "vectors", *POSITIONS), 8),
    "weights": (run_weights, ("ours", "int8", "shards"), 4),
    "translate": (run_translate, ("bert", "bin", "adapter", "sentences", *seeds.FAMILIES), 10),
    "tokenizer": (run_tokenizer, ("ours",), 8),
    "kind": (run_kind, ("bert", "bin", "merges", "pieces", "spm", "plain"), 8),
    "bin": (run_bin, ("bin",), 4),
    "folder": (
        run_folder,
        ("ours", "int8", "shards", "bert", "bin", "adapter", "crammed", "sentences", "vectors", *POSITIONS, *seeds.FAMILIES),
        10,
    ),
    "convert": (run_convert, ("bin", "bert", "adapter", "crammed", "sentences"), 1),
    "index": (run_index, ("index-float32", "index-int8", "index-binary"), 6),
    "texts": (run_texts, ("texts",), 4),
    "resume": (run_resume, ("resume",), 2),
    "data": (run_data, ("data",), 2),
}


def write(folder: Path, files: Files) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def parse_or_skip(text: bytes):
    """The object of a config.json; errors of JSON are those that read_json reports."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise fastinfer.ConfigError(f"no JSON: {error}") from None


def execute(target: str, seed: str, changed: Files) -> bool:
    """Run one input. Whether it was taken; False where it was refused with a FastinferError. Anything else comes through."""
    files = SEEDS[seed] | changed
    folder = place(seed)
    write(folder, changed)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            TARGETS[target][0](files, folder)
        return True
    except fastinfer.FastinferError as error:
        message = str(error)
    finally:
        for name in changed:
            if name in SEEDS[seed]:
                write(folder, {name: SEEDS[seed][name]})
            else:
                (folder / name).unlink()
    if not 0 < len(message) <= 4000 or not message.replace("\n", "").isprintable():
        raise AssertionError("a message without bounds: " + message[:1000])
    return False


@functools.cache
def place(seed: str) -> Path:
    """A folder with the files of a seed, which goes when the process ends."""
    folder = tempfile.mkdtemp(dir=SCRATCH)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(Path(folder), SEEDS[seed])
    return Path(folder)


SCRATCH = os.environ.get("TMPDIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
SEEDS = seeds.make()
CONFIG = seeds.make_config()
SHAPES = {name: list(array.shape) for name, array in seeds.bert().items()}


# --- mutations -------------------------------------------------------------------------------------

INTEGERS = [-1, 0, 1, 2, 3, 7, 16, 17, 255, 1000, 65535, 65536, 65537, 1 << 22, 1 << 24, (1 << 24) + 1]
INTEGERS += [(1 << bits) + d for bits in (31, 32, 53, 63, 64) for d in (-1, 0)] + [10**30, -(10**30)]
VALUES = [None, True, False, 0.5, -0.0, 1e-300, 1e308, 1e400, -1e400, float("nan"), "", "a", "0", "\0", "\ud800", "é" * 3, "a" * 5000]
VALUES += ["none", "gated", "silu", "tanh", {"kind": "alibi"}, {"kind": "buckets"}, {"kind": "disentangled", "buckets": 2, "reach": 3}]
VALUES += [1.5, 1e9, {"theta": 10.0, "window": 1}, {"kind": "gated", "width": 3}, {"width": 2, "activation": "silu", "norm": True}]
VALUES += ["../x", "/etc/passwd", "[CLS]", "gelu", "bert", "int8", [], {}, [[]], [1], {"a": 1}, [None] * 3, {"type": "Sequence"}, "é", "ﷺ"]
BYTES = [b"\0", b"\xff", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b"\\u0000", b"\\ud800", b"1e999", b"null", b"-"]


def nodes(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value[:50]):
            yield from nodes(item, (*path, i))


def copy(value):
    """A copy that shares nothing: else a value could come to hold itself, or a later input what an earlier one was given."""
    return json.loads(json.dumps(value))


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = list(nodes(value))
        path = rng.choice(paths)
        if not path:
            continue
        *before, last = path
        parent = value
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for key in before:
                parent = parent[key]
            kind = rng.randrange(9)
            old = copy(parent[last])
            if kind == 0:
                del parent[last]
            elif kind == 1 and isinstance(parent, dict):
                parent[rng.choice([*parent, "", "new", last + "_"])] = old
            elif kind == 1:
                parent.insert(last, old)
            elif kind == 2 and isinstance(old, list):
                parent[last] = old * rng.choice((0, 2, 3, 40))
            elif kind == 3:
                other = value
                for key in rng.choice(paths):
                    other = other[key]
                parent[last] = copy(other)
            elif kind == 4 and isinstance(old, dict):
                parent[last] = dict(rng.sample(sorted(old.items(), key=str), rng.randint(0, len(old))))
            elif kind == 5:
                parent[last] = copy(rng.choice(seeds.COMPONENTS))
            elif kind == 6 and isinstance(old, str):
                parent[last] = rng.choice((old * 2, old[:-1], old.upper(), old + "\0", old * 300))
            elif type(old) is int:
                parent[last] = rng.choice([*INTEGERS, old + 1, old - 1, old * 2, -old, float(old)])
            else:
                parent[last] = copy(rng.choice([*VALUES, *INTEGERS]))
    return json.dumps(value).encode()


def mutate_bytes(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del changed[at : at + rng.choice((1, 2, 8, len(changed)))]
        elif kind == 1:
            changed[at:at] = rng.choice(BYTES) * rng.choice((1, 1, 1, 3, 2000))
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 8, 64))]
        elif kind == 3:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(INTEGERS) % (1 << 64))[: rng.choice((1, 2, 4, 8))]
        elif at < len(changed):
            changed[at] = changed[at] ^ 1 << rng.randrange(8) if kind == 4 else rng.randrange(256)
    return bytes(changed)


def mutate_safetensors(rng: random.Random, raw: bytes) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.3:
        return mutate_bytes(rng, raw[: 8 + size]) + raw[8 + size :]
    header = mutate_json(rng, raw[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + (raw[8 + size :] if rng.random() < 0.9 else mutate_bytes(rng, raw[8 + size :]))


def mutate_zip(rng: random.Random, raw: bytes) -> bytes:
    """Half of the time the file as it is, else a record changed and its checksum right."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, raw)
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(raw)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        target = rng.choice([n for n in names if n.endswith("data.pkl")] * 6 + names)
        for name in names:
            text = old.read(name)
            if name == target and rng.random() < 0.1:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(name, mutate_bytes(rng, text) if name == target else text)
    return made.getvalue()


def mutate_npz(rng: random.Random, raw: bytes) -> bytes:
    """Mostly what an index says about itself changed, else the header or the numbers of an array, or bytes of the file."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, raw)
    with np.load(BytesIO(raw)) as stored:
        arrays = dict(stored)
    name = "meta" if rng.random() < 0.6 else rng.choice(sorted(arrays))
    if name == "meta":
        arrays[name] = np.frombuffer(mutate_json(rng, arrays[name].tobytes()), np.uint8)
    elif rng.random() < 0.5:
        arrays[name] = rng.choice(
            (
                np.frombuffer(mutate_bytes(rng, arrays[name].tobytes()).ljust(8), np.uint8),
                arrays[name][: rng.randrange(len(arrays[name]) + 1)],
                arrays[name].astype(rng.choice(("<i8", "<f4", "<f8", "u1", "<u8", ">i4", "S3"))),
                arrays[name].T,
                arrays[name][None],
            )
        )
    else:
        changed = mutate_bytes(rng, arrays[name].tobytes())[: arrays[name].nbytes].ljust(arrays[name].nbytes, b"\xff")
        arrays[name] = np.frombuffer(changed, arrays[name].dtype).reshape(arrays[name].shape)
    if rng.random() < 0.05:
        arrays.pop(rng.choice(sorted(arrays)))
    made = BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def mutate_lines(rng: random.Random, text: bytes) -> bytes:
    """A line of JSON changed, or its bytes."""
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if lines[at].lstrip()[:1] in (b"{", b"[", b'"') and rng.random() < 0.6:
        lines[at] = mutate_json(rng, lines[at]) + b"\n"
        return b"".join(lines)
    return mutate_bytes(rng, text)


def mutate_file(rng: random.Random, name: str, text: bytes) -> bytes:
    if name.endswith(".npz"):
        return mutate_npz(rng, text)
    if name.endswith(".gz"):
        return mutate_bytes(rng, text) if rng.random() < 0.5 else gzip.compress(mutate_lines(rng, gzip.decompress(text)))
    if name.endswith(".jsonl"):
        return mutate_lines(rng, text)
    if name.endswith(".safetensors"):
        return mutate_safetensors(rng, text)
    if name.endswith(".bin"):
        return mutate_zip(rng, text)
    if name.endswith(".json") and rng.random() < 0.85:
        return mutate_json(rng, text)
    return mutate_bytes(rng, text)


def shapes(rng: random.Random, known: dict[str, list[int]]) -> bytes:
    """tensors.json: up to three tensors with other shapes, or none; `known` are those of the seed."""
    sizes = [0, 1, 2, 16, 17, 22, 23, 24, 32, 48]
    names = [*known, "module.bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight", "cls.seq_relationship.weight"]
    names += ["cls.predictions.transform.dense.weight", "qa_outputs.weight", "classifier.out_proj.weight", "lm_head.dense.weight"]
    return json.dumps(
        {rng.choice(names): rng.choice((None, [rng.choice(sizes) for _ in range(rng.randrange(4))])) for _ in range(rng.randrange(4))}
    ).encode()


NEEDED = {"config": ("config.json",), "tokenizer": ("tokenizer.json",), "bin": ("pytorch_model.bin",)}


def draw(rng: random.Random, targets: list[str]) -> tuple[str, str, Files]:
    """A random input: (target, seed, the files that differ from the seed)."""
    target = rng.choices(targets, [TARGETS[t][2] for t in targets])[0]
    seed = rng.choice(TARGETS[target][1])
    whole = SEEDS[seed]
    names = [n for n in sorted(whole) if n in NEEDED.get(target, whole)]
    if target == "weights":
        names = [n for n in names if n.endswith(".safetensors")]
    changed = {}
    if target == "translate":
        names = [n for n in names if not n.endswith((".safetensors", ".bin"))]
        changed["tensors.json"] = shapes(rng, shapes_in(whole))
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
        changed[name] = mutate_file(rng, name, whole[name])
    return target, seed, changed


# --- inputs on the disk ----------------------------------------------------------------------------


def dump(target: str, seed: str, changed: Files) -> bytes:
    """An input as a file of the corpus."""
    files = {name: base64.b64encode(text).decode() for name, text in changed.items()}
    return json.dumps({"target": target, "seed": seed, "files": files}, indent=1).encode() + b"\n"


def undump(text: bytes) -> tuple[str, str, Files]:
    """(target, seed, the files that differ from the seed) of an input."""
    data = json.loads(text)
    return data["target"], data["seed"], {name: base64.b64decode(value) for name, value in data["files"].items()}


# --- workers ---------------------------------------------------------------------------------------


def limit_memory() -> None:
    """At most MEMORY more than this process has now."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def work(state: Path, seed: int, targets: list[str]) -> None:
    """Run inputs until killed; `state` gets each input before it runs, and the counts."""
    rng = random.Random(seed)
    for target in targets:  # what is imported at first use must not count
        for name in TARGETS[target][1]:
            assert execute(target, name, {}), (target, name)
    limit_memory()
    counts: collections.Counter[str] = collections.Counter()
    current = os.open(state / "current", os.O_RDWR | os.O_CREAT)
    report = os.open(state / "counts", os.O_RDWR | os.O_CREAT)
    while True:
        target, name, changed = draw(rng, targets)
        if sum(map(len, changed.values())) > LARGEST:
            continue
        text = dump(target, name, changed)
        os.pwrite(current, text, 0)
        os.ftruncate(current, len(text))
        random.seed(seed + sum(counts.values()))
        try:
            counts[f"{target} {'taken' if execute(target, name, changed) else 'refused'}"] += 1
        except BaseException:
            (state / "error").write_text(traceback.format_exc()[-4000:])
            raise
        os.pwrite(report, json.dumps(counts).encode().ljust(2000), 0)


class Worker:
    def __init__(self, folder: Path, seed: int, targets: list[str]) -> None:
        self.folder = folder / str(seed)
        self.folder.mkdir()
        command = [sys.executable, __file__, "--worker", str(self.folder), "--seed", str(seed), "--targets", *targets]
        environment = os.environ | {"TMPDIR": str(self.folder)}  # what it leaves goes with its folder
        with open(self.folder / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, start_new_session=True)
        self.seen: tuple = (None, time.monotonic() + 60)  # a minute to start

    def counts(self) -> dict[str, int]:
        try:
            return json.loads((self.folder / "counts").read_bytes() or b"{}")
        except (OSError, ValueError):
            return {}

    def trouble(self) -> str | None:
        """What happened to it, or None while it works."""
        code = self.process.poll()
        if code is not None:
            error = self.folder / "error"
            if error.exists():
                return error.read_text()
            return f"died with {signal.Signals(-code).name if code < 0 else code}: " + (self.folder / "stderr").read_text()[-1000:]
        if (self.folder / "counts").exists():
            counts = sum(self.counts().values())
            if counts != self.seen[0]:
                self.seen = (counts, time.monotonic())
        return f"hangs for {HANG} seconds" if time.monotonic() - self.seen[1] > HANG else None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def fuzz(seconds: float, processes: int, seed: int, targets: list[str], findings: Path, first: bool) -> int:
    """The number of findings; prints what was run."""
    total: collections.Counter[str] = collections.Counter()
    known: collections.Counter[str] = collections.Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        workers = [Worker(Path(scratch), seed + i, targets) for i in range(processes)]
        seed += processes
        said = begin
        while time.monotonic() - begin < seconds and not (first and known):
            time.sleep(0.2)
            for i, worker in enumerate(workers):
                trouble = worker.trouble()
                if trouble is None:
                    continue
                worker.end()
                total.update(worker.counts())
                kind = re.sub(r"0x[0-9a-f]+|\d+", "N", " ".join(trouble.strip().splitlines()[-1:]))[:200]
                known[kind] += 1
                if known[kind] == 1 and (worker.folder / "current").exists():
                    findings.mkdir(parents=True, exist_ok=True)
                    path = findings / f"{seed}.json"
                    path.write_bytes((worker.folder / "current").read_bytes())
                    print(f"FINDING {path}\n{trouble}", flush=True)
                workers[i] = Worker(Path(scratch), seed, targets)
                seed += 1
            if time.monotonic() - said > 60:
                said = time.monotonic()
                now = total + sum((collections.Counter(w.counts()) for w in workers), collections.Counter())
                print(f"{said - begin:.0f} s, {sum(now.values())} executions, {len(known)} kinds of findings", flush=True)
        for worker in workers:
            total.update(worker.counts())
            worker.end()
    took = time.monotonic() - begin
    for name in sorted(total):
        print(f"{name:<20} {total[name]:>12}")
    print(f"{sum(total.values())} executions in {took:.0f} s, {sum(total.values()) / took:.0f} a second, {processes} processes")
    for kind, count in known.most_common():
        print(f"{count} times: {kind}")
    if not total:
        print("nothing was run")
        return 1
    return len(known)


def replay(paths: list[Path]) -> None:
    """Run inputs of the corpus again; an error comes through, with the input's name printed before."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    limit_memory()
    for file in files:
        print(file.name, flush=True)
        signal.alarm(HANG * 4)
        for choice in range(4):
            random.seed(choice)
            execute(*undump(file.read_bytes()))
        signal.alarm(0)


def led_by_coverage(target: str, seconds: int) -> None:
    """atheris: its bytes are the file that the target reads."""
    name = {"weights": "model.safetensors", "translate": "config.json", "folder": "config.json"}.get(target) or NEEDED[target][0]
    seed = TARGETS[target][1][0]
    with tempfile.TemporaryDirectory(dir=SCRATCH) as corpus:
        for other in TARGETS[target][1]:
            if name in SEEDS[other]:
                Path(corpus, other).write_bytes(SEEDS[other][name])
        findings = HERE / "findings"
        findings.mkdir(exist_ok=True)

        def one(data: bytes) -> None:
            execute(target, seed, {name: data})

        options = [
            f"-max_total_time={seconds}",
            f"-timeout={HANG}",
            "-rss_limit_mb=4096",
            "-max_len=100000",
            f"-artifact_prefix={findings}/",
        ]
        atheris.Setup([sys.argv[0], corpus, *options], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, help="of the first process (default: another in each run)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--findings", type=Path, default=HERE / "findings")
    parser.add_argument("--first", action="store_true", help="stop at the first finding")
    parser.add_argument("--replay", nargs="+", type=Path, metavar="PATH", help="files of the corpus, or folders of them")
    parser.add_argument("--atheris", choices=[t for t in TARGETS if t != "convert"], metavar="TARGET")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds + 3600 * options.hours or 30
    if options.replay:
        replay(options.replay)
        return 0
    if options.atheris:
        led_by_coverage(options.atheris, int(seconds))
        return 0
    seed = options.seed if options.seed is not None else random.randrange(1 << 40)
    if options.worker:
        work(options.worker, seed, options.targets)
    print(f"seed {seed}", flush=True)
    return min(fuzz(seconds, options.processes, seed, options.targets, options.findings, options.first), 1)


if __name__ == "__main__":
    sys.exit(main())
