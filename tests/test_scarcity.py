"""An interrupted call, or one without threads or memory, gives an error or a right answer, and the next call is right."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import _cpu
from fastinfer.backends.cpu import default_isa

pytest.importorskip("resource", reason="no limits of a process can be set here")
pytestmark = [
    pytest.mark.filterwarnings("ignore::fastinfer.tokenizer.TruncationWarning"),
    # Python drops an exception that a signal raises during garbage collection. The next signal then ends the call.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TEXTS = ["ada lived in london " * (i % 9) for i in range(40)] + ["." * 4000, "ada " * 4000]


@pytest.fixture
def interrupt():
    """interrupt(after) sends Ctrl-C after so many seconds, and again each second until it is caught."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda after: signal.setitimer(signal.ITIMER_REAL, after, 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_calls_that_were_interrupted_leave_the_model_right(random_model, device, interrupt):
    """Other threads use the same model meanwhile."""
    model = fastinfer.load(random_model, device=device, threads=2)
    calls = [
        lambda: model.embed(TEXTS, batch_tokens=64),
        lambda: model.rank("ada", TEXTS[:20]),
        lambda: model.answer("where", "ada lived in london " * 300),
        lambda: list(model.embed_iter(TEXTS)),
        lambda: model.tag(TEXTS),
    ]
    same = assert_array_equal if device == "cpu" else assert_allclose
    want, stop = model.embed(TEXTS), threading.Event()

    def interrupted(call):
        interrupt(random.uniform(1e-4, 0.05))
        try:
            while True:
                call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def others():
        while not stop.is_set():
            same(model.embed(TEXTS), want)

    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(others) for _ in range(2)]
        try:
            for i in range(40):
                with pytest.raises(KeyboardInterrupt):
                    interrupted(calls[i % len(calls)])
        finally:
            stop.set()
        for thread in going:
            thread.result()
    same(model.embed(TEXTS), want)


def test_kernels_stop_between_ops(interrupt):
    """An interrupt ends a program between two ops, and the kernels run the next program to its end."""
    kernels = _cpu.Kernels(default_isa())
    ones, x = np.ones(1024, np.float32), np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)

    def run(ops, out, after=0.0):
        program = _cpu.Program(kernels)
        for i in range(ops):
            program.norm(x, ones, ones, 1e-6, x if i < ops - 1 else out, 2)
        interrupt(after)
        program.run()

    out = np.zeros_like(x)
    with pytest.raises(KeyboardInterrupt):
        run(2000, out, 1e-3)
    assert not out.any()
    run(3, out)
    assert_allclose(out.std(1), 1, atol=1e-3)


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


FORK = """
import os, sys
import fastinfer
model = fastinfer.load(sys.argv[1], device="cpu", threads=2)
texts = ["ada lived in london"] * 100
want = model.embed(texts)
child = os.fork()
same = (model.embed(texts) == want).all()
if not child:
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and same
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("parallelism", ["true", "false", ""])
def test_a_fork_tokenises_whatever_the_environment_says(random_model, parallelism):
    done = python(FORK, random_model, **({"TOKENIZERS_PARALLELISM": parallelism} if parallelism else {}))
    assert done.returncode == 0, done.stderr


THREADLESS = """
import os, resource, sys, threading
import fastinfer
model = fastinfer.load(sys.argv[1], device="cpu", threads=2)
try:
    os.setuid(65534)  # the limit does not hold for root
except PermissionError:
    pass
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=int).start()
except RuntimeError:
    texts = ["ada lived in london"] * 100
    one = model.embed(texts[:1])
    assert all((model.embed(texts) == one).all() for _ in range(2))
    print("right")
"""


def test_without_threads_texts_are_still_tokenised(random_model):
    done = python(THREADLESS, random_model)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip("no limit of threads can be set here")
    assert done.stdout == "right\n"
    assert done.stderr.count("panicked") < 2, "the library was asked again"


SHORT = """
import re, resource, sys
import numpy, tokenizers, safetensors, scipy.special
from fastinfer import cli
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv[1]) << 20),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc/self/status on this system")
def test_memory_that_is_short_is_an_error(random_model, tmp_path):
    """A library never ends the process. The lowest limit gives our error, and the highest suffices."""
    (tmp_path / "texts").write_text("ada lived in london\n" * 2000 + "." * 100_000 + "\n" + "ada " * 50_000)
    arguments = ("embed", "-m", random_model, "--device", "cpu", "-i", f"{tmp_path}/texts", "-o", f"{tmp_path}/out.npy")
    said = [python(SHORT, str(megabytes), *arguments) for megabytes in (4, 20, 36, 52, 68, 100, 2000)]
    for done in said:
        assert done.returncode in (0, 1), done.stderr
        assert (done.returncode == 1) == bool(re.match("fastinfer: error: not enough memory", done.stderr)), done.stderr
    assert said[0].returncode == 1
    assert said[-1].returncode == 0
