"""Teams of threads: calls succeed if no threads are available, and never use more than the CPUs that the process may use."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastinfer
from fastinfer.backends import cpu

pytest.importorskip("fastinfer._cpu", reason="the compiled module is not built")

# The beginning of each script below. call(threads) gives the output of a layer, by that many threads if they are available.
BEGIN = """
import os, sys, threading
import numpy as np
import fastinfer

rng = np.random.default_rng(3)
w = rng.standard_normal((3, 31, 64), np.float32)
x = rng.standard_normal((1200, 64), np.float32)
layer = fastinfer.FFF(w, None, w, depth=4)

def call(threads):
    out = np.empty_like(x)
    layer._ops.kernels.fff(x, layer._layer.trees, None, None, out, None, None, threads)
    return out

def tasks():
    return len(os.listdir("/proc/self/task"))
"""


def run(script):
    """The output of a script in a new process, which dumps its stacks if it crashes."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", BEGIN + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on threads is Linux's")
@pytest.mark.parametrize("before", [1, 2], ids="a team of {}".format)
def test_where_no_more_threads_are_to_be_had_calls_go_on_with_those_there_are(before):
    """The limit belongs to a user. It does not hold for root, so root first becomes another user."""
    said = run(f"""
    import resource
    want = call(1)
    call({before})
    had = tasks()
    if os.getuid() == 0:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        pass
    else:
        sys.exit("the limit does not hold")
    for threads in (2, 5, 1, 64):
        assert np.array_equal(call(threads), want), threads
    print(tasks() - had)
    """)
    assert said == "0\n"


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="this system has no scheduling policies")
def test_a_caller_of_real_time_priority_lets_its_team_run():
    """On one CPU the caller would yield only to itself, and wait forever for a thread that cannot run."""
    said = run("""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    want = call(1)
    call(2)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        print("not allowed")
        sys.exit()
    for _ in range(5):
        assert np.array_equal(call(2), want)
    """)
    if said:
        pytest.skip("this process may not have a real-time priority")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_that_have_no_cpu_are_not_started():
    said = run("""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    had = tasks()
    layer = fastinfer.FFF(w, None, w, depth=4)
    want = layer(x, threads=1)
    for threads in (2, 64, 1024):
        assert np.array_equal(layer(x, threads=threads), want)
    started = tasks() - had
    # The driver of a GPU starts threads of its own when info() asks for it.
    print(fastinfer.info()["threads"], fastinfer.backends.get("cpu", threads=64).threads, started)
    """)
    assert said == "1 1 0\n"


def test_a_team_is_at_most_as_large_as_the_cpus(monkeypatch):
    monkeypatch.setattr(cpu, "most_threads", lambda: 3)
    ops = fastinfer.backends.get("cpu", threads=64)
    assert ops.threads == 3
    assert ops.using(64) is ops
    assert [ops.using(threads).threads for threads in (1, 2, 3, 1024)] == [1, 2, 3, 3]
    monkeypatch.undo()
    assert fastinfer.backends.get("cpu").threads == cpu.default_threads()


@pytest.mark.parametrize("threads", [True, 0, 1.0, np.bool_(True)])
def test_a_call_checks_its_threads(threads):
    ops = fastinfer.backends.get("cpu", threads=1)
    with pytest.raises(fastinfer.BackendError, match=r"threads is .*, expected an integer from 1 to 1024, or None"):
        ops.using(threads)
