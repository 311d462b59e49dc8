"""fastinfer.bulk: one function for three engines, and the command that embeds a large table in portions."""

import importlib.util
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import WORDS
from numpy.testing import assert_array_equal
from test_cli import error_of

import fastinfer
from fastinfer import cli
from fastinfer.bulk import Embed, command, portions

arrow = pytest.importorskip("pyarrow")
pandas = pytest.importorskip("pandas")
parquet = pytest.importorskip("pyarrow.parquet")

NEEDS = {"ray": ["ray.data"], "dask": ["dask.dataframe", "distributed"], "spark": ["pyspark"]}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def needed(engine: str) -> None:
    """Skip a test whose engine is not installed."""
    lacks = [module for module in NEEDS.get(engine, []) if not installed(module)]
    lacks += ["Java"] if engine == "spark" and subprocess.run(["which", "java"], capture_output=True, check=False).returncode else []
    if lacks:
        pytest.skip(f"not installed: {', '.join(lacks)}")


def sentences(count: int) -> list[str]:
    return [" ".join(random.choices(WORDS[5:], k=random.randrange(9))) for _ in range(count)]


@pytest.fixture
def small(monkeypatch):
    """Portions of 8 rows."""
    monkeypatch.setattr(command, "ROWS", {"cpu": 8})


@pytest.fixture
def table(tmp_path):
    """A .parquet file of 50 rows in groups of 17, with two columns beside the texts."""
    made = arrow.table({"id": range(50), "text": sentences(50), "tags": [["a"] * (i % 3) for i in range(50)]})
    parquet.write_table(made, tmp_path / "in.parquet", row_group_size=17, compression="none")  # some builds of Spark lack snappy
    return tmp_path / "in.parquet"


# --- the function ------------------------------------------------------------------------------------------


def kinds(texts):
    """{name: (a batch of each kind, how to get its texts and its vectors as arrays)}."""
    frame = pandas.DataFrame({"n": range(len(texts)), "text": texts}, index=range(7, 7 + len(texts)))
    whole = arrow.table({"n": range(len(texts)), "text": texts})
    cut = arrow.concat_tables([whole[:2], whole[2:]])
    coded = arrow.table({"n": range(len(texts)), "text": arrow.array(texts).dictionary_encode()})

    def lists(column):
        return np.stack([np.asarray(value) for value in column])

    return {
        "dict": ({"n": np.arange(len(texts)), "text": np.array(texts, object)}, lambda b: b["embedding"]),
        "dict of str": ({"n": np.arange(len(texts)), "text": np.array(texts)}, lambda b: b["embedding"]),
        "frame": (frame, lambda b: lists(b["embedding"])),
        "frame of objects": (frame.astype({"text": object}), lambda b: lists(b["embedding"])),
        "series": (frame["text"], lists),
        "table": (whole, lambda b: lists(b["embedding"].to_pylist())),
        "chunks": (cut, lambda b: lists(b["embedding"].to_pylist())),
        "codes": (coded, lambda b: lists(b["embedding"].to_pylist())),
        "record batch": (whole.to_batches()[0], lambda b: lists(b["embedding"].to_pylist())),
    }


@pytest.mark.parametrize("kind", list(kinds(["a", "b", "c"])))
@pytest.mark.parametrize("options", [{}, {"dim": 5, "precision": "int8"}, {"precision": "ubinary", "prompt_name": "query"}])
def test_every_kind_of_batch_gets_the_vectors_of_the_model(embedder, texts, kind, options):
    batch, vectors = kinds(texts)[kind]
    embed = pickle.loads(pickle.dumps(Embed(embedder, **options)))
    want = fastinfer.load(embedder).embed(texts, **options)
    got = embed(batch)
    assert type(got) is type(batch)
    assert_array_equal(vectors(got), want)
    assert (embed.width, embed.type) == (want.shape[1], want.dtype)
    [part] = embed(iter([batch]))
    assert_array_equal(vectors(part), want)
    if kind == "frame":
        assert got.index.tolist() == batch.index.tolist()
        assert got["n"].tolist() == batch["n"].tolist()
    if kind in ("table", "record batch"):
        assert got.schema.field("embedding").type == arrow.list_(arrow.from_numpy_dtype(want.dtype), want.shape[1])
        assert part.schema.field("embedding").type == arrow.list_(arrow.from_numpy_dtype(want.dtype))


def test_vectors_are_not_copied(embedder, texts, monkeypatch):
    embed, kept = Embed(embedder), []
    whole = embed.vectors
    monkeypatch.setattr(embed, "vectors", lambda given: kept.append(whole(given)) or kept[-1])
    for batch in (arrow.table({"text": texts}), arrow.record_batch({"text": texts})):
        made = embed(batch)["embedding"]
        made = made.chunk(0) if isinstance(made, arrow.ChunkedArray) else made
        assert made.flatten().buffers()[1].address == kept[-1].__array_interface__["data"][0]
    made = arrow.array(embed(pandas.DataFrame({"text": texts}))["embedding"])
    made = made.chunk(0) if isinstance(made, arrow.ChunkedArray) else made
    assert made.flatten().buffers()[1].address == kept[-1].__array_interface__["data"][0]


def test_a_process_opens_a_model_once(embedder, monkeypatch):
    data = pickle.dumps(Embed(embedder, dim=3))
    assert len(data) < 2000
    assert pickle.loads(data).model is pickle.loads(data).model
    loaded = fastinfer.load(embedder, threads=2)
    assert Embed(loaded).model is loaded


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (7, "the batch is an int, expected a dict of arrays, or a table of pandas or pyarrow"),
        ({"texts": []}, "the batch has no column 'text', only 'texts': did you mean texts?"),
        ({"text": [], "embedding": []}, "the batch has a column 'embedding': name the column of the vectors otherwise, with to="),
        ({"text": ["ada", None]}, "column 'text': texts[1] is None"),
        ({"text": [1]}, "column 'text': texts[0] is an int"),
    ],
)
def test_batches_that_do_not_fit(embedder, batch, said):
    with pytest.raises(fastinfer.InputError) as caught:
        Embed(embedder)(batch)
    assert str(caught.value).startswith(said)


def test_options_are_checked_at_once(embedder):
    for options in ({"dim": 99}, {"precision": "int4"}, {"column": 3}, {"prompt_name": "x"}, {"na": "no"}, {"threads": 0}):
        with pytest.raises(fastinfer.errors.FastinferError, match=f"{next(iter(options))} is "):
            Embed(embedder, **options)


# --- the function in each engine ---------------------------------------------------------------------------


def assert_rows(got, table, model):
    """Assert that (text, vector) pairs, in any order, are those of the table."""
    texts = parquet.read_table(table)["text"].to_pylist()
    want = fastinfer.load(model).embed(texts)
    pairs = sorted((text, tuple(np.float32(vector).tolist())) for text, vector in got)
    assert pairs == sorted((text, tuple(vector.tolist())) for text, vector in zip(texts, want, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_ray(embedder, table):
    needed("ray")
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        rows = ray.data.read_parquet(str(table))
        how = {"batch_size": 9, "compute": ray.data.ActorPoolStrategy(size=2), "fn_constructor_args": (embedder,)}
        for form in ("numpy", "pandas", "pyarrow"):
            made = rows.map_batches(Embed, batch_format=form, **how).take_all()
            assert_rows([(row["text"], row["embedding"]) for row in made], table, embedder)
        made = rows.map_batches(Embed(embedder), batch_format="pyarrow").take_all()
        assert_rows([(row["text"], row["embedding"]) for row in made], table, embedder)
    finally:
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_dask(embedder, table, tmp_path):
    needed("dask")
    import dask.dataframe as frames

    embed = Embed(embedder)
    rows = frames.read_parquet(str(table), split_row_groups=True)
    made = rows.map_partitions(embed, meta=embed(rows._meta))
    got = made.compute(scheduler="processes", num_workers=2)
    assert_rows(zip(got["text"], got["embedding"], strict=True), table, embedder)
    plain = made.drop(columns="tags")  # dask writes no column of lists of strings, whoever made it
    plain.to_parquet(str(tmp_path / "out"), compute_kwargs={"scheduler": "sync"})
    written = parquet.read_table(tmp_path / "out")
    assert written.schema.field("embedding").type.list_size == 32
    assert_rows(zip(written["text"].to_pylist(), written["embedding"].to_pylist(), strict=True), table, embedder)


@pytest.mark.filterwarnings("ignore")
def test_spark(embedder, table, monkeypatch):
    needed("spark")
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import pandas_udf

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    settings = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    try:
        session.sparkContext.setLogLevel("OFF")
        embed = Embed(embedder)
        rows = session.read.parquet(str(table)).select("text").repartition(3)
        form = "text string, embedding array<float>"
        for made in (rows.mapInPandas(embed, form), rows.mapInArrow(embed, form)):
            assert_rows([(row.text, row.embedding) for row in made.collect()], table, embedder)

        def vectors(texts: pandas.Series) -> pandas.Series:
            return embed(texts)

        made = rows.select("text", pandas_udf(vectors, "array<float>")("text").alias("embedding"))
        assert_rows([(row.text, row.embedding) for row in made.collect()], table, embedder)
    finally:
        session.stop()


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def bulk(run, embedder, table, tmp_path):
    """bulk(*arguments) -> (status, output, errors) of `fastinfer bulk embed` from in.parquet to out.parquet."""
    return lambda *arguments: run("bulk", "embed", table, tmp_path / "out.parquet", "-m", embedder, *arguments)


def assert_whole(path, table, vectors, name="embedding"):
    """Assert that a file has the rows of the table, with these vectors."""
    got, given = parquet.read_table(path), parquet.read_table(table)
    assert got.drop_columns(name).equals(given)
    made = got[name].combine_chunks()
    assert made.type == arrow.list_(arrow.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    assert_array_equal(made.flatten().to_numpy().reshape(vectors.shape), vectors)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--dim", "7", "--prompt-name", "query"], {"dim": 7, "prompt_name": "query"}),
        (["--prompt", "é ", "--no-normalize"], {"prompt": "é ", "normalize": False}),
        (["--precision", "float16", "--batch-tokens", "9"], {"precision": "float16"}),
        (["--precision", "ubinary"], {"precision": "ubinary"}),
    ],
)
def test_a_table_gets_a_column_of_vectors(bulk, small, embedder, table, tmp_path, arguments, options):
    status, out, err = bulk(*arguments)
    assert (status, err) == (0, "")
    if os.path.isdir("/proc/self/fd"):  # before the test itself reads the table, whose file pyarrow's threads may close later
        assert str(table) not in {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    texts = parquet.read_table(table)["text"].to_pylist()
    want = fastinfer.load(embedder).embed(texts, **options)
    assert_whole(tmp_path / "out.parquet", table, want)
    assert out.startswith(f"{tmp_path / 'out.parquet'}: 50 texts, vectors of {want.shape[1]} numbers ({want.dtype}), ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


@pytest.mark.parametrize("groups", [1, 3, 8, 1000])
@pytest.mark.parametrize("rows", [0, 1, 8, 16, 50])
def test_any_groups_of_rows(run, small, embedder, tmp_path, rows, groups):
    made = arrow.table({"body": arrow.array(sentences(rows), arrow.large_string())})
    parquet.write_table(made, tmp_path / "in.parquet", row_group_size=groups)
    given = ("bulk", "embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder, "--column", "body", "--to", "v")
    assert run(*given)[::2] == (0, "")
    assert_whole(tmp_path / "out.parquet", tmp_path / "in.parquet", fastinfer.load(embedder).embed(made["body"].to_pylist()), "v")


def test_rows_are_read_in_any_order(table):
    want = parquet.read_table(table)
    source = portions.Source(str(table))
    for _ in range(60):
        first = random.randrange(50)
        count = random.randrange(1, 51 - first)
        assert source.read(first, count).equals(want.slice(first, count))
    with pytest.raises(fastinfer.InputError, match="rows 49 to 52 cannot be read"):
        source.read(48, 4)
    assert source.read(3, 20).equals(want.slice(3, 20))


READ = """
import resource, sys
from fastinfer.bulk.portions import Source
source = Source(sys.argv[1])
source.read(0, 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(len(source.read(first, 1000)) for first in range(0, 80000, 1000))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_a_large_group_of_rows_takes_little_memory(tmp_path):
    made = arrow.table({"text": [f"{i:01000d}" for i in range(80_000)]})
    parquet.write_table(made, tmp_path / "in.parquet", row_group_size=80_000, compression="none", use_dictionary=False)
    assert (tmp_path / "in.parquet").stat().st_size > 80e6
    done = subprocess.run([sys.executable, "-c", READ, tmp_path / "in.parquet"], capture_output=True, text=True, check=True)
    rows, megabytes = map(int, done.stdout.split())
    assert rows == 80_000
    assert megabytes < 50


def test_pandas_reads_its_index_again(run, embedder, tmp_path):
    frame = pandas.DataFrame({"text": sentences(5)}, index=pandas.Index(list("abcde"), name="key"))
    frame.to_parquet(tmp_path / "in.parquet")
    assert run("bulk", "embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder)[0] == 0
    got = pandas.read_parquet(tmp_path / "out.parquet")
    assert got.index.equals(frame.index)
    assert_array_equal(np.stack(got["embedding"]), fastinfer.load(embedder).embed(frame["text"]))


@pytest.mark.parametrize("na", ["raise", "empty", "skip"])
def test_missing_texts(run, small, embedder, tmp_path, na):
    texts = sentences(20)
    texts[13] = None
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "in.parquet")
    done = run("bulk", "embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder, "--na", na)
    if na != "raise":
        return assert_whole(tmp_path / "out.parquet", tmp_path / "in.parquet", fastinfer.load(embedder).embed(texts, na=na))
    said = "in.parquet, row 14: column 'text' has no value, expected a text: --na says what becomes of missing ones"
    assert done[0] == 1
    assert said in done[2]
    assert f"fastinfer: kept: the vectors of 8 texts are kept in {tmp_path / 'out.parquet.parts'}: " in done[2]


def test_cut_texts_are_counted(run, small, embedder, tmp_path):
    texts = sentences(30)
    texts[3] = texts[20] = "ada " * 60
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "in.parquet")
    done = run("bulk", "embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder)
    assert done[0] == 0
    assert done[2].startswith("fastinfer: warning: 2 of 30 texts had more than 32 tokens")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--column", "txt"], "in.parquet has no column 'txt', only 'id', 'text', 'tags': did you mean text?"),
        (["--column", "id"], "in.parquet: column 'id' has int64 values, expected texts"),
        (["--to", "tags"], "in.parquet has a column 'tags': name the column of the vectors otherwise, with --to"),
        (["--dim", "99"], "dim is 99"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(bulk, tmp_path, arguments, said):
    assert said in error_of(bulk(*arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.csv"], "OUT is x.csv, expected the name of a .parquet file"),
        (["x.parquet", "--workers", "2"], "--workers is for the processes of an engine, and --engine local has none: use --threads"),
        (["x.parquet", "--to", "text"], "--column and --to are both text, expected two names"),
        (["x.parquet", "--engine", "rey"], "invalid choice: 'rey' (choose from local, ray, dask, spark): did you mean ray?"),
        (["x.parquet", "--prompt", "a", "--prompt-name", "b"], "not allowed with argument"),
        (["x.parquet", "--collumn", "a"], "unrecognized arguments: --collumn: did you mean --column?"),
    ],
)
def test_usage(run, arguments, said):
    assert said in error_of(run("bulk", "embed", "in.parquet", *arguments), 2)


def test_help_has_an_example_that_parses(run):
    status, out, _ = run("bulk", "embed", "--help")
    assert status == 0
    assert cli.parse(out.split("example:\n")[1].split()[1:]).engine == "ray"


def test_a_file_that_is_not_a_table(run, embedder, tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 no table PAR1")
    given = ("bulk", "embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder)
    assert "in.parquet: no parquet data" in error_of(run(*given))
    (tmp_path / "in.parquet").unlink()
    assert "in.parquet" in error_of(run(*given))


def test_a_broken_group_of_rows_is_named(run, small, embedder, table, tmp_path):
    data = bytearray(table.read_bytes())
    place = parquet.ParquetFile(table).metadata.row_group(1).column(1).data_page_offset
    data[place : place + 20] = b"\xff" * 20  # the header of a page
    table.write_bytes(data)
    status, _, err = run("bulk", "embed", table, tmp_path / "out.parquet", "-m", embedder)
    assert status == 1
    assert "in.parquet, rows " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("engine", NEEDS)
def test_an_engine_that_is_missing(bulk, monkeypatch, engine):
    for module in NEEDS[engine]:  # a test before may have imported them
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    assert error_of(bulk("--engine", engine)).startswith(f"--engine {engine} needs {NEEDS[engine][0].partition('.')[0]}")


# --- interruptions -----------------------------------------------------------------------------------------


@pytest.fixture
def stopping(monkeypatch):
    """stopping(after, error) makes the command fail with the error after so many portions."""

    def stopping(after, error=KeyboardInterrupt):
        count, make = [0], portions.Portions.make

        def interrupted(self, number):
            count[0] += 1
            if count[0] > after:
                raise error
            make(self, number)

        monkeypatch.setattr(portions.Portions, "make", interrupted)
        return lambda: monkeypatch.setattr(portions.Portions, "make", make)

    return stopping


def test_going_on_gives_the_same_file(bulk, small, stopping, tmp_path):
    assert bulk()[0] == 0
    whole = (tmp_path / "out.parquet").read_bytes()
    (tmp_path / "out.parquet").write_bytes(b"before")
    goes_on = stopping(3)
    status, out, err = bulk()
    folder = tmp_path / "out.parquet.parts"
    assert (status, out) == (130, "")
    assert f"fastinfer: kept: the vectors of 24 texts are kept in {folder}: the same command with --resume goes on from there" in err
    assert (tmp_path / "out.parquet").read_bytes() == b"before"
    goes_on()
    assert "add --resume to go on with them, or remove it to begin again" in error_of(bulk())
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert len(times) == 3
    goes_on = stopping(4)
    assert bulk("--resume")[0] == 130
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}.items()
    goes_on()
    assert bulk("--resume")[::2] == (0, "")
    assert (tmp_path / "out.parquet").read_bytes() == whole
    assert not folder.exists()


def test_an_interruption_before_the_first_portion_leaves_nothing(bulk, small, stopping, tmp_path):
    stopping(0)
    assert bulk() == (130, "", "fastinfer: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_another_table_or_other_options_are_refused(bulk, small, stopping, table, tmp_path):
    goes_on = stopping(2)
    bulk("--dim", "7")
    goes_on()
    assert "was made in another way: dim was 7 and is 9" in error_of(bulk("--dim", "9", "--resume"))
    rows = parquet.read_table(table).to_pylist()
    rows[3]["text"] = rows[3]["text"] + " ada"
    given = table.read_bytes()
    parquet.write_table(arrow.Table.from_pylist(rows), table)
    assert "was made in another way: table was " in error_of(bulk("--dim", "7", "--resume"))
    table.write_bytes(given)
    (tmp_path / "out.parquet.parts" / "00000001.arrow").write_bytes(b"no portion")
    assert "00000001.arrow is broken: remove it, and go on with --resume" in bulk("--dim", "7", "--resume")[2]
    (tmp_path / "out.parquet.parts" / "run.json").write_text("[]")
    assert "does not say what" in error_of(bulk("--dim", "7", "--resume"))


def test_two_runs_do_not_meet(bulk, small, table, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out.parquet.parts").mkdir()
    with open(tmp_path / "out.parquet.parts" / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "belongs to a run that is still going on: wait for it, or name another file" in error_of(bulk())
    assert bulk()[0] == 0


def test_a_table_that_changes_is_told(bulk, small, monkeypatch, table):
    make = portions.Portions.make

    def changing(self, number):
        if number == 3:
            os.utime(table, (1, 1))
        make(self, number)

    monkeypatch.setattr(portions.Portions, "make", changing)
    assert "in.parquet has changed since the run began: begin again" in bulk()[2]


# --- processes that are killed -----------------------------------------------------------------------------

SMALL = (
    "import sys; from fastinfer import cli; from fastinfer.bulk import command; command.ROWS = {'cpu': 8}; sys.exit(cli.main(sys.argv[1:]))"
)


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SMALL, "bulk", "embed", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def readers(path, but):
    """The processes that have a file open, but for one and this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (but, os.getpid()):
            try:
                if any(os.readlink(f"/proc/{name}/fd/{fd}") == str(path) for fd in os.listdir(f"/proc/{name}/fd")):
                    found.append(int(name))
            except OSError:
                continue
    return found


def kill_one(process, folder, source, killed):
    """Kill a process of an engine that works on a portion, after two are made and before all are."""
    while process.poll() is None:
        made = len(list(folder.glob("*.arrow")))
        if made >= 2 and (found := readers(source, process.pid)):
            os.kill(found[0], signal.SIGKILL)
            killed.append(made)
            return
        time.sleep(0.001)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list the files of processes")
@pytest.mark.parametrize("engine", NEEDS)
def test_a_worker_that_is_killed(run, small, embedder, tmp_path, engine):
    needed(engine)
    source, count = tmp_path / "in.parquet", 1200
    parquet.write_table(arrow.table({"n": range(count), "text": sentences(count)}), source)
    assert run("bulk", "embed", source, tmp_path / "one.parquet", "-m", embedder)[0] == 0
    given = (source, tmp_path / "out.parquet", "-m", embedder, "--engine", engine, "--workers", 2)
    killed: list[int] = []
    with started(*given) as process:
        watcher = threading.Thread(target=kill_one, args=(process, tmp_path / "out.parquet.parts", source, killed))
        watcher.start()
        out, err = process.communicate(timeout=300)
        watcher.join()
    assert process.returncode == 0, err
    assert killed, "no process was killed"
    assert killed[0] < count // 8
    assert out.startswith(f"{tmp_path / 'out.parquet'}: {count} texts, ")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize("engine", NEEDS)
def test_an_error_in_a_worker_is_one_line(embedder, tmp_path, engine):
    needed(engine)
    texts = sentences(100)
    texts[77] = None
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "in.parquet")
    with started(tmp_path / "in.parquet", tmp_path / "out.parquet", "-m", embedder, "--engine", engine, "--workers", 2) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "in.parquet, row 78: column 'text' has no value, expected a text" in err
    assert "Traceback" not in err


def test_a_killed_run_goes_on(run, small, embedder, tmp_path):
    source, count = tmp_path / "in.parquet", 1600
    parquet.write_table(arrow.table({"text": sentences(count)}), source)
    with started(source, tmp_path / "out.parquet", "-m", embedder) as process:
        while len(list((tmp_path / "out.parquet.parts").glob("*.arrow"))) < 3:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert json.loads((tmp_path / "out.parquet.parts" / "run.json").read_text())["command"] == "bulk"
    given = ("bulk", "embed", source, tmp_path / "out.parquet", "-m", embedder)
    assert run(*given, "--resume")[::2] == (0, "")
    assert_whole(tmp_path / "out.parquet", source, fastinfer.load(embedder).embed(parquet.read_table(source)["text"].to_pylist()))
