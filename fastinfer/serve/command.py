"""The command `fastinfer serve`: its options, and the server."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..arguments import add_model, at_least, describe
from ..catalog import folder_of, lasting_name
from ..errors import InputError, printable, required
from .settings import Limits, Settings

__all__ = ["add_arguments", "run", "worker"]

KEY = "FASTINFER_API_KEY"
SETTINGS = "FASTINFER_SERVE"  # environment variable by which workers get theirs
BACKLOG = 2048  # connections that wait to be accepted
LEVELS = ("debug", "info", "warning", "error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of the command."""
    how = f"""
Answer HTTP requests in the protocols of OpenAI (/v1/embeddings) and text-embeddings-inference (/embed, /rerank,
/predict and others). /docs lists the endpoints; / is a page to try a model with. Needs fastinfer[serve].

Clients must send a key, as Authorization: Bearer KEY, if the environment variable {KEY}
or --api-key-file has one. SIGTERM and Ctrl-C end the server when the requests that it has are answered.
"""
    describe(parser, how, "fastinfer serve", "fastinfer serve -m small=./model -m org/name --host 0.0.0.0 --api-key-file key.txt")
    add_model(parser, default=", or NAME=MODEL to serve it by NAME; can be repeated, and the first answers where none is named", many=True)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, which only this machine reaches)")
    server.add_argument("--port", type=at_least(0), default=8000, metavar="N", help="port to listen on (default: 8000; 0: a free one)")
    server.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes, which share mapped weights (default: 1)")
    server.add_argument("--api-key-file", metavar="FILE", help="file with the key that clients must send")
    server.add_argument("--log-level", choices=LEVELS, default="info", help="info logs each request, as a line of JSON (default: info)")
    limits = parser.add_argument_group("limits")
    for name, what in (
        ("max_body", "bytes of a request"),
        ("max_texts", "texts of a request"),
        ("max_tokens", "tokens of a request"),
        ("max_waiting", "texts that wait or are computed, for each model; status 429 beyond"),
        ("max_seconds", "seconds from the first byte of a request to its answer"),
    ):
        default = getattr(Limits(), name)
        option = "--" + name.replace("_", "-")
        limits.add_argument(option, type=at_least(1), default=default, metavar="N", help=f"most {what} (default: {default:,})")
    limits.add_argument("--batch-tokens", type=at_least(1), metavar="N", help="most tokens that are computed together")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    for package in ("httptools", "msgspec", "orjson", "prometheus_client", "starlette", "uvicorn"):
        required(package, "fastinfer serve", "serve")
    from . import logs

    settings = _settings(args)
    logs.start(settings.log_level)
    with listening(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if settings.key is None and not _is_loopback(host):
            print(f"fastinfer: warning: every machine that reaches {address} may use it: no key is set ({KEY})", file=sys.stderr)
        said = {"address": address, "models": [name for name, _ in settings.models], "workers": args.workers}
        (_serve if args.workers == 1 else _serve_with_workers)(settings, listener, said)
    logs.say("ended")


def _serve(settings: Settings, listener: socket.socket, said: dict[str, Any]) -> None:
    """Serve until a signal asks to end."""
    import uvicorn

    from . import logs
    from .app import create

    server = uvicorn.Server(uvicorn.Config(create(settings), **_how(settings)))
    logs.say("serving", **said)
    try:
        server.run([listener])
    except (SystemExit, KeyboardInterrupt):
        if not server.started:
            raise  # the signal came before the server could take it


def _serve_with_workers(settings: Settings, listener: socket.socket, said: dict[str, Any]) -> None:
    """Serve with several processes, which uvicorn starts and watches over. Each gets the settings from the environment."""
    import uvicorn

    from . import logs

    for _, path in settings.models:
        folder_of(path)  # an error here ends the command with a message, before workers fail
    with tempfile.TemporaryDirectory(prefix="fastinfer-metrics-") as folder:
        os.environ |= {SETTINGS: json.dumps(dataclasses.asdict(settings)), "PROMETHEUS_MULTIPROC_DIR": folder}
        logs.say("serving", **said)
        uvicorn.run("fastinfer.serve.command:worker", factory=True, fd=listener.fileno(), workers=said["workers"], **_how(settings))


def worker() -> Any:
    """The application of a worker process."""
    from . import logs
    from .app import create

    settings = Settings.read(json.loads(os.environ[SETTINGS]))
    logs.start(settings.log_level)
    return create(settings)


def _how(settings: Settings) -> dict[str, Any]:
    """The options of uvicorn."""
    return {
        "backlog": BACKLOG,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "ws": "none",
        "timeout_graceful_shutdown": settings.limits.max_seconds,
    }


def _settings(args: argparse.Namespace) -> Settings:
    """What the options ask for."""
    named: dict[str, str | None] = {}
    for given in args.model or [None]:
        name, path = _named(given)
        if name in named:
            raise InputError(f"two models have the name {name}: give one another name, such as --model other={path}")
        named[name] = path
    from ..backends.cpu import default_threads

    threads = args.threads or max(1, default_threads() // args.workers)
    limits = Limits(args.max_body, args.max_texts, args.max_tokens, args.max_waiting, args.max_seconds)
    how = args.device, args.dtype, threads, args.max_depth, args.batch_tokens
    return Settings(tuple(named.items()), *how, limits, args.log_level, _key(args.api_key_file))


def _named(given: str | None) -> tuple[str, str | None]:
    """(name, what to load) of a value of --model."""
    if given is not None and not os.path.exists(given) and "=" in given:
        name, _, path = given.partition("=")
        if not name or not path:
            raise InputError(f"--model is {printable(given)}, expected MODEL or NAME=MODEL")
        return name, path
    kind, lasting = lasting_name(given, folder_of(given))
    return Path(lasting).name if kind != "hub" else lasting.partition("@")[0], given


def _key(file: str | None) -> str | None:
    """The key that clients must send; None: none."""
    key = os.environ.get(KEY) if file is None else Path(file).read_text("utf-8").strip()
    if key is None:
        return None
    if not key.isascii() or not key.isprintable() or not key:
        raise InputError(f"the key of {file or KEY} is empty or has other than printable ASCII characters")
    return key


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError naming the address.

    Its connections send at once what is written. Otherwise the head of an answer goes out and its body waits until the
    client confirms the head, which takes it 40 ms. asyncio sees to that only for sockets that name their protocol.
    """
    if port > 65535:
        raise InputError(f"--port is {port}, expected 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
        return listener
    except OSError as error:
        raise InputError(
            f"{printable(host)}:{port} cannot be listened on: {error.strerror or error}: try another --host or --port"
        ) from None


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
