"""Tries a tokenizer on a few texts, so that a file that breaks the tokenizers library is found at load and not in use.

Run as a script, this is a separate process with limits of time and memory, since a regular expression may take for
ever. It imports nothing of fastinfer.
"""

from __future__ import annotations

import contextlib
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
TOKENS = 64  # limit per character
SECONDS = 5  # of CPU time
BYTES = 4 << 30  # of address space


def trial(raw: Any, vocabulary: int, texts: Iterable[str] = ()) -> None:
    """Encode and decode TEXTS and `texts`, alone and in pairs.

    Raises ValueError for more than TOKENS tokens a character, and for ids of `vocabulary` or more. Panics of the library
    pass through. Its ordinary errors are ignored: a vocabulary may lack a token for unknown words.
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


def limit() -> None:
    """Limit the memory and the time of this process. Windows has no such limits, and macOS may refuse that of memory."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    with contextlib.suppress(*([ValueError, OSError] if sys.platform == "darwin" else [])):
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def main() -> None:
    """Read one line of JSON (vocabulary, texts) and a tokenizer.json from standard input, and print "ok" or the error."""
    sys.path.append(sys.argv[1])
    import tokenizers

    limit()
    vocabulary, texts = json.loads(sys.stdin.buffer.readline())
    raw = tokenizers.Tokenizer.from_buffer(sys.stdin.buffer.read())
    raw.no_padding()
    raw.no_truncation()
    try:
        trial(raw, vocabulary, texts)
    except BaseException as error:  # a panic is not an Exception
        print(str(error).splitlines()[0][:200])
    else:
        print("ok")


if __name__ == "__main__":
    main()
