"""A server in a thread of the tests, and a client that asks it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """An answer: its status, its headers and its body."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server that runs. models: name -> its Served."""

    def __init__(self, url: str, port: int, models: dict[str, Any]) -> None:
        self.url, self.port, self.models = url, port, models

    def get(self, path: str, **headers: str) -> Answer:
        return self.send(path, None, headers)

    def post(self, path: str, asked: Any, **headers: str) -> Answer:
        """The answer to a request, which is a JSON value or bytes."""
        return self.send(path, asked if isinstance(asked, bytes) else json.dumps(asked).encode(), headers)

    def send(self, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as got:
                return Answer(got.status, got.headers, got.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())


@contextlib.contextmanager
def running(
    models: dict[str, str], *, key: str | None = None, batch_tokens: int | None = None, threads: int | None = None, **limits: int
) -> Iterator[Running]:
    """A server of models {name: folder} on a free port of this machine, for the time of a block."""
    import uvicorn

    from fastinfer.serve import app, command, served
    from fastinfer.serve.settings import Limits, Settings

    made: dict[str, Any] = {}
    whole = served.Served.__init__

    def noted(self: Any, name: str, *rest: Any) -> None:
        whole(self, name, *rest)
        made[name] = self

    served.Served.__init__ = noted  # type: ignore[method-assign]
    try:
        settings = Settings(tuple(models.items()), "cpu", key=key, batch_tokens=batch_tokens, threads=threads, limits=Limits(**limits))
        server = uvicorn.Server(uvicorn.Config(app.create(settings), log_config=None, access_log=False, ws="none"))
    finally:
        served.Served.__init__ = whole  # type: ignore[method-assign]
    with command.listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{port}", port, made)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
