"""Forks, spawns, exits and signals around a model at work: nothing hangs and every answer keeps its bits.

    python tests/stress/processes.py --repeat 1000

Each scenario repeats one event, and compares each answer with what the model said before, bit for bit. It prints a line a scenario
and ends with status 1 where an answer was wrong, a process failed, or one did not end within LIMIT seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

import fastinfer

LIMIT = 60  # seconds that one process may take
WORKERS = 8  # processes that a server forks at a time
WORDS = ["the", "tree", "token", "root", "leaf", "walks", "down", "a", "path", "of", "two", "wide", "zürich", "東京", "☃", "don't"]


def texts(seed: int, count: int = 12) -> list[str]:
    """Random texts of 1 to 60 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(count)]


class Subject:
    """What is asked of the process: embeddings of a model, and a layer of trees without sorting, which share their workspace otherwise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.model = fastinfer.load(device="cpu", threads=2)
        trees = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 64), (4, 3), (4, 3, 64))]
        self.layer = fastinfer.FFF(*trees, depth=1)
        self.x = rng.normal(size=(1500, 64)).astype(np.float32)
        self.texts = texts(0)

    def answer(self) -> bytes:
        return self.model.embed(self.texts).tobytes() + self.layer(self.x, threads=2).tobytes()


def child_fails(work: Callable[[], bool]) -> str | None:
    """Fork; None where `work` says True in the child within LIMIT seconds, else what went wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of a fork beside threads, which is the point here
        pid = os.fork()
    if not pid:
        status = 2
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return ended(pid)


def ended(pid: int) -> str | None:
    """Wait for a child; None where it ended well."""
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {0: None, 1: "a wrong answer"}.get(os.waitstatus_to_exitcode(status), f"status {os.waitstatus_to_exitcode(status)}")
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "a hang"


@contextlib.contextmanager
def busy(subject: Subject, want: bytes, count: int = 2) -> Iterator[list[str]]:
    """Threads that ask all the time; yields the list of what they found wrong."""
    wrong: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            if subject.answer() != want:
                wrong.append("a wrong answer in a thread beside")

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)
            if thread.is_alive():
                wrong.append("a thread beside hangs")


def fork_after_use(repeat: int) -> Iterator[str | None]:
    """A process that has used its threads forks, and the child answers."""
    subject = Subject()
    want = subject.answer()
    for _ in range(repeat):
        yield child_fails(lambda: subject.answer() == want)
    yield None if subject.answer() == want else "a wrong answer in the parent"


def fork_while_threads_work(repeat: int) -> Iterator[str | None]:
    """A process forks while two of its threads are in calls, and the child answers."""
    subject = Subject()
    want = subject.answer()
    with busy(subject, want) as wrong:
        for _ in range(repeat):
            yield child_fails(lambda: subject.answer() == want)
    yield from wrong


def prefork(repeat: int) -> Iterator[str | None]:
    """A server loads a model, uses it not at all, and forks workers, which answer side by side."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        want = pool.apply(expected)
    subject = Subject()
    for start in range(0, repeat, WORKERS):
        pids = []
        for _ in range(min(WORKERS, repeat - start)):
            pid = os.fork()
            if not pid:
                os._exit(0 if subject.answer() == want else 1)
            pids.append(pid)
        yield from map(ended, pids)


def expected() -> bytes:
    return Subject().answer()


def spawn(repeat: int) -> Iterator[str | None]:
    """A process that has used its threads spawns fresh ones, which load and answer."""
    want = expected()
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        waiting = [pool.apply_async(expected) for _ in range(repeat)]
        for result in waiting:
            try:
                yield None if result.get(2 * LIMIT) == want else "a wrong answer"
            except multiprocessing.TimeoutError:
                yield "a hang"


EXIT = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from processes import Subject
subject = Subject()
tokenizer = subject.model.tokenizer
packed = tokenizer.batch(tokenizer.encode(subject.texts))
def ask():
    while True: subject.model.embed(packed), subject.layer(subject.x, threads=2)
for _ in range(2): threading.Thread(target=ask, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


def exit_during_a_call(repeat: int) -> Iterator[str | None]:
    """The interpreter ends while daemon threads are in calls. They give ids: of texts, the tokenizers library aborts then, alone, too."""
    rng = random.Random(0)
    for _ in range(repeat):
        command = [sys.executable, "-X", "faulthandler", "-c", EXIT, os.path.dirname(os.path.abspath(__file__)), f"{rng.random() / 10:.4f}"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            yield "a hang"
        else:
            yield f"status {done.returncode}: {done.stderr.decode(errors='replace')[:500]}" if done.returncode or done.stderr else None


def signals(repeat: int) -> Iterator[str | None]:
    """A signal with a handler arrives every millisecond or so during calls."""
    subject = Subject()
    want = subject.answer()
    seen = 0

    def handle(*_: object) -> None:
        nonlocal seen
        seen += 1

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(repeat):
            was = seen
            while seen == was:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3))
                same = subject.answer() == want
                yield from [] if same else ["a wrong answer"]
            yield None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupts(repeat: int) -> Iterator[str | None]:
    """A call is given up by an exception from a signal's handler; the next one is right."""
    subject = Subject()
    want = subject.answer()

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(repeat):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 3e-2), 1)  # again, where Python drops it in a collection
                while True:
                    subject.answer()
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield None if subject.answer() == want else "a wrong answer afterwards"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SCENARIOS = (fork_after_use, fork_while_threads_work, prefork, spawn, exit_during_a_call, signals, interrupts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1000, metavar="N", help="times that each event happens (default: 1000)")
    parser.add_argument("scenario", nargs="*", choices=[[], *(s.__name__ for s in SCENARIOS)], help="default: all")
    args = parser.parse_args(argv)
    failed = False
    for scenario in SCENARIOS:
        if args.scenario and scenario.__name__ not in args.scenario:
            continue
        begin, wrong, done = time.monotonic(), [], 0
        for problem in scenario(args.repeat):
            done += 1
            if problem:
                wrong.append(problem)
        failed |= bool(wrong)
        print(f"{scenario.__name__:<24} {done:>6} times, {len(wrong)} failed, {time.monotonic() - begin:.0f} s", flush=True)
        for problem in wrong[:5]:
            print(f"    {problem}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
