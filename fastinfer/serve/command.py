"""The command `fastinfer serve`: its options, and the server."""

from __future__ import annotations

import argparse
import functools
import ipaddress
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

__all__ = ["add_arguments", "run"]

KEY = "FASTINFER_API_KEY"
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
    for package in ("msgspec", "orjson", "prometheus_client", "starlette", "uvicorn"):
        required(package, "fastinfer serve", "serve")
    settings = _settings(args)
    with _listening(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if settings.key is None and not _is_loopback(host):
            print(f"fastinfer: warning: every machine that reaches {address} may use it: no key is set ({KEY})", file=sys.stderr)
        if args.workers == 1:
            _serve(settings, args, listener, address)
        else:
            _serve_with_workers(settings, args, listener, address)


def _serve(settings: Settings, args: argparse.Namespace, listener: socket.socket, address: str) -> None:
    """Serve until a signal asks to end."""
    from . import logs
    from .app import create

    logs.start(args.log_level)
    app = create(settings)
    server = _server(app, args, settings.limits)
    logs.say("serving", address=address, models=[name for name, _ in settings.models])
    try:
        server.run([listener])
    except (SystemExit, KeyboardInterrupt):
        if not server.started:
            raise  # the signal came before the server could take it
    logs.say("ended")


def _serve_with_workers(settings: Settings, args: argparse.Namespace, listener: socket.socket, address: str) -> None:
    """Serve with several processes, which uvicorn starts and watches over."""
    from uvicorn.supervisors import Multiprocess

    from . import logs

    logs.start(args.log_level)
    for _, path in settings.models:
        folder_of(path)  # an error here ends the command, which one in a worker would not
    with tempfile.TemporaryDirectory(prefix="fastinfer-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        server = _server(functools.partial(_worker, settings, args.log_level), args, settings.limits, factory=True)
        logs.say("serving", address=address, models=[name for name, _ in settings.models], workers=args.workers)
        Multiprocess(server.config, target=server.run, sockets=[listener]).run()
        logs.say("ended")


def _worker(settings: Settings, level: str) -> Any:
    """The application of a worker process."""
    from . import logs
    from .app import create

    logs.start(level)
    return create(settings)


def _server(app: Any, args: argparse.Namespace, limits: Limits, *, factory: bool = False) -> Any:
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            factory=factory,
            workers=args.workers,
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=limits.max_seconds,
        )
    )


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
    return Settings(
        tuple(named.items()), args.device, args.dtype, threads, args.max_depth, args.batch_tokens, limits, _key(args.api_key_file)
    )


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


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError naming the address."""
    if port > 65535:
        raise InputError(f"--port is {port}, expected 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(
            f"{printable(host)}:{port} cannot be listened on: {error.strerror or error}: try another --host or --port"
        ) from None


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
