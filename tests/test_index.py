"""Index: what search() finds is what float64 finds, in every precision, similarity and backend; files of strangers are checked."""

import contextlib
import io
import json
import struct
import tracemalloc
import zipfile

import builders
import numpy as np
import pytest
from backends import ALL
from conftest import WORDS, make_config, make_tokenizer
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import Index, checkpoint, index_file
from fastinfer.config import Embed, Prompt, Tasks
from fastinfer.errors import CheckpointError, InputError, ShapeError, TaskError

DIM = 32  # hidden size of make_config()
SIMILARITIES = ["cosine", "dot", "euclidean", "manhattan"]
DEVICES = [name for name in ALL if not name.startswith("cuda")]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """make(similarity, **fields of Embed) -> the folder of a model with random weights."""

    def make(similarity="cosine", seed=0, **fields):
        folder = tmp_path_factory.mktemp("index")
        config = make_config(tasks=Tasks(embed=Embed("mean", False, similarity=similarity, **fields)))
        checkpoint.save(folder, config, builders.weights(config, seed) if seed else builders.weights(config))
        make_tokenizer().save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture(scope="module")
def models(folder_of):
    """models(similarity, device) -> a model, made once."""
    made = {}

    def get(similarity="cosine", device="numpy"):
        if similarity not in made:
            made[similarity] = folder_of(similarity)
        key = similarity, device
        if key not in made:
            made[key] = fastinfer.load(made[similarity], device=device)
        return made[key]

    return get


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def scores64(queries, vectors, similarity):
    """All scores in float64, (Q, N)."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if similarity == "cosine":
        q, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, v))
    if similarity in ("cosine", "dot"):
        return q @ v.T
    apart = q[:, None] - v[None]
    return -(np.linalg.norm(apart, axis=2) if similarity == "euclidean" else np.abs(apart).sum(axis=2))


def check_best(found, scores, k, tolerance=2e-5):
    """Each answer has the k best rows by `scores` (Q, N), in order, with their scores. Rows within the tolerance are as good."""
    for got, row in zip(found, scores, strict=True):
        ids, values = [key for key, _ in got], np.array([score for _, score in got])
        assert len(set(ids)) == len(ids) == min(k, len(row))
        scale = max(1.0, np.abs(row).max())
        assert_allclose(values, row[ids], rtol=0, atol=tolerance * scale)
        assert_allclose(values, np.sort(row)[::-1][: len(ids)], rtol=0, atol=tolerance * scale)
        assert (np.diff(values) <= 0).all()


# --- what search() finds ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_best_are_those_of_float64(models, rng, device, similarity):
    vectors = rng.standard_normal((3000, DIM)) * rng.uniform(0.1, 10, (3000, 1))
    queries = rng.standard_normal((7, DIM)) * 3
    index = Index(models(similarity, device))
    for part in np.split(vectors.astype(np.float32), [1, 900, 2500]):
        index.add(part)
    assert len(index) == 3000
    check_best(index.search(queries.astype(np.float32), 10), scores64(queries, vectors, similarity), 10)


@pytest.mark.parametrize("device", DEVICES)
def test_more_rows_than_a_block(models, rng, device, monkeypatch):
    """Answers do not depend on the blocks, and are those of float64."""
    vectors, queries = (rng.standard_normal((n, DIM)).astype(np.float32) for n in (5000, 20))
    index = Index(models("dot", device))
    index.add(vectors)
    whole = index.search(queries, 25)
    check_best(whole, scores64(queries, vectors, "dot"), 25)
    monkeypatch.setattr(fastinfer.backends.search, "SCORES", 1000)  # of the reference
    monkeypatch.setattr(fastinfer.backends.search, "QUERIES", 3)
    assert index.search(queries, 25) == whole


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_an_answer_does_not_depend_on_the_batch_or_threads(models, rng, device, precision, similarity):
    index = Index(models(similarity, device), precision=precision)
    index.add(rng.standard_normal((700, DIM)).astype(np.float32))
    queries = rng.standard_normal((13, DIM)).astype(np.float32)
    whole = index.search(queries, 5, threads=1)
    assert [index.search(query, 5)[0] for query in queries] == whole
    assert index.search(queries[::-1].copy(), 5, threads=2) == whole[::-1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_and_order_are_those_of_rank(models, device, similarity):
    model = models(similarity, device)
    texts = [f"{a} {b}" for a in WORDS[5:14] for b in WORDS[5:14]]
    index = Index(model)
    index.add(texts)
    for query in ("ada in London", "", "Paris"):
        [found], ranked = index.search(query, 12), model.rank(query, texts, top_k=12)
        if device == "numpy":  # where a vector depends on its batch
            assert_allclose([score for _, score in found], [score for _, score in ranked], rtol=1e-5)
        else:
            assert found == ranked


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_those_of_rank(folder_of, include_prompt):
    prompts = Prompt("query", "London ada "), Prompt("document", "in Rome ")
    model = fastinfer.load(folder_of(prompts=prompts, include_prompt=include_prompt), device="numpy")
    index = Index(model)
    texts = ["ada", "in London", "Paris is"]
    index.add(texts)
    assert_allclose([s for _, s in sorted(index.search("Paris", 3)[0])], [s for _, s in sorted(model.rank("Paris", texts))], rtol=2e-6)


def test_dim_is_that_of_rank(models):
    index = Index(models(device=DEVICES[-1]), dim=8)
    index.add(WORDS[5:20])
    [found], ranked = index.search("ada", 4), models(device=DEVICES[-1]).rank("ada", WORDS[5:20], top_k=4, dim=8)
    assert_allclose([score for _, score in found], [score for _, score in ranked], rtol=1e-5)
    assert [key for key, _ in found] == [row for row, _ in ranked]
    assert index.dim == 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_of_equal_vectors_the_first_comes_first(models, rng, device, precision):
    """Also where far more are equal than are asked for, in whatever block they are."""
    some = rng.standard_normal((2, DIM)).astype(np.float32)
    vectors = np.tile(some, (4000, 1))
    index = Index(models("dot", device), precision=precision)
    index.add(vectors)
    rows = sorted(range(8000), key=lambda row: (-float(some[row % 2] @ some[0]), row))[:7]
    assert [key for key, _ in index.search(some[0], 7)[0]] == rows


def test_near_rows_are_told_apart_where_a_product_in_float32_does_not(models, rng):
    """Sums in another order may swap rows; then rows are compared as rank() compares them."""
    base = rng.standard_normal(DIM)
    vectors = (base + 1e-7 * rng.standard_normal((3000, DIM))).astype(np.float32)
    index = Index(models("dot"))
    index.add(vectors)
    want = np.einsum("bd,d->b", vectors, base.astype(np.float32))
    order = np.argsort(-want, kind="stable")[:10]
    assert index.search(base.astype(np.float32), 10)[0] == [(int(row), float(want[row])) for row in order]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["int8", "binary"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_smaller_vectors_find_nearly_the_same(models, rng, device, precision, similarity):
    """The score is that of the codes with the query as it is: int8 changes it by 1% at most; most of the best are found."""
    centres = rng.standard_normal((40, DIM))
    vectors = (centres[rng.integers(0, 40, 2000)] + 0.6 * rng.standard_normal((2000, DIM))).astype(np.float32)
    queries = (vectors[:30] + 0.3 * rng.standard_normal((30, DIM))).astype(np.float32)
    index = Index(models(similarity, device), precision=precision)
    index.add(vectors)
    scores = scores64(queries, vectors, similarity)
    found = index.search(queries, 10)
    hits = 0
    for got, row in zip(found, scores, strict=True):
        for key, score in got:
            assert abs(score - row[key]) < 0.02 * np.abs(row).max()
        hits += len({key for key, _ in got} & set(np.argsort(-row)[:10]))
    assert hits / 300 > (0.9 if precision == "int8" else 0.6)


def test_sizes_in_memory(models, rng):
    sizes = {}
    for precision in ("float32", "int8", "binary"):
        index = Index(models(), precision=precision)
        index.add(rng.standard_normal((100, DIM)).astype(np.float32))
        sizes[precision] = index.nbytes
    assert sizes == {"float32": 100 * 4 * DIM, "int8": 100 * (DIM + 4), "binary": 100 * (DIM // 8 + DIM + 4)}


def test_the_memory_of_a_search_does_not_grow_with_the_rows(models, rng):
    peaks = []
    for count in (40_000, 160_000):
        index = Index(models("dot"))
        for _ in range(count // 20_000):
            index.add(rng.standard_normal((20_000, DIM)).astype(np.float32))
        queries = rng.standard_normal((50, DIM)).astype(np.float32)
        index.search(queries)
        tracemalloc.start()
        index.search(queries)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 160_000 * DIM * 4


# --- what is stored ---


def test_an_empty_index_and_large_k(models):
    index = Index(models())
    assert len(index) == 0
    assert index.search(["ada", "in"]) == [[], []]
    index.add([])
    index.add("ada")
    assert [len(found) for found in index.search(["ada", "in"], 1000)] == [1, 1]
    assert index.search([], 3) == []


def test_ids(models):
    index = Index(models())
    index.add(["ada", "in"])
    index.add(["London"], ids=[np.int32(7)])
    index.add(["Paris"])
    assert sorted(key for key, _ in index.search("ada")[0]) == [0, 1, 7, 8]
    named = Index(models())
    named.add(["ada", "in"], ids=np.array(["b", "ä"]))
    assert {key for key, _ in named.search("ada")[0]} == {"b", "ä"}
    assert "ä" in named
    assert 0 not in named
    for ids, message in (
        (["b"], "already"),
        (["c", "c"], "expected one for each"),
        ([1], "expected a str"),
        ("c", "expected a list"),
        (None, "expected a str for each"),
    ):
        with pytest.raises(InputError, match=message):
            named.add(["ada"], ids=ids)
    with pytest.raises(InputError, match="twice"):
        named.add(["ada", "in"], ids=["c", "c"])
    for ids in ([True], [1.5], [1 << 63], ["a"], [None]):
        with pytest.raises(InputError, match="ids"):
            index.add(["ada"], ids=ids)
    assert (len(index), len(named)) == (4, 2)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_removed_texts_are_not_found(models, rng, precision, tmp_path):
    vectors = rng.standard_normal((500, DIM)).astype(np.float32)
    index, kept = Index(models("dot"), precision=precision), Index(models("dot"), precision=precision)
    index.add(vectors)
    gone = rng.permutation(500)[:490]
    index.remove(gone.tolist())
    left = np.setdiff1d(np.arange(500), gone)
    kept.add(vectors[left], ids=left)
    assert len(index) == 10
    assert index.search(vectors[:5], 20) == kept.search(vectors[:5], 20)
    with pytest.raises(InputError, match="does not have"):
        index.remove([int(left[0]), int(gone[0])])
    assert int(left[0]) in index
    assert int(gone[0]) not in index
    index.add(vectors[gone[:1]], ids=[int(gone[0])])
    assert index.search(vectors[gone[0]], 1)[0][0][0] == gone[0]
    index.save(tmp_path / "a.npz")
    again = Index.open(tmp_path / "a.npz", models("dot"))
    assert again.search(vectors[:5], 20) == index.search(vectors[:5], 20)
    again.remove(int(gone[0]))
    assert again.search(vectors[:5], 20) == kept.search(vectors[:5], 20)


def test_an_addition_that_fails_leaves_the_index_as_it_was(models, rng, monkeypatch):
    vectors = rng.standard_normal((40, DIM)).astype(np.float32)
    index = Index(models(), keep_texts=True)
    index.add(WORDS[5:15])
    before = index.search(vectors[:3], 20)
    with pytest.raises(InputError, match=r"texts\[1\]"):
        index.add(["ada", 3])
    monkeypatch.setattr(fastinfer.index, "PORTION", 2)
    embedder = type(models()._embedder())
    calls, real = [], embedder.embed

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(embedder, "embed", failing)
    with pytest.raises(KeyboardInterrupt):
        index.add(WORDS[15:25])
    monkeypatch.undo()
    assert index.search(vectors[:3], 20) == before
    index.add(["ada"])
    assert index.text(10) == "ada"
    plain = Index(models())
    vectors[39, 3] = np.nan
    with pytest.raises(InputError, match=r"vectors\[39\]"):
        plain.add(vectors)
    assert len(plain) == 0


def test_texts_are_kept_where_this_is_asked_for(models, tmp_path):
    index = Index(models(), keep_texts=True)
    index.add(["ada 🦊", "", "in"], ids=["x", "y", "z"])
    index.remove("y")
    index.save(tmp_path / "folder")
    for one in (index, Index.open(tmp_path / "folder", models())):
        assert (one.text("x"), one.text("z")) == ("ada 🦊", "in")
        assert one.keeps_texts
        with pytest.raises(InputError, match="does not have"):
            one.text("y")
    with pytest.raises(InputError, match="keeps its texts"):
        index.add(np.zeros((1, DIM), np.float32))
    plain = Index(models())
    plain.add("ada")
    with pytest.raises(InputError, match="keep_texts=True"):
        plain.text(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda i: i.search("ada", 0), InputError, "top_k is 0"),
        (lambda i: i.search("ada", True), InputError, "top_k is True"),
        (lambda i: i.search([("ada", "in")]), InputError, "pair"),
        (lambda i: i.search(3), InputError, "queries"),
        (lambda i: i.search(np.zeros(7, np.float32)), ShapeError, r"\(B, 32\)"),
        (lambda i: i.search(np.full(DIM, np.inf)), InputError, "infinity"),
        (lambda i: i.search(np.full(DIM, 1e30)), InputError, "too large"),
        (lambda i: i.add(np.zeros((2, 7), np.float32)), ShapeError, r"\(B, 32\)"),
        (lambda i: i.add(["ada"], progress=1), InputError, "progress"),
        (lambda i: i.save(""), InputError, "path"),
        (lambda i: i.remove([[]]), InputError, "does not have"),
        (lambda i: Index(i.model, precision="int4"), InputError, "precision is 'int4', expected one of 'float32', 'int8', 'binary'"),
        (lambda i: Index(i.model, dim=33), InputError, "1 to 32"),
        (lambda i: Index(i.model, keep_texts=1), InputError, "keep_texts"),
        (lambda i: Index(None), TaskError, "embed head"),
    ],
)
def test_wrong_arguments(models, call, error, message):
    index = Index(models())
    index.add("ada")
    with pytest.raises(error, match=message):
        call(index)


# --- files ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_saved_index_answers_as_before(models, rng, device, precision, similarity, tmp_path):
    index = Index(models(similarity, device), precision=precision)
    index.add(rng.standard_normal((3000, DIM)).astype(np.float32))
    queries = rng.standard_normal((9, DIM)).astype(np.float32)
    index.save(tmp_path / "a.npz")
    again = Index.open(tmp_path / "a.npz", models(similarity, device))
    assert again.search(queries) == index.search(queries)
    again.add(queries)
    assert len(again) == 3009
    index.add(queries)
    assert again.search(queries) == index.search(queries)
    again.save(tmp_path / "a.npz")  # over the file that is mapped
    assert Index.open(tmp_path / "a.npz", models(similarity, device)).search(queries) == index.search(queries)


def test_vectors_stay_in_the_mapped_file_and_begin_with_a_cache_line(models, rng, tmp_path):
    index = Index(models())
    index.add(rng.standard_normal((100, DIM)).astype(np.float32), ids=[f"text {i}" for i in range(100)])
    index.save(tmp_path / "a.npz")
    _, arrays, _ = index_file.read(tmp_path / "a.npz")
    for array in arrays.values():
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0
    with np.load(tmp_path / "a.npz") as theirs:  # which compares checksums, too
        assert set(theirs) == {"meta", *arrays}
        for name, array in arrays.items():
            assert_array_equal(theirs[name], array)


def test_another_model_is_refused(models, folder_of, tmp_path):
    index = Index(models())
    index.add(["ada"])
    index.save(tmp_path / "a.npz")
    other = fastinfer.load(folder_of(seed=5), device="numpy")
    with pytest.raises(CheckpointError, match=r"holds vectors of .* expected those of .* index the texts again"):
        Index.open(tmp_path / "a.npz", other)
    shallow = fastinfer.load(models()._name, device="numpy", max_depth=0)
    if shallow.fingerprint != models().fingerprint:
        with pytest.raises(CheckpointError, match="fingerprint"):
            Index.open(tmp_path / "a.npz", shallow)
    for device in DEVICES:  # where it runs does not matter
        Index.open(tmp_path / "a.npz", models(device=device))
    alone = Index.open(tmp_path / "a.npz")
    with pytest.raises(InputError, match="without its model"):
        alone.search("ada")
    assert len(alone.search(np.ones(DIM, np.float32))[0]) == 1


def test_the_fingerprint_tells_weights_and_configs_apart(folder_of):
    marks = [fastinfer.load(folder_of(**given), device="numpy").fingerprint for given in ({}, {}, {"seed": 5}, {"similarity": "dot"})]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3
    assert len(marks[0]) == 32


def test_the_model_inside_is_loaded_by_its_name(tmp_path):
    model = fastinfer.load(device="numpy")
    index = Index(model)
    index.add(["A cat sleeps.", "Shares fell."])
    index.save(tmp_path / "a.npz")
    found = Index.open(tmp_path / "a.npz").search("pets", 1)
    assert found[0][0][0] == 0


@pytest.fixture
def saved(models, rng, tmp_path):
    """The bytes of a saved index, and a file to write other ones to."""
    index = Index(models(), precision="int8", keep_texts=True)
    texts = [*WORDS[5:], "ada in", "in paris", "of france"]
    index.add(texts, ids=texts)
    index.save(tmp_path / "a.npz")
    return (tmp_path / "a.npz").read_bytes(), tmp_path / "a.npz"


def use(path, model):
    """Open an index and use all of it."""
    index = Index.open(path, model)
    found = index.search(["ada", "in"], 30)
    for key, _ in found[0]:
        index.text(key)


def test_the_largest_id_is_saved_and_no_id_follows_it(models, tmp_path):
    index = Index(models())
    index.add("ada in paris", ids=[2**63 - 1])
    index.save(tmp_path / "a.npz")
    found = Index.open(tmp_path / "a.npz", models())
    with pytest.raises(InputError, match=rf"largest id of the index is {2**63 - 1}, so 2 texts .*: give ids"):
        found.add(["ada", "in"])
    found.add(["ada"], ids=[3])
    assert len(found) == 2


def test_vectors_without_numbers_in_a_file_are_said(models, tmp_path, rng):
    index = Index(models())
    index.add(rng.normal(size=(70, index.dim)).astype(np.float32))
    index.save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    with np.load(io.BytesIO(content)) as file:
        vectors = file["vectors"]
    vectors[5:] = np.nan
    rewritten(content, tmp_path / "a.npz", {"vectors": vectors})
    found = Index.open(tmp_path / "a.npz")
    query = rng.normal(size=index.dim).astype(np.float32)
    assert sorted(key for key, _ in found.search(query, 5)[0]) == [0, 1, 2, 3, 4]
    with pytest.raises(CheckpointError, match="only 5 of 70 vectors have scores"):
        found.search(query, 6)


def test_broken_files_give_one_error(models, saved, rng):
    """A changed byte may go unnoticed in a value. It never gives anything but a CheckpointError, and an answer of an intact size."""
    content, path = saved
    for cut in [0, 1, 21, 22, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"a\.npz"):
            use(path, models())
    for _ in range(300):
        broken = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        with contextlib.suppress(CheckpointError, InputError):
            use(path, models())


def rewritten(content, path, changes):
    """Write the npz again with other members: {name: array, bytes of the member, or None to leave it out}."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file} | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            if isinstance(value, bytes):
                archive.writestr(f"{name}.npy", value)
            elif value is not None:
                out = io.BytesIO()
                np.lib.format.write_array(out, value, allow_pickle=True)
                archive.writestr(f"{name}.npy", out.getvalue())


def meta_with(content, **changes):
    with np.load(io.BytesIO(content)) as file:
        said = json.loads(file["meta"].tobytes()) | changes
    return {"meta": np.frombuffer(json.dumps(said).encode(), np.uint8)}


def test_members_may_be_written_by_others(models, saved):
    content, path = saved
    before = Index.open(path, models()).search("ada")
    rewritten(content, path, {})
    assert Index.open(path, models()).search("ada") == before


def test_members_before_the_file(models, saved):
    """A list of members that says that it begins later moves them all before the file."""
    content, path = saved
    end = content.rfind(b"PK\5\6")
    for moved in (1, len(content) // 2, len(content) - 1, 1 << 20):
        broken = bytearray(content)
        begin = int.from_bytes(content[end + 16 : end + 20], "little")
        broken[end + 16 : end + 20] = struct.pack("<I", begin + moved)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="does not begin"):
            use(path, models())


HEADER = b"\x93NUMPY\x01\x00"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": None}, "has the arrays"),
        ({"more": np.zeros(3)}, "has the arrays"),
        ({"codes": np.zeros((20, DIM), np.float32)}, "codes is float32"),
        ({"codes": np.zeros((21, DIM), np.int8)}, r"codes is int8 \(21"),
        ({"codes": np.zeros((DIM, 20), np.int8).T}, "C order"),
        ({"codes": np.zeros((20, DIM), np.complex64)}, "no header"),
        ({"codes": np.array([object()] * 20)}, "no header"),
        ({"codes": b"nothing"}, "no header"),
        (
            {"codes": HEADER + struct.pack("<H", 50) + b"{'descr': '|i1', 'fortran_order': False, 'shape': (9999999999999999,)}"[:50]},
            "no header",
        ),
        (
            {"codes": HEADER + struct.pack("<H", 74) + b"{'descr': '|i1', 'fortran_order': False, 'shape': (99999999999999, 9999), }\n"},
            "expected",
        ),
        (
            {"codes": HEADER + struct.pack("<H", 63) + b"{'descr': '|f1', 'fortran_order': False, 'shape': (20, 32), } \n"},
            "no header",
        ),
        (
            {"codes": HEADER + struct.pack("<H", 79) + b"{'descr': '|i1', 'fortran_order': False, 'shape': (0, 9999999999, 9999999999)}\n"},
            "no header",
        ),
        ({"ids_ends": np.arange(20)[::-1].copy()}, "expected ascending ends"),
        ({"texts_ends": np.full(20, 1 << 40)}, "expected ascending ends"),
        ({"texts_text": np.full(200, 255, np.uint8)}, "UTF-8"),
        ({"meta": None}, "not an index"),
        ({"meta": np.zeros(1 << 17, np.uint8)}, "not an index"),
        ({"meta": np.frombuffer(b"{", np.uint8)}, "JSON"),
        ({"meta": np.frombuffer(b"[" * 60000, np.uint8)}, "JSON"),
    ],
)
def test_members_are_checked(models, saved, changes, message):
    content, path = saved
    rewritten(content, path, changes)
    with pytest.raises(CheckpointError, match=message):
        use(path, models())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "format"),
        ("version", 2, "newer"),
        ("precision", "int4", "precision"),
        ("precision", ["int8"], "precision"),
        ("similarity", "angle", "similarity"),
        ("similarity", "dot", "similarity"),
        ("dim", 1 << 40, "dim"),
        ("dim", True, "dim"),
        ("dim", 31, "expected"),
        ("count", 1 << 39, r"expected .*549755813888"),
        ("count", -1, "count"),
        ("longest", -1, "longest"),
        ("longest", "1", "longest"),
        ("following", 1.5, "following"),
        ("texts", 1, "texts"),
        ("model", 3, "model"),
        ("fingerprint", "0" * 32, "holds vectors of"),
    ],
)
def test_what_a_file_says_is_checked(models, saved, key, value, message):
    content, path = saved
    rewritten(content, path, meta_with(content, **{key: value}))
    with pytest.raises(CheckpointError, match=message):
        use(path, models())


def test_a_compressed_file_and_other_files_are_refused(models, saved, tmp_path):
    content, path = saved
    with np.load(io.BytesIO(content)) as file:
        np.savez_compressed(path, **{name: file[name] for name in file})
    with pytest.raises(CheckpointError, match="compressed"):
        Index.open(path, models())
    for broken in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            Index.open(broken, models())


def test_an_interrupted_save_leaves_the_older_file(models, saved, monkeypatch):
    content, path = saved
    index = Index.open(path, models())

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_file, "_write_strings", stopped)
    with pytest.raises(KeyboardInterrupt):
        index.save(path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npz"]
