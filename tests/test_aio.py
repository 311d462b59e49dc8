"""The Batcher: answers with the bits of the model's own methods, whatever is asked at the same time."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from conftest import WORDS, make_model

import fastinfer
from fastinfer.aio import Batcher, Observer
from fastinfer.config import Classify, Embed, Prompt, Tasks
from fastinfer.tokenizer import TruncationWarning

ORDINARY = WORDS[5:]

pytestmark = pytest.mark.filterwarnings("ignore::fastinfer.tokenizer.TruncationWarning")


@pytest.fixture(scope="module")
def model(random_model):
    return fastinfer.load(random_model, threads=1)  # one batch at a time, so that a test can hold it


@pytest.fixture(scope="module")
def rng():
    return random.Random()


def load_made(folder, **changes) -> fastinfer.Model:
    """A model with random weights."""
    return fastinfer.load(make_model(folder, **changes), threads=1)


def some_texts(rng, count, most=20):
    return [" ".join(rng.choices(ORDINARY, k=rng.randint(0, most))) for _ in range(count)]


class Held:
    """Lets the first call of a model's method wait until it is told to go on, and counts the texts of each call."""

    def __init__(self, monkeypatch, model, method="embed"):
        self.began, self.go, self.calls = threading.Event(), threading.Event(), []
        whole = getattr(model, method)

        def held(texts, **options):
            if len(texts):  # not the check of the options
                self.calls.append(len(texts))
                self.began.set()
                assert self.go.wait(60)
            return whole(texts, **options)

        monkeypatch.setattr(model, method, held, raising=False)

    async def wait(self):
        await asyncio.to_thread(self.began.wait, 60)


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_have_the_bits_of_the_models_own(random_model, rng, threads):
    """Many requests at once: of one text, of many, pairs, with options, of different tasks, and with a small batch."""
    model = fastinfer.load(random_model, threads=threads)
    batches = [some_texts(rng, rng.choice([1, 1, 2, 30])) for _ in range(40)]
    pairs = [(a, b) for a, b in zip(some_texts(rng, 5, 8), some_texts(rng, 5, 8), strict=True)]
    query, documents = "ada lived in london", some_texts(rng, 9)

    async def ask(batch_tokens):
        async with Batcher(model, batch_tokens=batch_tokens) as batcher:
            return await asyncio.gather(
                *(batcher.embed(texts) for texts in batches),
                *(batcher.classify(texts) for texts in batches),
                batcher.embed("ada"),
                batcher.embed(pairs, normalize=False, dim=7),
                batcher.embed("ada", prompt="friend "),
                batcher.embed([]),
                batcher.classify(pairs, top_k=1),
                batcher.classify([]),
                batcher.rank(query, documents),
                batcher.rank(query, documents, top_k=2, dim=5),
                batcher.rank(query, []),
                *(batcher.hidden_states(texts) for texts in batches),
                batcher.call("tag", batches[0]),
                batcher.call("answer", "who lived in london ?", "ada lived in london ."),
            )

    want = [
        *(model.embed(texts) for texts in batches),
        *(model.classify(texts) for texts in batches),
        model.embed("ada"),
        model.embed(pairs, normalize=False, dim=7),
        model.embed("friend ada"),
        model.embed([]),
        model.classify(pairs, top_k=1),
        [],
        model.rank(query, documents),
        model.rank(query, documents, top_k=2, dim=5),
        [],
        *(model.hidden_states(texts) for texts in batches),
        model.tag(batches[0]),
        model.answer("who lived in london ?", "ada lived in london ."),
    ]
    for batch_tokens in (None, 1, 50):
        for got, expected in zip(asyncio.run(ask(batch_tokens)), want, strict=True):
            assert type(got) is type(expected)
            if isinstance(got, list) and got and isinstance(got[0], np.ndarray):
                assert len(got) == len(expected)
                assert all(map(np.array_equal, got, expected))
            else:
                np.testing.assert_array_equal(np.asarray(got, object), np.asarray(expected, object))


@pytest.fixture
def two_threads(random_model):
    model = fastinfer.load(random_model, device="cpu", threads=2)
    if model._runner.replicas[0].ops.threads < 2:
        pytest.skip("this machine has one CPU")
    return model


def test_two_batches_are_computed_at_once_with_half_of_the_threads_each(two_threads, monkeypatch):
    model, whole, used = two_threads, two_threads.embed, {}
    first_began, second_ended = threading.Event(), threading.Event()

    def embed(packed, threads, **options):
        used[len(packed)] = threads
        if len(packed) == 3:
            first_began.set()
            assert second_ended.wait(60)
        answers = whole(packed, threads=threads, **options)
        if len(packed) == 2:
            second_ended.set()
        return answers

    monkeypatch.setattr(model, "embed", embed, raising=False)

    async def ask():
        async with Batcher(model) as batcher:
            first = asyncio.create_task(batcher.embed(["ada", "paris", "london"]))
            await asyncio.to_thread(first_began.wait, 60)
            second = await batcher.embed(["in", "france"])
            return await first, second, await batcher.embed("ada")

    first, second, alone = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate([first, second, alone]), whole(["ada", "paris", "london", "in", "france", "ada"]))
    assert used == {3: 2, 2: 1, 1: 2}


def test_the_parts_of_a_request_keep_their_order(two_threads, monkeypatch):
    """The first batch of a request ends after the last one."""
    model, whole, calls = two_threads, two_threads.embed, []
    first_began, last_ended = threading.Event(), threading.Event()
    texts = [f"{word} lived in london" for word in ORDINARY[:8]]

    def embed(packed, **options):
        calls.append(packed)
        if len(calls) == 1:
            first_began.set()
            assert last_ended.wait(60)
        assert first_began.wait(60)
        answers = whole(packed, **options)
        if len(calls) == len(texts):
            last_ended.set()
        return answers

    monkeypatch.setattr(model, "embed", embed, raising=False)

    async def ask():
        async with Batcher(model, batch_tokens=1) as batcher:
            return await batcher.embed(texts)

    np.testing.assert_array_equal(asyncio.run(ask()), whole(texts))
    assert len(calls) == len(texts)


def test_sparse_vectors_and_states_are_packed_together(model, rng, monkeypatch):
    pytest.importorskip("scipy", reason="scipy is not installed")
    batches = [some_texts(rng, count) for count in (1, 2, 3)]
    for method in ("embed_sparse", "hidden_states"):
        want = [getattr(model, method)(texts) for texts in batches]
        with monkeypatch.context() as patch:
            held = Held(patch, model, method)

            async def ask(method=method, held=held):
                async with Batcher(model) as batcher:
                    first = asyncio.create_task(getattr(batcher, method)(batches[0]))
                    await held.wait()
                    others = [asyncio.create_task(getattr(batcher, method)(texts)) for texts in batches[1:]]
                    await asyncio.sleep(0)
                    held.go.set()
                    return [await task for task in (first, *others)]

            got = asyncio.run(ask())
        assert held.calls == [1, 5]
        for mine, theirs in zip(got, want, strict=True):
            assert type(mine) is type(theirs)
            if method == "embed_sparse":
                assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
                for name in ("indptr", "indices", "data"):
                    np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            else:
                assert len(mine) == len(theirs)
                assert all(map(np.array_equal, mine, theirs))


def test_a_loop_that_was_closed_frees_its_places(model, monkeypatch):
    held, batcher = Held(monkeypatch, model), Batcher(model, most_waiting=1)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # it would tell that the task was not ended
    task = loop.create_task(batcher.embed("ada"))
    loop.run_until_complete(held.wait())
    loop.close()
    held.go.set()
    while batcher.waiting:
        time.sleep(0.001)
    np.testing.assert_array_equal(asyncio.run(batcher.embed("paris")), model.embed("paris"))
    asyncio.run(batcher.close())
    assert not task.done()


def test_ids_are_taken_beside_texts(model):
    packed = fastinfer.PackedBatch.from_ids([[2, 5, 7, 3], [2, 9, 3]])
    few_keys = fastinfer.PackedBatch(packed.ids, packed.cu_seqlens, keys=np.array([2, 3], np.int32))

    async def ask():
        async with Batcher(model) as batcher:
            return await asyncio.gather(batcher.embed(packed), batcher.embed("ada is in paris"), batcher.embed(few_keys))

    for got, texts in zip(asyncio.run(ask()), (packed, "ada is in paris", few_keys), strict=True):
        np.testing.assert_array_equal(got, model.embed(texts))


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_a_cross_encoder_ranks_several_requests_together(tmp_path, rng, monkeypatch, output):
    model = load_made(tmp_path, tasks=Tasks(None, None, Classify(("score",), output, "cls"), None, None))
    asked = [(text, some_texts(rng, 6)) for text in some_texts(rng, 5)]
    want = [model.rank(query, documents) for query, documents in asked]
    held = Held(monkeypatch, model, "logits")

    async def ask():
        async with Batcher(model) as batcher:
            first = asyncio.create_task(batcher.rank(*asked[0]))
            await held.wait()
            others = [asyncio.create_task(batcher.rank(*request)) for request in asked[1:]]
            await asyncio.sleep(0)
            held.go.set()
            return [await task for task in (first, *others)]

    assert asyncio.run(ask()) == want
    assert held.calls == [6, 24]


@pytest.mark.parametrize("include", [True, False])
def test_prompts_are_those_of_the_model(tmp_path, include):
    prompts = Prompt("query", "who is "), Prompt("document", "the ")
    head = Embed("mean", True, prompts=prompts, default_prompt="query", include_prompt=include)
    model = load_made(tmp_path, tasks=Tasks(head, None, None, None, None))

    async def ask():
        async with Batcher(model) as batcher:
            return await asyncio.gather(
                batcher.embed("ada"),
                batcher.embed("ada", prompt_name="document"),
                batcher.embed("ada", prompt=""),
                batcher.rank("ada", ["london", "paris is in france"]),
            )

    by_default, document, plain, ranked = asyncio.run(ask())
    np.testing.assert_array_equal(by_default, model.embed("ada"))
    np.testing.assert_array_equal(document, model.embed("ada", prompt_name="document"))
    np.testing.assert_array_equal(plain, model.embed("ada", prompt=""))
    assert ranked == model.rank("ada", ["london", "paris is in france"])


def test_waiting_requests_are_computed_together_and_share_batches_fairly(model, monkeypatch):
    """A request of one text does not wait for all texts of a long request before it."""
    held = Held(monkeypatch, model)
    done = []

    async def named(name, request):
        await request
        done.append(name)

    async def ask():
        async with Batcher(model, batch_tokens=40) as batcher:
            tasks = [asyncio.create_task(named("first", batcher.embed("ada")))]
            await held.wait()
            tasks.append(asyncio.create_task(named("long", batcher.embed(["ada lived in london ."] * 50))))
            tasks += [asyncio.create_task(named(f"short {i}", batcher.embed("paris"))) for i in range(3)]
            await asyncio.sleep(0)
            assert batcher.waiting == 54
            held.go.set()
            await asyncio.gather(*tasks)
            assert batcher.waiting == 0

    asyncio.run(ask())
    assert done[0] == "first"
    assert done[-1] == "long"
    # Seven tokens a text of the long request, three a short one: 40 tokens hold all three short ones and four long ones.
    assert held.calls[:2] == [1, 7]
    assert set(held.calls[2:-1]) == {5}
    assert sum(held.calls) == 54


def test_an_error_reaches_the_caller_whose_texts_cause_it_alone(model, monkeypatch):
    whole = model.embed

    def refuses(texts, **options):
        if isinstance(texts, fastinfer.PackedBatch) and WORDS.index("france") in texts.ids:
            raise MemoryError("no memory for france")
        return whole(texts, **options)

    monkeypatch.setattr(model, "embed", refuses, raising=False)
    held = Held(monkeypatch, model)

    async def ask():
        async with Batcher(model) as batcher:
            first = asyncio.create_task(batcher.embed("ada"))
            await held.wait()
            texts = ["paris", "france", "\ud800", 3, ["london", None]]
            tasks = [first, *(asyncio.create_task(batcher.embed(text)) for text in texts)]
            await asyncio.sleep(0)
            held.go.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, paris, france, broken, number, none = asyncio.run(ask())
    np.testing.assert_array_equal(first, whole("ada"))
    np.testing.assert_array_equal(paris, whole("paris"))
    assert isinstance(france, MemoryError)
    assert held.calls == [1, 2, 1, 1]
    for error in (broken, number, none):
        assert isinstance(error, fastinfer.InputError)


def test_a_text_that_the_tokenizer_fails_on_fails_alone(model, monkeypatch):
    whole = model.tokenizer.packed

    def packed(texts, cuts):
        if "london" in texts:
            raise fastinfer.InputError("texts[0] gives no tokens")
        return whole(texts, cuts)

    monkeypatch.setattr(model.tokenizer, "packed", packed)

    async def ask():
        async with Batcher(model) as batcher:
            return await asyncio.gather(*map(batcher.embed, ["ada", "london", "paris"]), return_exceptions=True)

    ada, london, paris = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate([ada, paris]), model.embed(["ada", "paris"]))
    assert str(london) == "texts[0] gives no tokens"


def test_a_request_that_is_cancelled_is_not_computed(model, monkeypatch):
    held = Held(monkeypatch, model)

    async def ask():
        async with Batcher(model, batch_tokens=30) as batcher:
            first = asyncio.create_task(batcher.embed("ada"))
            await held.wait()
            second, third = (asyncio.create_task(batcher.embed(texts)) for texts in (["paris"] * 100, "london"))
            await asyncio.sleep(0)
            assert batcher.waiting == 102
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert batcher.waiting == 2
            with pytest.raises(TimeoutError if hasattr(asyncio, "timeout") else asyncio.TimeoutError):
                await asyncio.wait_for(first, 0.01)  # its batch has begun, so it is computed, but nobody waits for it
            held.go.set()
            return await third

    np.testing.assert_array_equal(asyncio.run(ask()), model.embed("london"))
    assert held.calls[:2] == [1, 1]


def test_a_queue_that_is_full_refuses_at_once(model, monkeypatch):
    held = Held(monkeypatch, model)

    async def ask():
        async with Batcher(model, most_waiting=10) as batcher:
            first = asyncio.create_task(batcher.embed(["ada"] * 6))
            await held.wait()
            with pytest.raises(fastinfer.BusyError, match="got 5 texts while 6 wait, expected at most 10 together"):
                await batcher.embed(["ada"] * 5)
            second = asyncio.create_task(batcher.embed(["paris"] * 4))
            await asyncio.sleep(0)
            held.go.set()
            await asyncio.gather(first, second)
            await batcher.embed(["ada"] * 10)
            with pytest.raises(fastinfer.BusyError, match="got 11 texts while 0 wait"):
                await batcher.embed(["ada"] * 11)

    asyncio.run(ask())


@pytest.mark.parametrize("cancel", [False, True])
def test_close_ends_the_worker(model, monkeypatch, cancel):
    held = Held(monkeypatch, model)

    async def ask():
        before = threading.active_count()
        batcher = Batcher(model)
        tasks = [asyncio.create_task(batcher.embed("ada"))]
        await held.wait()
        tasks += [asyncio.create_task(batcher.embed(text)) for text in ("paris", "london")]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close(cancel=cancel))
        await asyncio.sleep(0)
        with pytest.raises(fastinfer.BusyError, match="closed"):
            await batcher.embed("ada")
        held.go.set()
        await closing
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastinfer-batcher")]
        assert threading.active_count() <= before + 2  # asyncio.to_thread's
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(ask())
    if cancel:
        assert [type(answer) for answer in answers] == [fastinfer.BusyError] * 3
    else:
        np.testing.assert_array_equal(np.concatenate(answers), model.embed(["ada", "paris", "london"]))


def test_an_error_in_the_block_does_not_wait_for_the_queue(model, monkeypatch):
    held = Held(monkeypatch, model)
    held.go.set()
    tasks = []

    async def fail():
        async with Batcher(model, batch_tokens=1) as batcher:
            tasks.append(asyncio.create_task(batcher.embed(["ada"] * 8000)))
            await held.wait()
            raise KeyError("broken")

    async def ask():
        with pytest.raises(KeyError, match="broken"):
            await fail()
        with pytest.raises(fastinfer.BusyError, match="closed before"):
            await tasks[0]

    asyncio.run(ask())
    assert len(held.calls) < 8000


def test_the_rest_of_a_request_that_is_cancelled_is_not_computed(model, monkeypatch):
    held = Held(monkeypatch, model)

    async def ask():
        async with Batcher(model, batch_tokens=30) as batcher:
            task = asyncio.create_task(batcher.embed(["ada"] * 8000))
            await held.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.go.set()

    asyncio.run(ask())
    assert held.calls == [10]


def test_one_batcher_serves_several_event_loops(model, rng):
    batcher = Batcher(model)
    texts = some_texts(rng, 12)
    answers = {}

    def serve(i):
        async def ask():
            return await asyncio.gather(*(batcher.embed(text) for text in texts[i::3]))

        answers[i] = asyncio.run(ask())

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        np.testing.assert_array_equal(np.concatenate(answers[i]), model.embed(texts[i::3]))
    asyncio.run(batcher.close())


def test_the_line_of_the_caller_is_named_where_a_text_is_cut(model):
    async def ask():
        async with Batcher(model) as batcher:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await asyncio.gather(batcher.embed(["ada", "london " * 100]), batcher.embed("paris"))
            return caught

    [warning] = asyncio.run(ask())
    assert warning.category is TruncationWarning
    assert (warning.message.cut, warning.message.texts, warning.message.first) == (1, 2, 1)


@pytest.mark.parametrize("na", ["empty", "skip"])
def test_missing_texts_are_answered_as_by_the_model(tmp_path, random_model, na):
    texts = ["ada", None, float("nan"), "in paris", ""]
    cross = load_made(tmp_path / "cross", tasks=Tasks(classify=Classify(("score",), "sigmoid")))
    model = fastinfer.load(random_model)

    async def ask():
        async with Batcher(model) as one, Batcher(cross) as other:
            return [
                await one.embed(texts, na=na),
                await one.classify(iter(texts), na=na),
                await one.rank("ada", texts, na=na, top_k=4),
                await other.classify([("a", None), ("in", "ada")], na=na),
                await other.rank("ada", texts, na=na),
            ]

    got = asyncio.run(ask())
    want = [model.embed(texts, na=na), model.classify(texts, na=na), model.rank("ada", texts, na=na, top_k=4)]
    want += [cross.classify([("a", None), ("in", "ada")], na=na), cross.rank("ada", texts, na=na)]
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_equal(mine, theirs)
    assert np.isnan(got[0][1:3]).all() == (na == "skip")
    assert len(got[4]) == (3 if na == "skip" else 5)


def test_a_missing_text_is_refused(model):
    async def ask(**options):
        async with Batcher(model) as batcher:
            await batcher.embed(["ada", None], **options)

    with pytest.raises(fastinfer.InputError, match=r"texts\[1\] is None"):
        asyncio.run(ask())
    with pytest.raises(fastinfer.InputError, match="na is 'no', expected"):
        asyncio.run(ask(na="no"))


def test_options_are_refused_before_they_wait(model):
    async def ask(method, *args, **options):
        async with Batcher(model) as batcher:
            await getattr(batcher, method)(*args, **options)

    wrong = [
        ("embed", ("ada",), {"dim": 1000}),
        ("embed", ("ada",), {"normalize": 1}),
        ("embed", ("ada",), {"prompt_name": "unknown"}),
        ("embed", (fastinfer.PackedBatch.from_ids([[99999]]),), {}),
        ("classify", ("ada",), {"top_k": 0}),
        ("rank", (("ada", "paris"), ["london"]), {}),
        ("rank", ("ada", [("ada", "paris")]), {}),
        ("rank", ("ada", ["paris"]), {"top_k": 0}),
        ("call", ("save",), {}),
        ("call", ("__init__",), {}),
    ]
    for method, args, options in wrong:
        with pytest.raises(fastinfer.InputError):
            asyncio.run(ask(method, *args, **options))
    for options in ({"batch_tokens": 0}, {"most_waiting": 0}, {"most_waiting": "many"}):
        with pytest.raises(fastinfer.InputError, match=next(iter(options))):
            Batcher(model, **options)
    with pytest.raises(fastinfer.InputError, match=r"model is 'folder', expected a fastinfer\.Model"):
        Batcher("folder")


def test_a_model_without_the_head_is_told(tmp_path):
    model = load_made(tmp_path, tasks=Tasks(Embed("mean", True), None, None, None, None))

    async def ask():
        async with Batcher(model) as batcher:
            await batcher.classify("ada")

    with pytest.raises(fastinfer.TaskError, match="no classify head"):
        asyncio.run(ask())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_is_refused(model):
    batcher = Batcher(model)
    asyncio.run(batcher.embed("ada"))
    child = os.fork()
    if not child:
        status = 1
        try:
            asyncio.run(batcher.embed("ada"))
        except fastinfer.BackendError as error:
            asyncio.run(batcher.close())
            status = 0 if "make one in each process" in str(error) else 2
        finally:
            os._exit(status)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(status) == 0
    asyncio.run(batcher.close())


def test_an_interpreter_ends_with_a_batcher_that_was_not_closed(random_model, tmp_path):
    code = f"""
import asyncio, fastinfer
from fastinfer.aio import Batcher, Observer
batcher = Batcher(fastinfer.load({random_model!r}))
print(asyncio.run(batcher.embed("ada")).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout.strip(), done.stderr) == ("(1, 32)", "")


def test_import_fastinfer_leaves_asyncio_alone():
    code = "import sys, fastinfer; print('asyncio' in sys.modules, 'fastinfer.aio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_an_observer_is_told_of_batches_and_requests(model, rng):
    class Told(Observer):
        def __init__(self):
            self.batches, self.requests = [], []

        def batch(self, texts, tokens):
            self.batches.append((texts, tokens))

        def request(self, waited, computed):
            self.requests.append((waited, computed))

    told, texts = Told(), some_texts(rng, 9)

    async def ask():
        async with Batcher(model, batch_tokens=30, observer=told) as batcher:
            await asyncio.gather(*(batcher.embed(text) for text in texts), batcher.call("tag", texts))

    asyncio.run(ask())
    tokens = [len(encoding.ids) for encoding in model.tokenizer.encode(texts)]
    assert [sum(column) for column in zip(*told.batches, strict=True)] == [9, sum(tokens)]
    assert len(told.requests) == 10
    assert all(waited >= 0 and computed > 0 for waited, computed in told.requests)
    with pytest.raises(fastinfer.InputError, match="observer is <built-in function print>"):
        Batcher(model, observer=print)


def test_logits_are_those_of_the_model(model, rng):
    batches = [some_texts(rng, rng.randint(1, 4)) for _ in range(6)]

    async def ask():
        async with Batcher(model) as batcher:
            return await asyncio.gather(*map(batcher.logits, batches))

    for got, texts in zip(asyncio.run(ask()), batches, strict=True):
        np.testing.assert_array_equal(got, model.logits(texts, task="classify"))
