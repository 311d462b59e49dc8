"""A server of the shape of `fastinfer serve` around an engine of others, to be measured beside it:

    python tools/rivals/serve.py MODEL --port 8001 --engine "onnxruntime dense int8"

MODEL is a dense model in the Hugging Face layout with mean pooling, such as all-MiniLM-L6-v2. Starlette, uvicorn, msgspec and orjson
stand before it, too. What waits is sorted by length and computed some texts at a time, by one thread that runs the engine's own threads.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from rivals.cpu import models

SORTED = 64  # texts that wait longest are sorted by length
TOGETHER = 8  # texts of a batch: onnxruntime int8 gave 343, 415, 416, 354 texts/s with 1, 4, 8, 16 on 2 cores; OpenVINO wants 16


class Asked(msgspec.Struct):
    """A request of /v1/embeddings."""

    input: str | list[str]
    encoding_format: str = "float"
    model: str | None = None


class Batches:
    """Vectors of texts that arrive one by one."""

    def __init__(self, folder: Path, cache: Path, engine: str, threads: int, together: int) -> None:
        left_out: dict[str, str] = {}
        found = next(models(folder, cache, threads, lambda name: name == engine, left_out), None)
        if found is None:
            raise SystemExit(f"{engine} cannot run: {left_out}")
        self._encode = found.load(*found.arguments)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self._tokenizer.enable_truncation(limit)
        self._tokenizer.enable_padding()
        self._together = together
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[tuple[str, asyncio.Future[np.ndarray]]] = []
        self._working: asyncio.Task[None] | None = None

    async def vectors(self, texts: list[str]) -> list[np.ndarray]:
        """A vector of length 1 for each text."""
        loop = asyncio.get_running_loop()
        held = [(text, loop.create_future()) for text in texts]
        self._waiting += held
        if self._working is None:
            self._working = loop.create_task(self._work())
        return await asyncio.gather(*(future for _, future in held))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            oldest, self._waiting = sorted(self._waiting[:SORTED], key=lambda one: len(one[0])), self._waiting[SORTED:]
            for start in range(0, len(oldest), self._together):
                batch = oldest[start : start + self._together]
                found = await loop.run_in_executor(self._pool, self._computed, [text for text, _ in batch])
                for (_, future), vector in zip(batch, found, strict=True):
                    if not future.done():
                        future.set_result(vector)
        self._working = None

    def _computed(self, texts: list[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(one, name) for one in encodings], np.int64) for name in ("ids", "attention_mask"))
        states = self._encode(ids, mask)
        shares = mask[:, :, None].astype(np.float32)
        vectors: np.ndarray = (states * shares).sum(1) / shares.sum(1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def app(batches: Batches) -> Starlette:
    """The application."""
    decoder = msgspec.json.Decoder(Asked)

    async def embeddings(request: Request) -> Response:
        asked = decoder.decode(await request.body())
        vectors = await batches.vectors([asked.input] if isinstance(asked.input, str) else asked.input)
        rows: Any = vectors if asked.encoding_format == "float" else [base64.b64encode(vector.data).decode() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        return Response(orjson.dumps({"object": "list", "data": data}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the engine's own files, made once")
    parser.add_argument("--engine", default="onnxruntime dense int8", help='such as "openvino dense int8"')
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--together", type=int, default=TOGETHER, help="texts of a batch")
    args = parser.parse_args()
    made = app(Batches(args.model, args.cache, args.engine, args.threads, args.together))
    uvicorn.run(made, port=args.port, access_log=False, log_level="warning", ws="none")


if __name__ == "__main__":
    main()
