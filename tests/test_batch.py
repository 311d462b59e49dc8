"""PackedBatch: the values that from_ids takes, and its errors for others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fastinfer
from fastinfer.batch import PackedBatch, cut

rows = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9), max_size=9)


@given(rows)
def test_from_ids(ids):
    batch = PackedBatch.from_ids(ids)
    assert batch.ids.dtype == batch.cu_seqlens.dtype == np.int32
    assert batch.ids.tolist() == [i for row in ids for i in row]
    assert batch.lengths.tolist() == [len(row) for row in ids]
    assert [part.tolist() for part in batch.split(batch.ids)] == ids
    assert batch.positions.tolist() == [i for row in ids for i in range(len(row))]
    assert len(batch) == len(ids)


@given(rows, st.randoms())
def test_select(ids, random):
    batch = PackedBatch.from_ids(ids, [[i % 2 for i in row] for row in ids])
    order = list(range(len(ids)))
    random.shuffle(order)
    order = order[: random.randint(0, len(order))]
    part = batch.select(np.array(order, np.intp))
    assert [row.tolist() for row in part.split(part.ids)] == [ids[i] for i in order]
    assert [row.tolist() for row in part.split(part.token_types)] == [[i % 2 for i in ids[j]] for j in order]


@given(arrays.arrays(np.int32, st.integers(0, 40), elements=st.integers(1, 50)), st.integers(1, 120))
def test_cut(lengths, batch_tokens):
    groups = list(cut(lengths, batch_tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat, reverse=True)
    for i, group in enumerate(groups):
        assert len(group) == 1 or lengths[group].sum() <= batch_tokens
        if i + 1 < len(groups):
            assert lengths[group].sum() + lengths[groups[i + 1][0]] > batch_tokens, "one more text would have fitted"


def test_cutting_a_million_texts_is_quick():
    lengths = np.full(1_000_000, 2**12, np.int32)  # 2**32 tokens: their sum exceeds an int32
    assert sum(len(group) for group in cut(lengths, 2**14)) == len(lengths)


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2], (3,), range(2), np.array([1, 2], np.uint8), np.array([7], ">i8"), np.arange(6)[::2]],
        np.arange(6).reshape(2, 3),
        (np.array([1]),),
        [],
        np.empty((0, 4), np.int64),
    ],
    ids=range(5),
)
def test_what_may_be_given(ids):
    batch = PackedBatch.from_ids(ids)
    assert [part.tolist() for part in batch.split(batch.ids)] == [[int(i) for i in row] for row in ids]


DTYPE, INPUT, SHAPE = fastinfer.DtypeError, fastinfer.InputError, fastinfer.ShapeError
nested: list = []
for _ in range(100_000):
    nested = [nested]
recursive: list = [1]
recursive.append(recursive)
SAID = [
    ([[1], []], INPUT, r"ids\[1\] is empty, expected at least one token"),
    ([[1], np.empty(0)], INPUT, r"ids\[1\] is empty"),
    ([[1.0]], DTYPE, r"ids\[0\] is \[1.0\], which numpy takes for float64 \(1,\), expected a list of 32-bit integers"),
    ([[1], [True]], DTYPE, r"ids\[1\] is \[True\], which numpy takes for bool"),
    ([["a"]], DTYPE, r"ids\[0\] is \['a'\], which numpy takes for <U1"),
    (["abc"], DTYPE, r"ids\[0\] is 'abc', expected a list of integers \(one list per text\)"),
    ([b"abc"], DTYPE, r"ids\[0\] is b'abc', expected a list of integers"),
    ([[None]], DTYPE, r"ids\[0\] is \[None\], which numpy takes for object"),
    ([None], DTYPE, r"ids\[0\] is None, expected a list of integers"),
    ([{1: 2}], DTYPE, r"ids\[0\] is {1: 2}, expected a list of integers"),
    ([1, 2], DTYPE, r"ids\[0\] is 1, expected a list of integers \(one list per text\)"),
    (np.arange(3), DTYPE, r"ids\[0\] is .*0.*, expected a list of integers"),
    (np.array(3), DTYPE, r"ids is array\(3\), expected a list of lists"),
    ([np.array(3)], DTYPE, r"ids\[0\] is array\(3\), expected a list of integers"),
    (np.zeros((2, 2, 2), int), DTYPE, r"ids\[0\] is array.*, which numpy takes for int64 \(2, 2\)"),
    ([[1, [2]]], DTYPE, r"ids\[0\] is \[1, \[2\]\], expected a list of integers"),
    ([[2**31]], INPUT, r"ids\[0\] holds 2147483648 to 2147483648, expected 32-bit integers"),
    ([[-(2**31) - 1, 5]], INPUT, r"ids\[0\] holds -2147483649 to 5, expected 32-bit integers"),
    ([[10**30]], DTYPE, r"ids\[0\] is \[10000.*\], which numpy takes for object .*, expected a list of 32-bit integers"),
    ([[2**63, -1]], DTYPE, r"ids\[0\] is .*, which numpy takes for .*, expected a list of 32-bit integers"),
    ("text", DTYPE, "ids is 'text', expected a list of lists of integers"),
    (5, DTYPE, "ids is 5, expected a list of lists of integers"),
    (None, DTYPE, "ids is None, expected a list of lists of integers"),
    ({1, 2}, DTYPE, "ids is {1, 2}, expected a list of lists of integers"),
    (iter([[1]]), DTYPE, "ids is <list_iterator.*, expected a list of lists of integers"),
    ([nested], DTYPE, r"ids\[0\] is .*, expected a list of "),
    ([recursive], DTYPE, r"ids\[0\] is .*, expected a list of "),
]


@pytest.mark.parametrize(("ids", "kind", "said"), SAID, ids=range(len(SAID)))
def test_what_may_not_be_given(ids, kind, said):
    with pytest.raises(kind, match=said) as error:
        PackedBatch.from_ids(ids)
    assert len(str(error.value)) < 400


def test_token_types_have_the_lengths_of_ids():
    for types in ([[0, 0]], [[0], [0, 0]], [[0, 0], [0], [0]]):
        with pytest.raises(SHAPE, match=r"token_types has rows of .* tokens, expected those of ids: \[2, 1\]"):
            PackedBatch.from_ids([[1, 2], [3]], types)
    with pytest.raises(DTYPE, match=r"token_types\[0\] is \[0.5, 0.5\]"):
        PackedBatch.from_ids([[1, 2]], [[0.5, 0.5]])


def test_a_batch_made_by_hand_is_checked():
    ids, cu = np.array([1, 2], np.int32), np.array([0, 2], np.int32)
    for arguments, kind, said in (
        (([1, 2], cu), DTYPE, "ids is a list, expected a numpy array of int32"),
        ((ids.astype(np.int64), cu), DTYPE, "ids has dtype int64, expected int32"),
        ((ids[None], cu), SHAPE, r"ids is \(1, 2\), expected \(T,\)"),
        ((np.arange(4, dtype=np.int32)[::2], cu), SHAPE, "ids has strides"),
        ((ids, cu.astype(float)), DTYPE, "cu_seqlens has dtype float64, expected int32"),
        ((ids, cu, ids[:1]), SHAPE, r"token_types is \(1,\), expected \(2,\)"),
    ):
        with pytest.raises(kind, match=said):
            PackedBatch(*arguments)
