"""A tokenizer tried on a few texts, so that what its file makes the tokenizers library do shows at load and not in use.

As a script this is a process of its own, with limits of time and memory: a regular expression may take for ever. It
imports nothing of fastinfer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

TEXTS = (
    "",
    " ",
    "Hello, world! It's 123.5\u00a0km;\tüber\r\n\n  naïve — ﷺ 東京 한국 สวัสดี नमस्ते 👩‍💻 \u200b\ufeff",
    "a" * 200,
    " " * 200,
    "1" * 200,
    "." * 200,
    "\n" * 200,
    "É中 " * 60,
)
TOKENS = 64  # at most so many of a character
SECONDS = 5
BYTES = 4 << 30


def trial(raw: Any, vocabulary: int, texts: Iterable[str] = ()) -> None:
    """Encode and decode TEXTS and `texts`, alone and in pairs.

    Raises ValueError for more tokens than TOKENS a character and for ids from `vocabulary` on; panics of the library come
    through. Its ordinary errors do not count: a vocabulary may lack a token for what is unknown.
    """
    for text in (*TEXTS, *texts):
        for pair in ((text,), (text, "Second")):
            try:
                ids = raw.encode(*pair).ids
                most = TOKENS * (sum(map(len, pair)) + 16) + raw.num_special_tokens_to_add(len(pair) == 2)
                raw.decode(ids[:most], skip_special_tokens=False)
            except Exception:
                continue
            if len(ids) > most:
                raise ValueError(f"{sum(map(len, pair))} characters become {len(ids)} tokens")
            if max(ids, default=0) >= vocabulary:
                raise ValueError(f"{text[:20]!r} has the id {max(ids)}, expected 0 to {vocabulary - 1}")


def main() -> None:
    """Read one line of JSON (vocabulary, texts) and a tokenizer.json, and print ok, or what is wrong."""
    import resource

    sys.path.append(sys.argv[1])
    import tokenizers

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    vocabulary, texts = json.loads(sys.stdin.buffer.readline())
    raw = tokenizers.Tokenizer.from_buffer(sys.stdin.buffer.read())
    raw.no_padding()
    raw.no_truncation()
    try:
        trial(raw, vocabulary, texts)
    except BaseException as error:  # a panic is no Exception
        print(str(error).splitlines()[0][:200])
    else:
        print("ok")


if __name__ == "__main__":
    main()
