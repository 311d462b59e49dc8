"""How fast `fastinfer serve` answers beside the library itself, and whether every answer is right:

    python tools/http_bench.py rate --connections 1 8 64       # texts a second and how long callers wait, against model.embed
    python tools/http_bench.py start                           # from the start of the process to its first answer
    python tools/http_bench.py soak --seconds 1800             # at saturation: memory, each answer checked; then bursts over the queue

    python tools/http_bench.py rate --rival "onnxruntime int8=python tools/rivals/serve.py MODEL --cache CACHE --port {port}"

Client and server share the cores of this machine. Each answer is compared, bit for bit, with that of model.embed for its texts alone.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import re
import selectors
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastinfer

ROOT = Path(__file__).parents[1]


def sentences(file: Path | None, count: int) -> list[str]:
    """Lines of a file, or sentences of this project's documents, of mixed lengths."""
    if file is not None:
        found = [line.strip() for line in file.read_text("utf-8").splitlines()]
    else:
        words = " ".join(page.read_text("utf-8") for page in sorted(ROOT.glob("docs/**/*.md")))
        found = [part.strip() for part in re.split(r"(?<=[.:;])\s|\n\n", re.sub(r"```.*?```|\|[^\n]*\|", "", words, flags=re.S))]
    found = [text for text in dict.fromkeys(found) if len(text) > 20]
    return random.sample(found, min(count, len(found)))


class Server:
    """A server in a process of its own."""

    def __init__(self, *command: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen([word.replace("{port}", str(self.port)) for word in command])

    def ready(self) -> None:
        """Wait until it answers."""
        while True:
            with contextlib.suppress(OSError), contextlib.closing(Connection(self.port)) as connection:
                if connection.post("/v1/embeddings", b'{"input": "a text"}')[0] == 200:
                    return
            if self.process.poll() is not None:
                raise SystemExit("the server has ended")
            time.sleep(0.002)

    @property
    def megabytes(self) -> float:
        """Memory that it alone uses."""
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    @property
    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def end(self) -> int:
        """Ask it to end. Returns its exit status."""
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def serving(*command: str) -> Iterator[Server]:
    """A server for the time of a block. The command has {port} for its port."""
    server = Server(*command)
    try:
        server.ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


class Connection:
    """A connection that sends one request after another. It does little, because the server has the same cores."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, path: str, body: bytes) -> None:
        """Send a request. Its answer is read by read()."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        self._got, self._whole = bytearray(), 0

    def read(self) -> tuple[int, bytes] | None:
        """(status, body) of the answer; None if it is not complete after the part that has come."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise SystemExit("the server has closed a connection")
        self._got += part
        if not self._whole and (end := self._got.find(b"\r\n\r\n")) >= 0:
            self._body = end + 4
            self._whole = self._body + int(re.search(rb"(?i)content-length: *(\d+)", self._got)[1])  # type: ignore[index]
        if not self._whole or len(self._got) < self._whole:
            return None
        return int(self._got[9:12]), bytes(self._got[self._body :])

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer to a request."""
        self.send(path, body)
        while (answer := self.read()) is None:
            pass
        return answer

    def close(self) -> None:
        self.socket.close()


class Asked:
    """A request with its right answer; None: any vectors, since another model answers."""

    def __init__(self, texts: list[str], vectors: np.ndarray | None, form: str) -> None:
        self.texts = len(texts)
        self.body = json.dumps({"input": texts, "encoding_format": form}).encode()
        self.want = None
        if vectors is not None:
            self.want = [base64.b64encode(vector.tobytes()) if form == "base64" else vector.tolist() for vector in vectors]

    def check(self, answer: bytes) -> None:
        """Raise SystemExit unless the answer holds the right vectors in the right order."""
        data = json.loads(answer)["data"]
        if self.want is None and len(data) == self.texts:
            return
        got = [row["embedding"] for row in data]
        got = [one.encode() if isinstance(one, str) else np.array(one, np.float32).tolist() for one in got]
        if [row["index"] for row in data] != list(range(self.texts)) or got != self.want:
            raise SystemExit("an answer is not that of model.embed")


def requests_of(model: fastinfer.Model | None, texts: list[str], each: int, form: str) -> list[Asked]:
    """The texts in requests of `each` texts. Their answers come from calls of one text, not from packed ones."""
    vectors = None if model is None else np.concatenate([model.embed(text) for text in texts])
    starts = range(0, len(texts) - each + 1, each)
    return [Asked(texts[i : i + each], None if vectors is None else vectors[i : i + each], form) for i in starts]


class Load(NamedTuple):
    """What came of requests that were sent without a pause.

    texts  that were answered; waits: seconds that each request took; statuses: how often each came
    wall   seconds in all; cpu: seconds of CPU time that this process used for it
    """

    texts: int
    waits: np.ndarray
    statuses: Counter[int]
    wall: float
    cpu: float


def load(port: int, asked: Iterable[Asked], connections: int, check: float) -> Load:
    """Send requests over several connections, each the next one when its answer has come.

    check  the share of answers that are compared; comparing takes CPU time
    """
    waits: list[float] = []
    statuses: Counter[int] = Counter()
    texts, left, began, cpu = 0, iter(asked), time.perf_counter(), time.process_time()
    sent: dict[Connection, tuple[Asked, float]] = {}  # what each waits for, and since when
    with selectors.DefaultSelector() as ready:

        def send(connection: Connection) -> None:
            """Send the next request, if there is one."""
            if (one := next(left, None)) is not None:
                connection.send("/v1/embeddings", one.body)
                sent[connection] = one, time.perf_counter()
            else:
                ready.unregister(connection.socket)
                connection.close()

        for connection in [Connection(port) for _ in range(connections)]:
            ready.register(connection.socket, selectors.EVENT_READ, connection)
            send(connection)
        while ready.get_map():
            for key, _ in ready.select():
                if (answer := key.data.read()) is None:
                    continue
                one, since = sent[key.data]
                waits.append(time.perf_counter() - since)
                status, body = answer
                statuses[status] += 1
                if status == 200:
                    texts += one.texts
                    if random.random() < check:
                        one.check(body)
                send(key.data)
    return Load(texts, np.array(waits), statuses, time.perf_counter() - began, time.process_time() - cpu)


def for_seconds(asked: list[Asked], seconds: float) -> Iterator[Asked]:
    """Some of these again and again, as long as the time lasts."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield random.choice(asked)


def of_library(model: fastinfer.Model, texts: list[str], seconds: float) -> float:
    """Texts a second of model.embed, from text, in the batches that it makes itself."""
    model.embed(texts[:64])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += len(model.embed(texts))
    return done / (time.perf_counter() - began)


def alone(model: fastinfer.Model, texts: list[str], seconds: float) -> np.ndarray:
    """Seconds of calls of model.embed with one text."""
    waits, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        model.embed(random.choice(texts))
        waits.append(time.perf_counter() - began)
    return np.array(waits)


def own(args: argparse.Namespace, *options: str) -> list[str]:
    """The command of this project's server."""
    command = [sys.executable, "-m", "fastinfer", "serve", "--port", "{port}", "--log-level", "warning", "--workers", str(args.workers)]
    return [*command, *(["-m", args.model] if args.model else []), *options]


def rate(args: argparse.Namespace) -> None:
    """Texts a second and percentiles of the time of a request, of the library and of servers, in turns."""
    model = fastinfer.load(args.model)
    texts = sentences(args.texts, args.count)
    tokens = np.mean([len(encoding.ids) for encoding in model.tokenizer.encode(texts)])
    servers = {"fastinfer serve": (own(args), requests_of(model, texts, args.each, args.format))}
    for given in args.rival:
        name, _, command = given.partition("=")
        servers[name] = shlex.split(command), requests_of(None, texts, args.each, args.format)
    print(f"{model.device}, {len(texts)} texts of {tokens:.1f} tokens on average, {args.each} a request, {args.format}")
    print(f"{'':<32} {'texts/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'server CPU':>10} {'client CPU':>10}")

    def line(name: str, rate: float, waits: np.ndarray, *cpus: float) -> None:
        p50, p95, p99 = np.percentile(waits, [50, 95, 99]) * 1000 if len(waits) else [np.nan] * 3
        print(f"{name:<32} {rate:>8.0f} {p50:>8.2f} {p95:>8.2f} {p99:>8.2f}", *(f"{cpu:>10.2f}" for cpu in cpus), flush=True)

    for _ in range(args.turns):
        line("model.embed(all)", of_library(model, texts, args.seconds), np.empty(0))
        one = alone(model, texts, args.seconds)
        line("model.embed(one)", 1 / one.mean(), one)
        for name, (command, asked) in servers.items():
            with serving(*command) as server:
                for connections in args.connections:
                    load(server.port, for_seconds(asked, 0.5), connections, 1)
                    cpu = server.cpu
                    done = load(server.port, for_seconds(asked, args.seconds), connections, args.check)
                    cpus = (server.cpu - cpu) / done.wall, done.cpu / done.wall
                    line(f"{name}, {connections} connections", done.texts / done.wall, done.waits, *cpus)
                    if set(done.statuses) != {200}:
                        raise SystemExit(f"statuses of {name}: {dict(done.statuses)}")


def start(args: argparse.Namespace) -> None:
    """Seconds from the start of the process to its first answer."""
    found = []
    for _ in range(args.turns):
        began = time.perf_counter()
        server = Server(*own(args))
        server.ready()
        found.append(time.perf_counter() - began)
        if server.end() != 0:
            raise SystemExit("the server did not end in order")
    print(f"first answer after {min(found):.2f} s at best, {np.median(found):.2f} s in the median of {args.turns}")


def soak(args: argparse.Namespace) -> None:
    """Ask without a pause and check each answer and the memory; then send ten times what the queue holds, several times."""
    model = fastinfer.load(args.model)
    asked = requests_of(model, sentences(args.texts, args.count), args.each, args.format)
    connections, seconds = args.connections[-1], min(10.0, args.seconds / 5)
    queue = 2 * connections * args.each
    with serving(*own(args, "--max-waiting", str(queue))) as server:
        load(server.port, for_seconds(asked, seconds), connections, 1)
        first, began, done, seen = server.megabytes, time.perf_counter(), 0, []
        counts: Counter[int] = Counter()
        while time.perf_counter() - began < args.seconds:
            found = load(server.port, for_seconds(asked, seconds), connections, 1)
            done, counts = done + found.texts, counts + found.statuses
            seen.append(server.megabytes)
        said = f"{done} texts in {time.perf_counter() - began:.0f} s, each answer checked, statuses {dict(counts)}"
        memory = [f"{megabytes:.1f}" for megabytes in [first, *seen[:: max(1, len(seen) // 10)]]]
        print(f"{said}; memory in the course of it {' '.join(memory)} MB", flush=True)
        if set(counts) != {200}:
            raise SystemExit("a request was not answered")
        for turn in range(3):
            sent = random.choices(asked, k=10 * queue // args.each)
            counts = load(server.port, sent, len(sent), 1).statuses  # each on a connection of its own
            print(f"burst {turn + 1} of 10 times the queue: statuses {dict(counts)}; memory {server.megabytes:.1f} MB", flush=True)
            if set(counts) - {200, 429}:
                raise SystemExit("a burst got other statuses than 200 and 429")


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "start", "soak"))
    parser.add_argument("-m", "--model", help="a folder or a name (default: the model inside)")
    rival = "another server for rate, with {port} for its port"
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=COMMAND", help=rival)
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a text a line (default: sentences of the documents)")
    parser.add_argument("--count", type=int, default=1000, help="texts that are taken of them")
    parser.add_argument("--each", type=int, default=1, help="texts of a request")
    parser.add_argument("--format", choices=("float", "base64"), default="base64", help="of vectors; the client of OpenAI asks for base64")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64], help="soak takes the last number")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--check", type=float, default=0.05, help="the share of answers that rate compares")
    args = parser.parse_args()
    {"rate": rate, "start": start, "soak": soak}[args.what](args)


if __name__ == "__main__":
    main()
