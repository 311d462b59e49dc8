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
from fastinfer.backends import threads as teams

on_both_teams = pytest.mark.parametrize("team", teams.TEAMS, indirect=True)
on_openmp = pytest.mark.parametrize("team", ["openmp"], indirect=True)

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

def host(work, threads):
    # Run work(rank) on each thread of a parallel region, as another library of the process would.
    from ctypes import CDLL, CFUNCTYPE, c_void_p
    library = CDLL("libgomp.so.1")
    region = CFUNCTYPE(None, c_void_p)(lambda _: work(library.omp_get_thread_num()))
    library.GOMP_parallel(region, None, threads, 0)
"""


def run(script, **environment):
    """The output of a script in a new process, which dumps its stacks if it crashes. The fixture `team` names the team there, too."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", BEGIN + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on threads is Linux's")
@pytest.mark.parametrize("before", [1, 2], ids="a team of {}".format)
@pytest.mark.parametrize("team", ["own"], indirect=True)  # libgomp ends the process where it cannot start a thread
def test_where_no_more_threads_are_to_be_had_calls_go_on_with_those_there_are(before, team):
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
@on_both_teams
def test_a_caller_of_real_time_priority_lets_its_team_run(team):
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
@on_both_teams
def test_threads_that_have_no_cpu_are_not_started(team):
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are placed on Linux")
@pytest.mark.skipif(len(cpu._cpus()) < 2, reason="this process has one CPU")
@pytest.mark.parametrize("team", ["own"], indirect=True)
def test_a_thread_wakes_where_its_caller_may_run_and_is_not(team):
    """Else Linux may wake it on the caller's own CPU, where one of them waits for the scheduler's tick."""
    said = run("""
    import time
    had = set(os.listdir("/proc/self/task"))
    call(2)
    (thread,) = set(os.listdir("/proc/self/task")) - had
    every = os.sched_getaffinity(0)
    def placed(here):
        time.sleep(0.01)  # until it sleeps
        os.sched_setaffinity(0, {here})
        os.sched_setaffinity(0, every)  # the caller mostly stays there, then
        call(2)
        return os.sched_getaffinity(int(thread))

    for here in sorted(every)[:2]:
        found = {frozenset(placed(here)) for _ in range(20)}
        assert every - {here} in found, (here, found)
        assert all(len(every - some) == 1 for some in found), found
    print("placed")
    """)
    assert said == "placed\n"


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


# --- the team of OpenMP ---


@on_openmp
def test_both_teams_give_the_same_bits(team):
    """Teams of one to five threads, chosen by name, while two threads of Python compute and a third one changes the team."""
    said = run("""
    want, stop, same = call(1), threading.Event(), []
    def compute(threads):
        while not stop.is_set():
            same.append(np.array_equal(call(threads), want))
    busy = [threading.Thread(target=compute, args=(threads,)) for threads in (2, 3)]
    for thread in busy:
        thread.start()
    for i in range(40):
        fastinfer.set_team(("own", "openmp")[i % 2])
        same.append(np.array_equal(call(1 + i % 5), want))
    stop.set()
    for thread in busy:
        thread.join()
    print(all(same), len(same) > 42, fastinfer.info()["teams"]["chosen"])
    """)
    assert said == "True True openmp\n"


@on_openmp
@pytest.mark.parametrize(("first", "more"), [("own", 1), ("openmp", 0)])
def test_a_host_and_fastinfer_share_one_pool(team, first, more):
    """Threads that a call starts beside the one that the host's region has started."""
    said = run(
        """
    host(int, 2)
    had = tasks()
    call(2)
    host(int, 2)
    call(2)
    print(tasks() - had)
    """,
        FASTINFER_TEAM=first,
    )
    assert said == f"{more}\n"


@on_both_teams
def test_a_call_inside_a_region_of_the_host(team):
    said = run("""
    want, found = call(1), [None, None]
    def work(rank):
        found[rank] = call(2)
    for _ in range(20):
        host(work, 2)
        assert all(np.array_equal(out, want) for out in found)
    print(tasks())
    """)
    assert int(said) <= 3 if team == "own" else int(said) == 2


FORK = """
def in_child(work):
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
"""


@on_openmp
def test_a_fork_computes_on_its_own_team(team):
    """libgomp's threads do not follow a fork, and a region of the child would wait for them without end."""
    said = run(
        FORK
        + """
want = call(2)
def work():
    print(np.array_equal(call(2), want), fastinfer.info()["teams"]["chosen"], tasks())
    try:
        fastinfer.set_team("openmp")
    except fastinfer.BackendError as error:
        print(error)
    print(np.array_equal(call(2), want))
in_child(work)
print(np.array_equal(call(2), want), fastinfer.info()["teams"]["chosen"])
"""
    )
    first, refused, again, parent = said.splitlines()
    assert first == "True own 2"
    assert refused.startswith("team is 'openmp', but this process was forked")
    assert (again, parent) == ("True", "True openmp")


@on_openmp
def test_a_process_forked_before_it_computes_ignores_the_environment(team):
    """The host has used its pool, so that libgomp would hang in the child, and fastinfer learns of the fork from the system."""
    said = run(
        FORK
        + """
want = call(1)
host(int, 2)
def work():
    os.environ["FASTINFER_TEAM"] = "openmp"
    print(fastinfer.info()["teams"]["chosen"], np.array_equal(call(2), want), tasks())
in_child(work)
""",
        FASTINFER_TEAM="",
    )
    assert said == "own True 2\n"


@on_openmp
@pytest.mark.parametrize("limit", [1, 2])
def test_limits_of_openmp_hold(team, limit):
    said = run("want = call(1); print(np.array_equal(call(4), want), tasks())", OMP_THREAD_LIMIT=str(limit))
    assert said == f"True {limit}\n"


def test_no_openmp_library_is_loaded_unless_it_is_asked_for():
    said = run("call(2); print(fastinfer.info()['teams'])", FASTINFER_TEAM="")
    assert said == "{'compiled': ['own', 'openmp'], 'chosen': 'own', 'openmp': None}\n"


@pytest.mark.parametrize("name", ["openMP", "", None, 2])
def test_a_wrong_name_of_a_team(name):
    with pytest.raises(fastinfer.BackendError, match=r"team is .*, expected own or openmp"):
        fastinfer.set_team(name)


def test_a_wrong_name_in_the_environment(monkeypatch):
    monkeypatch.setattr(teams, "_chosen", False)
    monkeypatch.setenv("FASTINFER_TEAM", "gomp")
    for ask in (fastinfer.info, lambda: fastinfer.backends.get("cpu")):
        with pytest.raises(fastinfer.BackendError, match="FASTINFER_TEAM is 'gomp', expected own or openmp"):
            ask()
    fastinfer.set_team("own")  # a call counts more
    assert fastinfer.info()["teams"]["chosen"] == "own"


@pytest.mark.skipif(sys.platform != "linux", reason="the team of OpenMP is offered on Linux")
def test_openmp_that_cannot_serve(monkeypatch):
    before = fastinfer.info()["teams"]["chosen"]
    monkeypatch.setattr(teams, "loaded", lambda: None)
    monkeypatch.setattr(teams, "USUAL", "libabsent.so.1")
    with pytest.raises(fastinfer.BackendError, match=r"no OpenMP library can be loaded \(libabsent.*install libabsent"):
        fastinfer.set_team("openmp")
    monkeypatch.setattr(teams, "USUAL", "libc.so.6")
    with pytest.raises(fastinfer.BackendError, match=r"lacks a function of gcc's \(.*GOMP_parallel"):
        fastinfer.set_team("openmp")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(fastinfer.BackendError, match="offered on Linux alone"):
        fastinfer.set_team("openmp")
    assert fastinfer.info()["teams"]["chosen"] == before
