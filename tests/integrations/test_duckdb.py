"""DuckDB: a function for SQL."""

import numpy as np
import pytest
from packages import needed

duckdb = needed("duckdb")
needed("pyarrow")

import fastinfer
from fastinfer.integrations.duckdb import register

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vectors_are_those_of_the_model(embedder, texts, queries):
    connection = duckdb.connect()
    register(connection, embedder, prompt_name="query")
    rows = [[text] for text in texts for _ in range(300)]  # several chunks of rows
    connection.execute("create table texts (text varchar)")
    connection.executemany("insert into texts values (?)", rows)
    found = connection.execute("select text, embed(text) from texts").fetchall()
    want = dict(zip(texts, queries, strict=True))
    np.testing.assert_array_equal(np.float32([vector for _, vector in found]), [want[text] for text, _ in found])
    assert len(found) == 3600
    kind = connection.execute("select typeof(embed('ada'))").fetchone()
    assert kind == ("FLOAT[32]",)


def test_null_and_no_rows(embedder):
    connection = duckdb.connect()
    register(connection, embedder, name="vector_of", dim=3)
    found = connection.execute("select vector_of(t) from (values ('ada'), (null), ('paris')) as v(t)").fetchall()
    np.testing.assert_array_equal(np.float32([found[0][0], found[2][0]]), fastinfer.load(embedder).embed(["ada", "paris"], dim=3))
    assert found[1] == (None,)
    assert connection.execute("select vector_of(t) from (values (null::varchar)) as v(t)").fetchall() == [(None,)]
    assert connection.execute("select vector_of(t) from (select 'ada' as t) where t = 'no'").fetchall() == []


def test_options_are_checked_when_it_is_registered(embedder):
    with pytest.raises(fastinfer.InputError, match="dim is 99"):
        register(duckdb.connect(), embedder, dim=99)
